"""What models and engines answer to images: [N, C] logits, or [N, D] features of a model without a head.

Engines answer in a worker process; torch answers here, so the two never share a process.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.statistics import agreement

if TYPE_CHECKING:
    from pipeline.pixels import Pixels
    from pipeline.statistics import Floats

Tell = Callable[[str, float | None], None]
BATCH = 16


def engine_answers(engine: Path, pixels: "Pixels", *, tell: Tell, precision: str = "fp32") -> "Floats":
    """Run every image through an engine's folder, in a fresh worker.

    engine may be an .onnx file; then `precision` says what it holds, and ONNX Runtime on this CPU answers.
    """
    import numpy as np

    from targets.worker import Worker

    images = np.load(pixels.file, mmap_mode="r")
    with Worker() as worker:
        if engine.is_dir():
            worker.load(engine)
            found = worker.infer(images, preprocess=pixels.preprocess, tell=tell)
        else:
            loaded = worker.load(engine, runtime="onnxruntime", precision=precision)
            batch = loaded.inputs[0]["shape"][0] or BATCH
            found = worker.infer(images, batch=batch, preprocess=pixels.preprocess, tell=tell)
    return next(iter(found.values()))


def torch_answers(model: Path, pixels: "Pixels", *, count: int | None = None, tell: Tell) -> "Floats":
    """Run the first `count` images through a model folder, in fp32 with torch."""
    import numpy as np
    import torch

    from stages.vit.files import load_model
    from targets.preprocess import normalise

    images = np.load(pixels.file, mmap_mode="r")[:count]
    module = load_model(model)
    found = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            batch = normalise(images[start : start + BATCH], pixels.preprocess)
            found.append(module(torch.from_numpy(batch)).numpy())
            tell(f"{start + len(batch)} of {len(images)} images", (start + len(batch)) / len(images))
    return np.concatenate(found)


def prefixed(tell: Tell, what: str) -> Tell:
    """Tell the same, beginning with what it is about."""
    return lambda message, share: tell(f"{what}: {message}", share)


def usable_likeness(reference: "Floats", answers: "Floats", *, has_head: bool) -> float:
    """The same of a candidate; NaN where one answer is not finite: such an engine is not to be trusted with others."""
    import numpy as np

    return likeness(reference, answers, has_head=has_head) if np.isfinite(answers).all() else float("nan")


def likeness(reference: "Floats", answers: "Floats", *, has_head: bool) -> float:
    """Share of images with the same top-1 answer, or the mean cosine of features. Both [N, C] or [N, D]."""
    if has_head:
        return agreement(reference, answers)
    from pipeline.features import feature_cosine

    return float(feature_cosine(reference, answers).mean())


def divergence(reference: "Floats", answers: "Floats", *, has_head: bool) -> float:
    """How far answers are from the reference's, in the unit of a search. Both [N, C] or [N, D].

    Of classes the mean Kullback-Leibler divergence in nats, of features the squared error over their energy around the
    mean: the same as `stages.offers.answers.Judge` tells of a pruned model. Infinity for answers that are not finite.
    """
    import numpy as np

    if not np.isfinite(answers).all():
        return float("inf")
    wanted, found = reference.astype(np.float64), answers.astype(np.float64)
    if not has_head:
        energy = np.square(wanted - wanted.mean(axis=0)).sum() or 1.0
        return float(np.square(found - wanted).sum() / energy)
    wanted, found = (one - np.logaddexp.reduce(one, axis=1, keepdims=True) for one in (wanted, found))
    return float((np.exp(wanted) * (wanted - found)).sum(axis=1).mean())
