"""How far a student is from its teacher.

Features: mean squared error of class token and patch tokens after the final norm, as DGMR trains (arXiv 2506.08591),
but each divided by the energy of the teacher's: 0 is equal, 1 is as far as always giving the teacher's mean feature.
Undivided, the error's scale is that of the model's final norm, and no weight fits two models.
Logits: Kullback-Leibler divergence at a temperature, times its square (https://arxiv.org/abs/1503.02531).

Shapes: B images, P patches, D residual width of the teacher, d of the student, C classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.training.pictures import Batch
from stages.training.precision import Precision, autocast
from stages.vit.model import ViT

FEATURES = ("class_token", "patch_tokens")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Of the parts of the loss; a part without weight is not computed."""

    features: float
    logits: float
    labels: float
    temperature: float


class Student(nn.Module):
    """The student and, where its width is not the teacher's, a linear map that is dropped afterwards."""

    def __init__(self, model: ViT, *, teacher_width: int, seed: int) -> None:
        super().__init__()
        self.model = model
        self.map: nn.Module = nn.Identity()
        width = int(model.spec["width"])
        if width != teacher_width:
            weight = torch.empty(teacher_width, width)  # [D, d]
            nn.init.orthogonal_(weight, generator=torch.Generator().manual_seed(seed))
            self.map = nn.Linear(width, teacher_width, bias=False)
            self.map.weight = nn.Parameter(weight)


class DistillationLoss:
    """The weighted distance of a student from its frozen teacher, on the same batch."""

    def __init__(
        self, student: Student, teacher: ViT, energies: dict[str, float], weights: Weights, *, precision: Precision
    ) -> None:
        self._student, self._teacher, self._energies = student, teacher, energies
        self._weights, self._precision = weights, precision
        self._features = [name for name in FEATURES if name in teacher.output_names and weights.features]
        has_head = "logits" in teacher.output_names
        self._from_teacher = [*self._features, *(["logits"] if has_head and weights.logits else [])]
        self._from_student = [*self._features, *(["logits"] if has_head and (weights.logits or weights.labels) else [])]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted parts, each a mean over the batch."""
        wanted = teacher_outputs(self._teacher, batch.images, self._from_teacher, self._precision)
        given = self._student.model.outputs(batch.images, self._from_student)
        parts: dict[str, Tensor] = {}
        for name in self._features:  # [B, d] or [B, P, d]
            error = relative_error(self._student.map(given[name]), wanted[name], self._energies[name])
            parts[name] = self._weights.features * error
        if "logits" in wanted:
            parts["logits"] = self._weights.logits * divergence(
                given["logits"], wanted["logits"], temperature=self._weights.temperature
            )
        if self._weights.labels:
            if batch.labels is None:
                raise ValueError("this batch has no labels")
            parts["labels"] = self._weights.labels * F.cross_entropy(given["logits"].float(), batch.labels)
        return parts


def teacher_outputs(teacher: ViT, images: Tensor, names: Iterable[str], precision: Precision) -> dict[str, Tensor]:
    """What the teacher says, as constants."""
    with torch.no_grad(), autocast(precision, images.device):
        return teacher.outputs(images, names)


def relative_error(given: Tensor, wanted: Tensor, energy: float) -> Tensor:
    """Mean squared error over all elements, in units of the teacher's energy."""
    return F.mse_loss(given.float(), wanted.float()) / energy


def divergence(given: Tensor, wanted: Tensor, *, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the student's answer from the teacher's, mean over images. Both: logits [B, C]."""
    student = F.log_softmax(given.float() / temperature, dim=-1)
    teacher = F.log_softmax(wanted.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def feature_energies(teacher: ViT, batches: Iterable[Tensor], precision: Precision) -> dict[str, float]:
    """Variance of the teacher's features around their mean over images and patches, averaged over the channels.

    batches: images [B, 3, H, W] on the teacher's device. One number per kind of token that the teacher has.
    """
    names = [name for name in FEATURES if name in teacher.output_names]
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for images in batches:
        for name, features in teacher_outputs(teacher, images, names, precision).items():
            found[name].append(features.flatten(0, -2).double())  # [tokens, D]
    energies = {}
    for name in names:
        tokens = torch.cat(found[name])
        centred = tokens - tokens.mean(dim=0)
        # A teacher that says the same of everything has no energy; then the error itself is the loss.
        energies[name] = float(centred.square().mean()) or 1.0
    return energies
