"""A sublayer that goes altogether. What it added on average stays, as a bias of the layer that wrote before it.

Nothing reads the stream between that layer and the sublayer but what goes, so the constant may be added there: exact.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stages.prune_attention import weights as attention_weights
from stages.prune_mlp import neurons
from stages.vit.model import Block
from stages.vit.sweep import Part


def remove(block: Block, part: Part) -> None:
    """Take a sublayer out of a block, in place."""
    if part is Part.ATTENTION:
        block.attention, block.attn, block.norm1 = "off", None, None
        if hasattr(block, "ls1"):
            del block.ls1
    else:
        block.mlp, block.norm2 = None, None
        if hasattr(block, "ls2"):
            del block.ls2


def writer_before(blocks: Sequence[Block], index: int, part: Part) -> tuple[int, Part] | None:
    """Return the sublayer that last wrote into the stream before this one; None where none is left."""
    places = [(at, one) for at in range(len(blocks)) for one in Part]
    for at, one in reversed(places[: places.index((index, part))]):
        if (blocks[at].attn if one is Part.ATTENTION else blocks[at].mlp) is not None:
            return at, one
    return None


def add_constant(block: Block, part: Part, constant: Tensor) -> None:
    """Add a vector [D] to what a sublayer writes into the stream, in place: LayerScale is folded, a bias made."""
    if part is Part.ATTENTION:
        attention_weights.add_bias(block)
        attention_weights.refit(block, attention_weights.last_layer(block))
        bias = attention_weights.attention_of(block).proj.bias
    else:
        neurons.add_bias(block)
        neurons.refit(block, neurons.last_layer(block))
        bias = neurons.mlp_of(block).fc2.bias
    assert isinstance(bias, nn.Parameter)
    with torch.no_grad():
        bias.add_(constant.to(bias))
