"""The layer with which a sublayer writes into the residual stream: proj or fc2, with LayerScale as a part of it.

Shapes: K inputs, D residual width (or what the layer leaves, before a post-norm).
"""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from stages.vit.model import Block, LayerScale, ViT
from stages.vit.repair import Fit
from stages.vit.spec import ViTSpec
from stages.vit.sweep import Part
from stages.vit.writers import Writer


def last_layer(block: Block, part: Part) -> Fit:
    """Return the layer and LayerScale as one, as they are."""
    linear, scale = _pair(block, part)
    factors = scale.gamma.detach().double() if isinstance(scale, LayerScale) else linear.weight.new_ones(1).double()
    bias = torch.zeros_like(linear.weight[:, 0]) if linear.bias is None else linear.bias
    return Fit(linear.weight.detach().double() * factors[:, None], bias.detach().double() * factors, ridge=0.0)


def put_last_layer(block: Block, part: Part, layer: Fit) -> None:
    """Put a layer in the place of both, in place; LayerScale's factors become 1: no division by tiny ones."""
    linear, scale = _pair(block, part)
    put_weights(linear, layer.weight, layer.bias)
    if isinstance(scale, LayerScale):
        scale.gamma = nn.Parameter(torch.ones_like(scale.gamma))


def put_weights(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer other weights [D, K] and another bias [D] or none, in place."""
    like = linear.weight
    linear.weight, linear.in_features = nn.Parameter(weight.to(like).contiguous()), weight.shape[1]
    linear.register_parameter("bias", None if bias is None else nn.Parameter(bias.to(like)))


def give_bias(block: Block, part: Part) -> None:
    """Give the layer a bias of zeros where it has none: a repair needs one, and a spec says it for all blocks.

    A block without this sublayer stays as it is.
    """
    if (block.attn if part is Part.ATTENTION else block.mlp) is not None:
        linear, _ = _pair(block, part)
        if linear.bias is None:
            linear.bias = nn.Parameter(torch.zeros_like(linear.weight[:, 0]))


def give_biases(model: ViT, spec: ViTSpec) -> None:
    """Add biases of zeros, in place, where the spec has them and the model has not."""
    for block in cast("list[Block]", list(model.blocks)):
        for part, wanted in ((Part.ATTENTION, spec.proj_bias), (Part.MLP, spec.fc2_bias)):
            if wanted:
                give_bias(block, part)
    patches = model.patch_embed.proj
    if spec.patch_bias and patches.bias is None:
        patches.bias = nn.Parameter(patches.weight.new_zeros(len(patches.weight)))


def add_before(model: ViT, writer: tuple[Writer, int], constant: Tensor) -> None:
    """Add a vector [D] to the stream, in place, through what writes there last (`writer_before`); it has a bias."""
    kind, index = writer
    if kind in ("proj", "fc2"):
        block, part = cast(Block, model.blocks[index]), Part.ATTENTION if kind == "proj" else Part.MLP
        layer = last_layer(block, part)
        put_last_layer(block, part, replace(layer, bias=layer.bias + constant.to(layer.bias)))
        return
    with torch.no_grad():
        if kind == "norm_pre":
            cast(nn.LayerNorm, model.norm_pre).bias.add_(constant)
        elif kind == "pos_embed":
            cast(nn.Parameter, model.pos_embed).add_(constant)
        else:
            cast(Tensor, model.patch_embed.proj.bias).add_(constant)
            for token in (model.cls_token, model.reg_token):
                if token is not None:
                    token.add_(constant)


def _pair(block: Block, part: Part) -> tuple[nn.Linear, nn.Module]:
    if part is Part.ATTENTION:
        if block.attn is None:
            raise ValueError("this block has no attention")
        return block.attn.proj, block.ls1
    if block.mlp is None:
        raise ValueError("this block has no MLP")
    return block.mlp.fc2, block.ls2
