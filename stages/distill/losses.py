"""How far a student is from its teacher.

Features: mean squared error of class token and patch tokens after the final norm, as DGMR trains (arXiv 2506.08591),
but each divided by the energy of the teacher's: 0 is equal, 1 is as far as always giving the teacher's mean feature.
Undivided, the error's scale is that of the model's final norm, and no weight fits two models.
Blocks: the same of the residual stream behind a block, as the next norm would see it: each token centred and divided by
its deviation. Otherwise a few tokens of huge norm decide; and a stream that dilution doubles stays comparable.
Where the student merges tokens, each is compared with the mean of the teacher's patches that it holds, and counts as
often as there are: the same gradient as if every patch were compared with the token that holds it.
Logits: Kullback-Leibler divergence at a temperature, times its square (https://arxiv.org/abs/1503.02531).

Shapes: B images, P patches, D residual width of the teacher, d of the student, C classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.distill.dilution import Dilution, set_dilution
from stages.distill.teacher import Teacher, at_size
from stages.training.pictures import Batch
from stages.training.precision import Precision, autocast
from stages.vit.model import ViT

PATCHES, SOURCES = "patch_tokens", "patch_sources"
FEATURES = ("class_token", PATCHES)
BLOCK = "block_"
"""what the names of residual streams begin with"""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Of the parts of the loss; a part without weight is not computed."""

    features: float
    logits: float
    labels: float
    temperature: float
    blocks: float = 0.0


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
        self,
        student: Student,
        teacher: Teacher,
        energies: dict[str, float],
        weights: Weights,
        *,
        precision: Precision,
        answers: bool,
        dilution: Dilution | None = None,
    ) -> None:
        """Energies: of each kind of feature that is compared. answers: whether teacher and student have the same ones.

        dilution: of the student's diluting attentions.
        """
        self._student, self._teacher, self._energies = student, teacher, energies
        self._weights, self._precision, self._dilution = weights, precision, dilution
        self._features = [name for name in FEATURES if name in energies and weights.features]
        self._blocks = [name for name in energies if name.startswith(BLOCK) and weights.blocks]
        compared = [*self._features, *self._blocks]
        self._answers = answers
        logits = ["logits"] if answers and weights.logits else []
        self._from_teacher = [*compared, *logits]
        self._from_student = [*compared, *(logits or (["logits"] if weights.labels else []))]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted parts, each a mean over the batch."""
        wanted = teacher_outputs(self._teacher, batch.images, self._from_teacher, self._precision)
        given = self._given(batch, self._from_student)
        parts: dict[str, Tensor] = {}
        errors = self._errors(given, wanted, [*self._features, *self._blocks])
        for name in self._features:
            parts[name] = self._weights.features * errors[name]
        if self._blocks:
            parts["blocks"] = self._weights.blocks * torch.stack([errors[name] for name in self._blocks]).mean()
        if "logits" in wanted:
            parts["logits"] = self._weights.logits * divergence(
                given["logits"], wanted["logits"], temperature=self._weights.temperature
            )
        if self._weights.labels:
            if batch.labels is None:
                raise ValueError("this batch has no labels")
            parts["labels"] = self._weights.labels * F.cross_entropy(given["logits"].float(), batch.labels)
        return parts

    def judge(self, batch: Batch) -> dict[str, Tensor]:
        """Return how far the answers are from the teacher's, or else the features; whatever the weights."""
        names = ["logits"] if self._answers else list(self._energies)
        wanted = teacher_outputs(self._teacher, batch.images, names, self._precision)
        given = self._given(batch, names)
        if self._answers:
            return {"divergence": divergence(given["logits"], wanted["logits"], temperature=1.0)}
        return self._errors(given, wanted, names)

    def _errors(self, given: dict[str, Tensor], wanted: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
        """Relative errors of class token [B, d], patches [B, P, d], residual streams [B, N, d]."""
        errors = {}
        for name in names:
            seen = normal(given[name]) if name.startswith(BLOCK) else self._student.map(given[name])
            if name == PATCHES and SOURCES in given:
                errors[name] = merged_error(seen, wanted[name], given[SOURCES]) / self._energies[name]
            else:
                errors[name] = relative_error(seen, wanted[name], self._energies[name])
        return errors

    def _given(self, batch: Batch, names: Iterable[str]) -> dict[str, Tensor]:
        """What the student says: in the form of this step while it trains, else in that which it will have."""
        if self._dilution is not None:
            set_dilution(self._student.model, self._dilution.at(batch.step) if self._student.training else 0.0)
        names = list(names)
        if PATCHES in names and SOURCES in self._student.model.output_names:
            names.append(SOURCES)
        return self._student.model.outputs(at_size(batch.images, self._student.model.image_size), names)


def teacher_outputs(teacher: Teacher, images: Tensor, names: Iterable[str], precision: Precision) -> dict[str, Tensor]:
    """What the teacher says, as constants; residual streams as the next norm sees them."""
    with torch.no_grad(), autocast(precision, images.device):
        found = teacher.outputs(images, names)
        return {name: normal(one) if name.startswith(BLOCK) else one for name, one in found.items()}


def normal(tokens: Tensor) -> Tensor:
    """Return each token centred and divided by its deviation. tokens: [B, N, D]."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:])


def relative_error(given: Tensor, wanted: Tensor, energy: float) -> Tensor:
    """Mean squared error over all elements, in units of the teacher's energy."""
    return F.mse_loss(given.float(), wanted.float()) / energy


def merged_error(given: Tensor, wanted: Tensor, sources: Tensor) -> Tensor:
    """Mean squared error of merged tokens from the mean of the patches that each holds, weighted by their number.

    given: [B, tokens, D], wanted: [B, P, D], sources: 1 where a token holds a patch, [B, tokens, P].
    """
    sizes = sources.float().sum(dim=-1, keepdim=True)  # [B, tokens, 1]
    means = sources.float() @ wanted.float() / sizes
    return (sizes * (given.float() - means).square()).sum() / wanted.numel()


def divergence(given: Tensor, wanted: Tensor, *, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the student's answer from the teacher's, mean over images. Both: logits [B, C]."""
    student = F.log_softmax(given.float() / temperature, dim=-1)
    teacher = F.log_softmax(wanted.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def feature_energies(
    teacher: Teacher, batches: Iterable[Tensor], precision: Precision, *, names: Iterable[str] = FEATURES
) -> dict[str, float]:
    """Variance of the teacher's features around their mean over images and patches, averaged over the channels.

    batches: images [B, 3, H, W] on the teacher's device. One number per name that the teacher has.
    """
    names = [name for name in names if name in teacher.output_names]
    if not names:
        return {}
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
