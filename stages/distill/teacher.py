"""The teacher: the source model, or a stronger one that sees the same pictures and answers for the same classes.

Shapes: B images, C classes, D residual width of the teacher.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from stages.vit.files import check_fits, load_labels, load_model, load_spec, read_checkpoint
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from stages.vit.timm_reader import MODELS, read_timm
from targets.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from stages.distill.stage import TeacherOptions


class Teacher(Protocol):
    """What a student learns from."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """What `outputs` can give."""

    def outputs(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Return named outputs for images [B, 3, H, W], normalised as the student's are."""


class StrongerTeacher(nn.Module):
    """A model of its own kind, for images that were prepared for the student: resized and normalised for it first.

    model: a ViT, or any classifier that returns logits [B, C]; then spec is None and there is nothing else to learn.
    """

    def __init__(
        self, model: nn.Module, spec: ViTSpec | None, *, classes: int, prepared: Any, student: ViTSpec
    ) -> None:
        super().__init__()
        self.model, self.spec, self.classes = model.eval(), spec, classes
        height, width, mean, std = prepared
        self.size = (int(height), int(width))
        own = student.preprocess
        # (pixel - m) / s of the student, turned into that of the teacher: one factor and one offset per channel.
        factor = torch.tensor(own.std) / torch.tensor(std)
        offset = (torch.tensor(own.mean) - torch.tensor(mean)) / torch.tensor(std)
        self.factor: Tensor
        self.offset: Tensor
        self.register_buffer("factor", factor.view(1, -1, 1, 1))
        self.register_buffer("offset", offset.view(1, -1, 1, 1))
        self._comparable = comparable(spec, classes, student)

    @property
    def output_names(self) -> tuple[str, ...]:
        """What of its outputs fits the student's."""
        return self._comparable

    def outputs(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Return named outputs for the student's images [B, 3, H, W]; those alone that `output_names` has."""
        images = images * self.factor + self.offset
        images = at_size(images, self.size)
        if not isinstance(self.model, ViT):
            return {"logits": self.model(images)}
        return self.model.outputs(images, names)


def at_size(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize pictures [B, 3, H, W]; those of this size already stay as they are."""
    if tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)


def load_teacher(options: "TeacherOptions", student: ViTSpec, *, labels: list[str] | None) -> StrongerTeacher:
    """Load the teacher that the options name; raises InputError where it cannot be.

    labels: the student's class names, which the teacher's must be where both have some.
    """
    if options.folder is not None:
        spec, model = load_spec(options.folder), load_model(options.folder)
        theirs = load_labels(options.folder)
        if labels and theirs and spec.classes == student.classes and labels != theirs:
            first = next(index for index, pair in enumerate(zip(labels, theirs, strict=True)) if pair[0] != pair[1])
            raise InputError(
                f"the teacher {str(options.folder)!r} has other classes: class {first} is {theirs[first]!r}, of the "
                f"student {labels[first]!r}; give a teacher of the same classes in the same order"
            )
        return StrongerTeacher(model, spec, classes=spec.classes, prepared=_prepared(spec), student=student)
    return _from_timm(str(options.timm), options.checkpoint, student)


def resizing(model: ViT, spec: ViTSpec, *, student: ViTSpec) -> StrongerTeacher:
    """Return the source as a teacher that reads pictures of any size, where the student's input has another one."""
    return StrongerTeacher(model, spec, classes=spec.classes, prepared=_prepared(spec), student=student)


def _from_timm(name: str, checkpoint: Path | None, student: ViTSpec) -> StrongerTeacher:
    if not timm.is_model(name.removeprefix("hf-hub:").partition(".")[0]) and not name.startswith("hf-hub:"):
        raise UnknownNameError("timm model", name, timm.list_models(), hint="timm.list_models() lists them")
    try:
        model = timm.create_model(name, pretrained=checkpoint is None).eval()
    except Exception as error:  # the hub's client raises a dozen kinds
        first = str(error).strip().splitlines()[:1]
        raise InputError(
            f"cannot load the teacher {name!r}: {type(error).__name__}: {''.join(first)}; where there is no network, "
            "give its weights as checkpoint"
        ) from error
    if checkpoint is not None:
        state = read_checkpoint(checkpoint)
        try:
            check_fits(state, model)
        except InputError as error:
            raise InputError(f"the teacher's checkpoint {str(checkpoint)!r}: {error}") from error
        model.load_state_dict(state)
    if type(model) in MODELS:
        spec, weights = read_timm(model, name=name)
        vit = ViT(spec.model_dump(mode="json"))
        vit.load_state_dict(weights)
        return StrongerTeacher(vit, spec, classes=spec.classes, prepared=_prepared(spec), student=student)
    config = resolve_model_data_config(model)
    prepared = (*config["input_size"][1:], config["mean"], config["std"])
    return StrongerTeacher(model, None, classes=int(model.num_classes), prepared=prepared, student=student)


def _prepared(spec: ViTSpec) -> tuple[int, int, tuple[float, ...], tuple[float, ...]]:
    preprocess = spec.preprocess
    return preprocess.height, preprocess.width, preprocess.mean, preprocess.std


def comparable(spec: ViTSpec | None, classes: int, student: ViTSpec) -> tuple[str, ...]:
    """Return the outputs that fit the student's: all shapes equal but the width, which a learned map can bridge.

    spec: of the teacher; None where it is no ViT.
    """
    names = ["logits"] if classes and classes == student.classes else []
    if spec is None:
        return tuple(names)
    if spec.class_token and student.class_token:
        names.append("class_token")
    if _grid(spec) == _grid(student):
        names.append("patch_tokens")
        alike = (spec.width, spec.tokens, len(spec.blocks)) == (student.width, student.tokens, len(student.blocks))
        if alike and not any(student.merge):
            names.extend(f"block_{index}" for index in range(len(spec.blocks)))
    return tuple(names)


def _grid(spec: ViTSpec) -> tuple[int, int]:
    """Patches along height and width."""
    return spec.preprocess.height // spec.patch_size[0], spec.preprocess.width // spec.patch_size[1]
