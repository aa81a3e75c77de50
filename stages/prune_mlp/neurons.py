"""Neurons of a block's MLP: which to keep, and the block without the others.

Shapes: M neurons (what enters fc2), K of them kept, D residual width.
"""

import torch
from torch import Tensor, nn

from stages.prune_mlp.dgmr import order_by_diversity
from stages.prune_mlp.ols import Order, error_curve, order_by_error
from stages.prune_mlp.options import Method
from stages.vit.model import Block, LayerScale, Mlp
from stages.vit.moments import Moments
from stages.vit.repair import Fit

SELECTION_RIDGE = 1e-4
"""Share of the neurons' mean variance added in the selection: nearly dependent neurons then do not look useful."""


def offers(mlp: Mlp, moments: Moments | None, *, method: Method, count: int) -> Order:
    """Order the neurons; each prefix is an offer, with its error where there are moments. ols needs moments."""
    if moments is None:
        return Order(order_by_diversity(input_rows(mlp), count=count), None)
    gram = moments.gram.clone()
    gram.diagonal().add_(SELECTION_RIDGE * gram.diagonal().mean())
    if method == "ols":
        return order_by_error(gram, moments.cross, energy=moments.energy, count=count)
    picks = order_by_diversity(input_rows(mlp), count=count)
    return Order(picks, error_curve(gram, moments.cross, picks, energy=moments.energy))


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


def refit(block: Block, layer: Fit) -> None:
    """Put a fitted layer in the place of fc2 and LayerScale, whose factors become 1: no division by tiny factors."""
    mlp = mlp_of(block)
    mlp.fc2.weight = nn.Parameter(layer.weight.to(mlp.fc2.weight))
    mlp.fc2.bias = nn.Parameter(layer.bias.to(mlp.fc2.weight))
    if isinstance(block.ls2, LayerScale):
        block.ls2.gamma = nn.Parameter(torch.ones_like(block.ls2.gamma))


def last_layer(block: Block) -> Fit:
    """Return fc2 with LayerScale as one layer, as it is."""
    fc2 = mlp_of(block).fc2
    scale = block.ls2.gamma.double() if isinstance(block.ls2, LayerScale) else 1.0
    weight = (fc2.weight.double().T * scale).T
    bias = weight.new_zeros(len(weight)) if fc2.bias is None else fc2.bias.double() * scale
    return Fit(weight, bias, ridge=0.0)


def add_bias(block: Block) -> None:
    """Give fc2 a bias of zeros where it has none: the repair needs one, and a spec says it for all blocks."""
    if block.mlp is not None and block.mlp.fc2.bias is None:
        block.mlp.fc2.bias = nn.Parameter(torch.zeros_like(block.mlp.fc2.weight[:, 0]))


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
