"""Closed-form repair: the linear layer that best makes up the targets from the inputs that are left.

    min over W, b of  E |t - W h_S - b|^2 + ridge * |W|^2,  ridge in units of the mean variance of the inputs h_S

Its error is known exactly, also on tokens that were not fitted: the moments of those are all it takes.
Related: ThiNet (2017), ID pruning (Chee et al., NeurIPS 2022), CORP (https://arxiv.org/abs/2602.05243).

Shapes: M inputs, K of them kept, D targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.vit.moments import Moments

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Fit:
    """A linear layer from the kept inputs to the targets, float64."""

    weight: Tensor
    """[D, K]"""
    bias: Tensor
    """[D]"""
    ridge: float


def fit(moments: Moments, kept: Tensor, *, ridge: float) -> Fit:
    """Solve for the inputs `kept`, indices [K]. ridge: relative to the mean variance of the kept inputs."""
    gram = moments.gram[kept][:, kept]
    cross = moments.cross[:, kept]
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    weight = _solve(gram, cross.T).T
    return Fit(weight, moments.mean_out - weight @ moments.mean_in[kept], ridge)


def lean(moments: Moments, layer: Fit, *, share: float) -> Moments:
    """Return the moments for other targets: `share` of those seen, the rest what `layer` makes of all inputs."""
    rest = 1 - share
    given = layer.weight @ moments.gram  # [D, M], what the layer gives, with the inputs
    return replace(
        moments,
        mean_out=share * moments.mean_out + rest * (layer.weight @ moments.mean_in + layer.bias),
        cross=share * moments.cross + rest * given,
        energy=share**2 * moments.energy
        + 2 * share * rest * float((layer.weight * moments.cross).sum())
        + rest**2 * float((layer.weight * given).sum()),
    )


def relative_error(moments: Moments, kept: Tensor, layer: Fit) -> float:
    """Squared error of a layer over the variance of the targets, on the tokens of `moments`; a constant has 1."""
    weight = layer.weight
    offset = moments.mean_out - weight @ moments.mean_in[kept] - layer.bias
    missed = (
        moments.energy
        - 2 * float((weight * moments.cross[:, kept]).sum())
        + float(((weight @ moments.gram[kept][:, kept]) * weight).sum())
        + moments.weight * float(offset @ offset)
    )
    return max(missed, 0.0) / moments.energy if moments.energy > 0 else 0.0


def best_ridge(fitted: Moments, held_out: Moments, kept: Tensor, *, ridges: Sequence[float] = RIDGES) -> float:
    """Return the ridge whose fit on `fitted` has the smallest error on `held_out`."""
    return min(ridges, key=lambda ridge: relative_error(held_out, kept, fit(fitted, kept, ridge=ridge)))


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    """Solve gram @ x = right for a symmetric gram; the least-norm answer where it is singular."""
    triangle, failed = torch.linalg.cholesky_ex(gram)
    if not failed:
        return torch.cholesky_solve(right, triangle)
    values, vectors = torch.linalg.eigh(gram)
    inverse = torch.where(values > 1e-12 * values[-1].clamp(min=1e-300), 1 / values, 0.0)
    least_norm: Tensor = vectors @ (inverse[:, None] * (vectors.T @ right))
    return least_norm
