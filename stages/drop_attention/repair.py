"""Make up for what is removed: its mean goes into a bias before it, and the MLPs behind it are fitted again.

Shapes: D residual width, M inputs of fc2.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from stages.drop_attention.options import writer_before
from stages.vit.merging import MergeState
from stages.vit.model import Attention, Block, LayerScale, Mlp, ViT
from stages.vit.repair import Fit, best_ridge, fit, lean, relative_error
from stages.vit.spec import ViTSpec
from stages.vit.sweep import Part, Visit
from targets.errors import InputError

TOKENS_PER_NEURON = 10
"""With fewer calibration tokens for each neuron, the fit begins to follow them instead of what they stand for."""


class Constant(nn.Module):
    """Stands in the place of an attention or MLP for as long as a sweep lasts, and adds one vector to every token."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value  # [D]

    def hidden(self, x: Tensor, state: MergeState | None = None) -> Tensor:
        """Return x itself: [B, N, D]."""
        return x

    def proj(self, hidden: Tensor) -> Tensor:
        """Return the vector for every token: [B, N, D]."""
        return self.value.expand_as(hidden)

    fc2 = proj


def remove(visit: Visit, *, by_mean: bool) -> None:
    """Take the visited sublayer out of its block; by_mean: leave a Constant that adds what it added on average."""
    mean = visit.moments()[0].mean_out.to(next(visit.source.parameters())) if by_mean else None
    put_constant(visit.block, visit.part, mean)


def put_constant(block: Block, part: Part, value: Tensor | None) -> None:
    """Put a Constant in the place of a sublayer, in place; None: nothing stays of it. value: [D]."""
    stand_in = None if value is None else Constant(value)
    norm = None if value is None else nn.Identity()
    if part is Part.ATTENTION:
        block.attn, block.norm1, block.ls1 = cast(Attention | None, stand_in), norm, nn.Identity()
        block.attention = "off" if value is None else "on"
    else:
        block.mlp, block.norm2, block.ls2 = cast(Mlp | None, stand_in), norm, nn.Identity()


def settle_constants(model: ViT, spec: ViTSpec) -> None:
    """Move the vector of every Constant into the bias that last writes into the stream before it, in place.

    spec: of the model without what was removed. Exact: nothing reads the stream between that bias and the Constant.
    """
    for index, block in enumerate(cast("list[Block]", list(model.blocks))):
        for part, layer in ((Part.ATTENTION, block.attn), (Part.MLP, block.mlp)):
            if isinstance(layer, Constant):
                _add_before(model, spec, index, layer.value)
                put_constant(block, part, None)


def refit_mlp(visit: Visit, *, take_back: float) -> dict[str, Any]:
    """Fit the visited fc2 again to what should be in the stream behind it, in place, and return facts.

    take_back: share of the error of everything before that it is to take back.
    """
    block = visit.block
    layer = last_layer(block)
    fitted, held_out = visit.moments(hold_out=True)
    tokens, neurons = fitted.tokens + (held_out.tokens if held_out else 0), layer.weight.shape[1]
    if tokens < neurons:
        raise InputError(
            f"{tokens} tokens of calibration images cannot describe {neurons} neurons; give more images of fit: "
            f"{TOKENS_PER_NEURON} tokens per neuron are a good measure"
        )
    fitted = lean(fitted, layer, share=take_back)
    held_out = None if held_out is None else lean(held_out, layer, share=take_back)
    kept = torch.arange(neurons, device=fitted.gram.device)
    ridge = best_ridge(fitted, held_out or fitted, kept)
    moments = fitted if held_out is None else fitted.absorb(held_out)
    before = relative_error(moments, kept, layer)
    layer = fit(moments, kept, ridge=ridge)
    put_last_layer(block, layer)
    error = relative_error(moments, kept, layer)
    facts = {"tokens": tokens, "neurons": neurons, "ridge": ridge}
    return {**facts, "relative_error_before": before, "relative_error": error}


def last_layer(block: Block) -> Fit:
    """Return fc2 with LayerScale as one layer."""
    if block.mlp is None:
        raise ValueError("this block has no MLP")
    fc2 = block.mlp.fc2
    scale = block.ls2.gamma.double() if isinstance(block.ls2, LayerScale) else fc2.weight.new_ones(1).double()
    bias = torch.zeros_like(fc2.weight[:, 0]) if fc2.bias is None else fc2.bias
    return Fit(fc2.weight.detach().double() * scale[:, None], bias.detach().double() * scale, ridge=0.0)


def put_last_layer(block: Block, layer: Fit) -> None:
    """Put a layer in the place of fc2 and LayerScale, whose factors become 1: no division by tiny factors."""
    if block.mlp is None:
        raise ValueError("this block has no MLP")
    _put(block.mlp.fc2, block.ls2, layer.weight, layer.bias)


def give_biases(model: ViT, spec: ViTSpec) -> None:
    """Add biases of zeros, in place, where the spec has them and the model has not."""
    blocks = cast("list[Block]", list(model.blocks))
    wanted: list[tuple[bool, Sequence[nn.Module | None]]] = [
        (spec.fc2_bias, [block.mlp and block.mlp.fc2 for block in blocks]),
        (spec.proj_bias, [block.attn and block.attn.proj for block in blocks]),
        (spec.patch_bias, [model.patch_embed.proj]),
    ]
    for has_bias, layers in wanted:
        for layer in layers:
            if has_bias and isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is None:
                layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))


def _add_before(model: ViT, spec: ViTSpec, index: int, value: Tensor) -> None:
    """Add a vector [D] to the stream before a block, in place, through the bias that writes there last."""
    found = writer_before(spec, index)
    if found is None:
        raise ValueError("no bias writes into the stream before this block")
    writer, earlier = found
    if writer in ("fc2", "proj"):
        block = cast(Block, model.blocks[earlier])
        layer, scale = (
            (cast(Mlp, block.mlp).fc2, block.ls2) if writer == "fc2" else (cast(Attention, block.attn).proj, block.ls1)
        )
        gamma = scale.gamma.double() if isinstance(scale, LayerScale) else value.new_ones(1).double()
        weight, bias = layer.weight.double() * gamma[:, None], cast(Tensor, layer.bias).double() * gamma
        _put(layer, scale, weight, bias + value)
    elif writer == "norm_pre":
        cast(nn.LayerNorm, model.norm_pre).bias.data += value
    elif writer == "pos_embed":
        cast(nn.Parameter, model.pos_embed).data += value
    else:
        cast(Tensor, model.patch_embed.proj.bias).data += value
        for token in (model.cls_token, model.reg_token):
            if token is not None:
                token.data += value


def _put(linear: nn.Linear, scale: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Put weights and bias in place of a layer and the LayerScale behind it."""
    linear.weight, linear.bias = (
        nn.Parameter(weight.detach().to(linear.weight)),
        nn.Parameter(bias.detach().to(linear.weight)),
    )
    if isinstance(scale, LayerScale):
        scale.gamma = nn.Parameter(torch.ones_like(scale.gamma))
