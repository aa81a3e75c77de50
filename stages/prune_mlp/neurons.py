"""Neurons of a block's MLP: which to keep, and the block without the others.

Shapes: M neurons (what enters fc2), K of them kept, D residual width.
"""

import torch
from torch import Tensor, nn

from stages.prune_mlp.dgmr import order_by_diversity
from stages.prune_mlp.ols import Order, error_curve, order_by_error
from stages.prune_mlp.options import PruneMlpOptions
from stages.prune_mlp.similarity import ALIKE, cut, groups_at, medoids, similarity, tree_of
from stages.vit.last_layer import last_layer
from stages.vit.model import Block, Mlp
from stages.vit.moments import Moments
from stages.vit.sweep import Part

SELECTION_RIDGE = 1e-4
"""Share of the neurons' mean variance added in the selection: nearly dependent neurons then do not look useful."""


def offers(
    block: Block, moments: Moments | None, options: PruneMlpOptions, *, count: int | None, seed: int = 0
) -> Order:
    """Order the neurons; each prefix is an offer, with its error where there are moments.

    count: how many to order; None where a threshold decides. seed: of the method random.
    """
    mlp = mlp_of(block)
    if options.method == "similarity":
        return _groups(block, _needed(moments), options, count=count)
    count = mlp.fc2.in_features if count is None else count
    if options.method == "ols":
        seen = _needed(moments)
        return order_by_error(_with_ridge(seen), seen.cross, energy=seen.energy, count=count)
    if options.method == "dgmr":
        picks = order_by_diversity(input_rows(mlp), count=count)
    elif options.method == "random":
        draw = torch.Generator().manual_seed(seed)
        picks = torch.randperm(mlp.fc2.in_features, generator=draw)[:count].to(mlp.fc2.weight.device)
    elif options.method == "l2":
        picks = _largest(input_rows(mlp).double().norm(dim=1), count)
    else:
        picks = _largest(energies(block, _needed(moments), centred=options.repair != "none"), count)
    return Order(picks, None if moments is None else _errors(moments, picks))


def energies(block: Block, moments: Moments, *, centred: bool = True) -> Tensor:
    """Energy that each neuron gives to what leaves fc2, [M]: of its activation, times the squared length of its column.

    centred: its variance, because what a neuron gives to every token alike, the bias of a fitted fc2 can say (as FLAP,
    AAAI 2024). Otherwise its power, mean included (as CORP, arXiv 2602.05243).
    """
    power = moments.gram.diagonal()
    if not centred:
        power = power + moments.weight * moments.mean_in.square()
    energy: Tensor = power * last_layer(block, Part.MLP).weight.square().sum(dim=0)
    return energy


def _groups(block: Block, moments: Moments, options: PruneMlpOptions, *, count: int | None) -> Order:
    """Order the medoids of groups of similar neurons by energy. No prefix of them is meant to be taken alone."""
    alike = similarity(moments, measure=options.measure)
    tree = tree_of(alike)
    if count is None:
        count = options.rounded_up(groups_at(tree, options.threshold or ALIKE), width=len(alike))
    power = energies(block, moments)
    groups = cut(tree, count)
    picks = medoids(alike, groups, power)
    return Order(picks, _errors(moments, picks), groups.to(picks.device))


def _largest(scores: Tensor, count: int) -> Tensor:
    return scores.argsort(descending=True, stable=True)[:count]


def _needed(moments: Moments | None) -> Moments:
    if moments is None:
        raise ValueError("this method reads activations; give moments")
    return moments


def _with_ridge(moments: Moments) -> Tensor:
    gram = moments.gram.clone()
    gram.diagonal().add_(SELECTION_RIDGE * gram.diagonal().mean())
    return gram


def _errors(moments: Moments, picks: Tensor) -> Tensor:
    return error_curve(_with_ridge(moments), moments.cross, picks, energy=moments.energy)


def apply(block: Block, kept: Tensor) -> None:
    """Take all other neurons out of a block's MLP, in place. kept: indices [K]; their weights stay as they are."""
    mlp = mlp_of(block)
    for layer, rows in _input_layers(mlp, kept):
        layer.weight, layer.out_features = nn.Parameter(layer.weight[rows]), len(rows)
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias[rows])
    if isinstance(mlp.norm, nn.LayerNorm | nn.RMSNorm):
        mlp.norm.normalized_shape = (len(kept),)
        for name, values in list(mlp.norm.named_parameters()):
            setattr(mlp.norm, name, nn.Parameter(values[kept]))
    mlp.fc2.weight, mlp.fc2.in_features = nn.Parameter(mlp.fc2.weight[:, kept]), len(kept)


def mlp_of(block: Block) -> Mlp:
    """Return the MLP of a block that has one."""
    if block.mlp is None:
        raise ValueError("this block has no MLP")
    return block.mlp


def input_rows(mlp: Mlp) -> Tensor:
    """Input weights of each neuron, one row per neuron: [M, D], of gated MLPs [M, 2D].

    DGMR's paper has no rule for gated MLPs and its code no branch for them. A gated neuron is a product of two linear
    maps of its input and redundant only if both of them are: so both rows, side by side, count in one distance.
    """
    width = mlp.fc2.in_features
    weights = [layer.weight for layer, _ in _input_layers(mlp, torch.arange(width))]
    return torch.cat([half for weight in weights for half in torch.split(weight, width)], dim=1)


def _input_layers(mlp: Mlp, neurons: Tensor) -> list[tuple[nn.Linear, Tensor]]:
    """Return the layers before the activation, each with the rows that belong to these neurons."""
    if mlp.kind == "swiglu":
        return [(mlp.fc1_g, neurons), (mlp.fc1_x, neurons)]
    if mlp.kind == "glu":  # packed: all rows of one half, then all of the other
        return [(mlp.fc1, torch.cat([neurons, neurons + mlp.fc2.in_features]))]
    return [(mlp.fc1, neurons)]
