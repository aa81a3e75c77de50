"""MLPs cut by the rules of papers that no stage offers: to compare with, on the same model and images.

CORP (arXiv 2602.05243): neurons by energy times active rate, fc2 not looked at; the rest makes up for what goes by an
affine map of what goes from what stays. SNP (arXiv 2404.11630): neurons by how unlike their input weights are to those
of all others, nothing makes up.

Shapes: n tokens, M neurons, K of them kept, D residual width.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor

from stages.prune_attention.scores import value_diversity
from stages.prune_mlp.neurons import apply, mlp_of
from stages.vit.last_layer import last_layer, put_last_layer
from stages.vit.model import ViT
from stages.vit.moments import Moments
from stages.vit.repair import Fit
from stages.vit.spec import ViTSpec
from stages.vit.sweep import Part, Visit, sweep

ACTIVE = 0.01
"""of the layer's root mean square: what is above counts as active"""
SMALLEST_RIDGE = 1e-3
"""of the mean variance of the neurons kept"""


def corp_mlps(model: ViT, spec: ViTSpec, keep: float, batches: Sequence[Tensor]) -> tuple[ViT, ViTSpec]:
    """Cut every MLP to a share as CORP does, on the streams of the source."""
    changed = deepcopy(model)

    def cut(visit: Visit) -> None:
        width = mlp_of(visit.block).fc2.in_features
        energy = _mean(visit, lambda hidden: hidden.square())
        least = ACTIVE * energy.mean().sqrt()
        active = _mean(visit, lambda hidden: (hidden.abs() > least).double())
        order = (energy * active).argsort(descending=True, stable=True)
        kept, gone = order[: round(keep * width)], order[round(keep * width) :]
        layer, (moments, _) = last_layer(visit.block, Part.MLP), visit.moments()
        apply(visit.block, kept)
        put_last_layer(visit.block, Part.MLP, _compensated(layer, moments, kept, gone))

    sweep(model, changed, batches, {Part.MLP: cut}, sequential=False)
    return changed, _narrower(spec, keep)


def snp_mlps(model: ViT, spec: ViTSpec, keep: float) -> tuple[ViT, ViTSpec]:
    """Cut every MLP to a share as SNP does, on weights alone."""
    changed = deepcopy(model)
    for block in changed.blocks:
        weight = mlp_of(block).fc1.weight.detach().double()
        order = value_diversity(weight[None])[0].argsort(descending=True, stable=True)
        apply(block, order[: round(keep * len(weight))].sort().values)
    return changed, _narrower(spec, keep)


def _mean(visit: Visit, of: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean over all tokens of what is made of what enters fc2, [n, M]: [M]."""
    tokens, total = 0, torch.zeros(mlp_of(visit.block).fc2.in_features, dtype=torch.float64)
    for x in visit.inputs():
        hidden = visit.block.mlp_hidden(x).flatten(0, 1).double()
        tokens, total = tokens + len(hidden), total + of(hidden).sum(dim=0)
    return total / tokens


def _compensated(layer: Fit, moments: Moments, kept: Tensor, gone: Tensor) -> Fit:
    """fc2 of the neurons kept, with the best affine guess of what the others gave."""
    covariance = moments.gram / moments.weight
    own = covariance[kept][:, kept]
    ridge = max(SMALLEST_RIDGE, _shrinkage(own, moments.tokens)) * own.diagonal().mean()
    guess = torch.linalg.solve(own + ridge * torch.eye(len(kept)).to(own), covariance[kept][:, gone]).T  # [M - K, K]
    offset = moments.mean_in[gone] - guess @ moments.mean_in[kept]
    lost = layer.weight[:, gone]
    return Fit(layer.weight[:, kept] + lost @ guess, layer.bias + lost @ offset, ridge=float(ridge))


def _shrinkage(covariance: Tensor, samples: int) -> float:
    """Oracle approximating shrinkage of a covariance (Chen, Wiesel, Eldar and Hero 2010, equation 23)."""
    width, square, trace = len(covariance), float(covariance.square().sum()), float(covariance.trace())
    above = (1 - 2 / width) * square + trace**2
    below = (samples + 1 - 2 / width) * (square - trace**2 / width)
    return min(1.0, above / below) if below > 0 else 1.0


def _narrower(spec: ViTSpec, keep: float) -> ViTSpec:
    blocks = tuple(block.replace(mlp_width=round(keep * block.mlp_width)) for block in spec.blocks)
    return spec.replace(blocks=blocks)
