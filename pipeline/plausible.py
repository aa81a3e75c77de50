"""Whether the source answers here as it is known to: a mistake that baseline and engine share moves no comparison.

Images normalised or cropped in another way than in the training, or labels in another order, spoil both sides alike.
"""

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pipeline.report import figures
from pipeline.report.record import Accuracy
from stages.graph.described import Described
from stages.source_onnx.options import OnnxSourceOptions

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

TOLERANCE = 0.05
"""share by which a set of images may be harder or easier than the one that a figure is known from"""


def implausible(accuracy: Accuracy | None, known: float | None) -> str:
    """What speaks against the baseline, in words; empty where nothing does, or nothing is known.

    known: the source's metric, 0 to 1. The baseline's 95 % interval (Wilson) has to come within TOLERANCE of it.
    """
    if accuracy is None or known is None:
        return ""
    low, high = _interval(accuracy)
    if low - TOLERANCE <= known <= high + TOLERANCE:
        return ""
    return (
        f"the source itself has {figures.metric_name(accuracy.metric)} {100 * accuracy.baseline:.1f} % here, and "
        f"{100 * known:.1f} % is known of it: images are prepared in another way than in its training "
        "(mean, std, crop, scale), or labels are in another order"
    )


def _interval(accuracy: Accuracy) -> tuple[float, float]:
    from scipy.stats import binomtest

    if not accuracy.images:
        return accuracy.baseline, accuracy.baseline
    found = binomtest(round(accuracy.baseline * accuracy.images), accuracy.images).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


UNKNOWN = (
    "nothing is known of the source's accuracy: images that are read in another way than in its training would spoil "
    "baseline and engine alike; set measure.known_accuracy to what its makers tell"
)
_FAMILIES = re.compile(r"(vit|deit|eva|beit|dino|flexivit|naflexvit|samvit)")
"""how names of timm's Vision Transformers begin"""


def told_of_source(recipe: "Recipe", labelled: bool) -> str:
    """What a recipe should say of its source and does not; empty where it does, or nobody can know.

    labelled: whether the images to evaluate on have labels. A model that is trained here, or not at all, is not known.
    """
    trained = any(step.stage == "finetune" for step in recipe.steps)
    model = recipe.model
    random = not isinstance(model, OnnxSourceOptions) and not model.pretrained and model.checkpoint is None
    if not labelled or trained or random or recipe.measure.known_accuracy is not None:
        return ""
    return UNKNOWN


def unlike_timm(model: Described) -> str:
    """How a model's images are normalised otherwise than timm does it for one of this name; empty where they are not.

    An ONNX file has its file's name. Of a name without a tag, what any of its weights were trained with will do.
    """
    name = model.architecture
    if not _FAMILIES.match(name) or find_spec("timm") is None:
        return ""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        return ""
    names = [name] if tag else timm.list_models(architecture, include_tags=True)
    found = [cfg for one in names if (cfg := timm.get_pretrained_cfg(one, allow_unregistered=False)) is not None]
    known = {(tuple(cfg.mean), tuple(cfg.std)) for cfg in found}
    reads = (tuple(model.preprocess.mean), tuple(model.preprocess.std))
    if not known or any(_near(reads, one) for one in known):
        return ""
    wanted = " or ".join(f"mean {_rounded(mean)}, std {_rounded(std)}" for mean, std in sorted(known))
    return (
        f"images are read with mean {_rounded(reads[0])}, std {_rounded(reads[1])}; timm's {name} was trained with "
        f"{wanted}: unless it was trained anew, its answers are spoiled"
    )


def _near(one: tuple[tuple[float, ...], ...], other: tuple[tuple[float, ...], ...]) -> bool:
    """Whether mean and std agree to half a step of eight bits, or those of fewer channels do."""
    pairs = [pair for a, b in zip(one, other, strict=True) for pair in zip(a, b, strict=False)]
    return all(abs(a - b) < 0.5 / 255 for a, b in pairs)


def _rounded(values: tuple[float, ...]) -> str:
    same = len(set(values)) == 1
    return f"{values[0]:.3g}" if same else "[" + ", ".join(f"{value:.3g}" for value in values) + "]"
