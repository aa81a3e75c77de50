"""A sublayer that goes altogether."""

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
