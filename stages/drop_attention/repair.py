"""Make up for what is removed: its mean goes into a bias before it; stages/vit/refit.py fits the MLPs behind it.

Shapes: D residual width.
"""

from typing import cast

from torch import Tensor, nn

from stages.vit.last_layer import add_before
from stages.vit.merging import MergeState
from stages.vit.model import Attention, Block, Mlp, ViT
from stages.vit.spec import ViTSpec
from stages.vit.sweep import Part, Visit
from stages.vit.writers import writer_before


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
                writer = writer_before(spec, index)
                if writer is None:
                    raise ValueError("no bias writes into the stream before this block")
                add_before(model, writer, layer.value)
                put_constant(block, part, None)
