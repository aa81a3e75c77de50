"""From source options to a spec, weights and class names."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import eva, vision_transformer
from torch import Tensor

from stages.data.labels import read_class_names
from stages.source.folders import Kind, download, kind_of, refuse_changes
from stages.source.options import SourceOptions
from stages.vit.files import (
    build_empty,
    check_finite,
    check_fits,
    load_labels,
    load_spec,
    load_state,
    read_checkpoint,
    save_description,
    save_model,
    shapes_in,
)
from stages.vit.spec import WEIGHTS_FILE, ViTSpec
from stages.vit.stream import TensorFile, in_file_order, write_tensors
from stages.vit.timm_reader import check_class, read_spec, read_timm
from targets.errors import InputError, UnknownNameError

logger = logging.getLogger("vitrim.source")

HUB = "hf-hub:"
CHUNK = re.compile(r"^blocks\.\d+\.(\d+)\.")
"""DINOv2 cuts its blocks into chunks when it trains sharded: blocks.CHUNK.INDEX"""
HEADS = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")


class Source(NamedTuple):
    """A model as the user gave it."""

    spec: ViTSpec
    state: dict[str, Tensor]
    labels: list[str] | None
    weights: str
    """where they come from: checkpoint, hub, folder, transformers, open_clip or random; `, new head` where the head is
    untrained"""


def save_source(options: SourceOptions, folder: Path, *, seed: int) -> tuple[Source, int]:
    """Write what the options name as a model folder; returns it (a folder's weights left out) and its tensors.

    A model folder is copied tensor by tensor, whatever its size.
    """
    if options.folder is None or kind_of(options.folder) != Kind.VITRIM:
        source = load_source(options, seed=seed)
        save_model(folder, source.spec, source.state, labels=source.labels)
        return source, len(source.state)
    spec, weights = load_spec(options.folder), TensorFile(options.folder / WEIGHTS_FILE)
    check_fits(weights.shapes(), build_empty(spec))
    labels = load_labels(options.folder) if options.labels is None else read_class_names(options.labels)
    save_description(folder, spec, labels=labels)
    names = in_file_order(weights.entries)
    write_tensors(folder / WEIGHTS_FILE, weights.entries, ((name, weights.read(name)) for name in names))
    return Source(spec, {}, labels, "folder"), len(names)


def load_source(options: SourceOptions, *, seed: int) -> Source:
    """Read what the options name; raises InputError.

    seed: for weights that nobody trained: a new head, or all of them with pretrained: false.
    """
    if options.timm is not None:
        source = load_timm(options, seed=seed)
    else:
        source = _load_folder(options, options.folder or download(options.hub or ""), seed=seed)
    if options.labels is not None:
        source = source._replace(labels=read_class_names(options.labels))
    if source.labels is not None and len(source.labels) != source.spec.classes:
        raise InputError(f"{len(source.labels)} class names for {source.spec.classes} classes; give one name per class")
    return source


def expected_spec(options: SourceOptions) -> ViTSpec | None:
    """Read the spec alone: no weights, no memory for them. None for models of the hub and of other libraries' folders.

    Raises InputError for what `load_source` would refuse by its shapes.
    """
    if options.hub is not None:
        return None
    if options.folder is not None:
        return load_spec(options.folder) if kind_of(options.folder) == Kind.VITRIM else None
    name = options.timm or ""
    check_name(name)
    if name.startswith(HUB):
        return None
    arguments = _arguments(options)
    if options.checkpoint is not None and options.classes is None:
        head = shapes_in(options.checkpoint).get("head.weight", ())
        if len(head) == 2:
            arguments["num_classes"] = head[0]
    check_class(_build(name, {}, device="meta"), name=name)
    return read_spec(_build(name, arguments, device="meta"), name=name)


def load_timm(options: SourceOptions, *, seed: int) -> Source:
    """Build a timm model, load its weights, read it."""
    name = options.timm or ""
    check_name(name)
    arguments = _arguments(options)
    state = None
    if options.checkpoint is not None:
        state = plain_tower(read_checkpoint(options.checkpoint), origin=options.checkpoint)
        outputs = _outputs(state)
        if options.classes is None and outputs is not None:
            arguments["num_classes"] = outputs
    # Refuse what cannot be read before gigabytes are fetched. A name on the hub says nothing before its config is here.
    if not name.startswith(HUB):
        check_class(_build(name, {}, device="meta"), name=name)
        read_spec(_build(name, arguments, device="meta"), name=name)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if state is not None:
            model = _build(name, arguments)
            new_head = _load_checkpoint(model, state, options)
            weights = "checkpoint"
        elif options.pretrained:
            model = _fetch(name, arguments)
            new_head = bool(model.num_classes) and model.num_classes != model.pretrained_cfg["num_classes"]
            weights = "hub"
        else:
            model, new_head, weights = _build(name, arguments), False, "random"
    if new_head:
        logger.warning("the head of %s is new: its %d classes are not trained yet", name, model.num_classes)
    spec, read = read_timm(model, name=name)
    check_finite(read, origin=f"the model {name!r}")
    trained = weights != "random" and not new_head
    labels = _known_labels(model.pretrained_cfg, spec.classes) if trained else None
    return Source(spec, read, labels, f"{weights}, new head" if new_head else weights)


def check_name(name: str) -> None:
    """Raise UnknownNameError where timm has no such model or no such pretrained tag."""
    if name.startswith(HUB):
        return
    architecture, _, tag = name.partition(".")
    if ":" in name or not timm.is_model(architecture):
        raise UnknownNameError("timm model", name, timm.list_models(), hint="timm.list_models() lists them")
    tags = [full.partition(".")[2] for full in timm.list_models(architecture, include_tags=True)]
    if tag and tag not in tags:
        known = ", ".join(filter(None, tags)) or "none"
        raise UnknownNameError("pretrained tag", tag, tags, hint=f"tags of {architecture}: {known}")


def plain_tower(state: dict[str, Tensor], *, origin: Path) -> dict[str, Tensor]:
    """The Vision Transformer's tensors, in names that timm's converter knows, out of what training saved around it.

    DINO and DINOv2 keep it under `backbone.` beside heads for training, and may cut its blocks into chunks. CLIP keeps
    it under `visual.` beside a text tower. Raises InputError where there is only the text tower.
    """
    if any(name.startswith("backbone.") for name in state):
        state = {name.removeprefix("backbone."): x for name, x in state.items() if name.startswith("backbone.")}
    if any(name.startswith("transformer.resblocks.") for name in state):
        state = {name: tensor for name, tensor in state.items() if name.startswith("visual.")}
        if not state:
            raise InputError(f"checkpoint {str(origin)!r} holds a text tower only; vitrim reads images")
    state = {name.replace(".ls_1.", ".ls1.").replace(".ls_2.", ".ls2."): tensor for name, tensor in state.items()}
    return {CHUNK.sub(r"blocks.\1.", name): tensor for name, tensor in state.items()}


def _outputs(state: Mapping[str, Tensor]) -> int | None:
    """How many outputs the checkpoint's head or projection has; None where it has none."""
    for name, axis in (("head.weight", 0), ("visual.proj", 1), ("visual.head.proj.weight", 0)):
        if name in state and state[name].ndim == 2:
            return state[name].shape[axis]
    return None


def _load_folder(options: SourceOptions, folder: Path, *, seed: int) -> Source:
    kind = kind_of(folder)
    if kind == Kind.VITRIM:
        refuse_changes(options)
        spec, state = load_spec(folder), load_state(folder)
        check_fits(state, build_empty(spec))
        return Source(spec, state, load_labels(folder), "folder")
    labels: list[str] | None = None
    if kind == Kind.TRANSFORMERS:
        from stages.source.transformers_reader import read_transformers

        spec, state, labels, new_head = read_transformers(folder, size=options.size, classes=options.classes, seed=seed)
    else:
        from stages.source.open_clip_reader import read_open_clip

        spec, state, new_head = read_open_clip(folder, size=options.size, classes=options.classes, seed=seed)
    check_finite(state, origin=f"the model in {str(folder)!r}")
    if new_head:
        logger.warning("the head of %s is new: its %d classes are not trained yet", spec.architecture, spec.classes)
    return Source(spec, state, labels, f"{kind}, new head" if new_head else str(kind))


def _arguments(options: SourceOptions) -> dict[str, Any]:
    arguments: dict[str, Any] = dict(options.arguments)
    if options.classes is not None:
        arguments["num_classes"] = options.classes
    if options.image_size is not None:
        size = options.image_size
        arguments["img_size"] = (size, size) if isinstance(size, int) else size
    return arguments


def _build(name: str, arguments: Mapping[str, Any], *, device: str = "cpu") -> Any:
    """Build a timm model with random weights. timm has no types, and says what is wrong with arguments in many ways."""
    try:
        with torch.device(device):
            return timm.create_model(name, pretrained=False, **arguments).eval()
    except Exception as error:
        raise InputError(f"timm cannot build {name!r} with {dict(arguments)!r}: {_line(error)}") from error


def _fetch(name: str, arguments: Mapping[str, Any]) -> Any:
    """Build a timm model with the hub's weights."""
    if not name.startswith(HUB) and not timm.models.is_model_pretrained(name):
        raise InputError(
            f"timm has no weights for {name!r}; give a checkpoint, or pretrained: false for random weights"
        )
    try:
        return timm.create_model(name, pretrained=True, **arguments).eval()
    except Exception as error:  # the hub's client raises a dozen kinds
        raise InputError(
            f"cannot load the hub's weights of {name!r}: {_line(error)}; where there is no network, give a checkpoint"
        ) from error


def _load_checkpoint(model: Any, state: dict[str, Tensor], options: SourceOptions) -> bool:
    """Load weights into a timm model, position and patch embedding resampled where sizes differ.

    Returns whether its head stays new: only where the options ask for another number of classes.
    """
    own = model.state_dict()
    try:
        state = _adapt(state, model)
        heads = [name for name in HEADS if name in own or name in state]
        differs = any(name not in own or name not in state or own[name].shape != state[name].shape for name in heads)
        if differs and options.classes is not None:
            state = {name: tensor for name, tensor in state.items() if name not in HEADS}
            state |= {name: own[name] for name in heads if name in own}
        check_fits(state, model)
    except InputError as error:
        headless = "head.weight" in own and "head.weight" not in state
        hint = "; set classes to 0 for a model without a head" if headless else ""
        raise InputError(f"checkpoint {str(options.checkpoint)!r}: {error}{hint}") from error
    model.load_state_dict(state)
    return differs and bool(options.classes)


def _adapt(state: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Give the tensors timm's names and the model's image and patch size, as timm's own loader does."""
    try:
        adapted: dict[str, Tensor]
        if isinstance(model, eva.Eva):
            adapted = eva.checkpoint_filter_fn(state, model)
        else:
            adapted = vision_transformer.checkpoint_filter_fn(state, model, adapt_layer_scale=True)
    except Exception as error:
        check_fits(state, model)  # says which tensors are to blame, where timm stumbles over the first
        raise InputError(f"timm cannot adapt it to this model: {_line(error)}") from error
    return adapted


def _known_labels(config: Mapping[str, Any], classes: int) -> list[str] | None:
    """Class names that timm knows: those in the model's config, or ImageNet-1k's."""
    names = config.get("label_names")
    if names and len(names) == classes:
        descriptions = config.get("label_descriptions")
        return [str(descriptions.get(name, name)) if isinstance(descriptions, dict) else str(name) for name in names]
    is_imagenet = infer_imagenet_subset(dict(config)) == "imagenet-1k" and "in1k" in (config.get("tag") or "")
    if is_imagenet and classes == 1000:
        labels: list[str] = ImageNetInfo("imagenet-1k").label_descriptions()
        return labels
    return None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
