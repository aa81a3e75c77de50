"""Fade attention out while the student learns to do without it.

NOSE (Lin et al., CVPR 2024, https://arxiv.org/abs/2404.05657): x <- (2 - dilution) x + dilution * attention(x), the
dilution falling from 1 to 0. The dilution of a step depends on nothing but its number, so a resumed run is the same.
"""

import math
from dataclasses import dataclass
from typing import Literal

from stages.vit.model import Block, ViT

Shape = Literal["linear", "cosine"]


@dataclass(frozen=True)
class Dilution:
    """A schedule from 1 at the first step to 0 at step `steps` and after."""

    shape: Shape
    steps: int

    def at(self, step: int) -> float:
        """Return the dilution of a step, counted from 0."""
        left = max(0.0, 1.0 - step / self.steps)
        return left if self.shape == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))


def set_dilution(model: ViT, value: float) -> None:
    """Give every diluting attention of a model this dilution."""
    for block in model.blocks:
        if isinstance(block, Block) and block.attention == "diluting":
            block.dilution = value


def diluting_blocks(model: ViT) -> list[int]:
    """Return the blocks whose attention is to fade out."""
    return [
        index for index, block in enumerate(model.blocks) if isinstance(block, Block) and block.attention == "diluting"
    ]
