"""How far a changed model's answers are from the source's: the one unit of value.

A change is made in one sublayer; the images go on from there through the rest of the source model.

Shapes: n images, B of a chunk, N tokens, D residual width, C classes or features.
"""

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.vit.merging import MergeState
from stages.vit.model import Block, ViT
from stages.vit.sweep import Part

Sublayer = Callable[[Tensor], Tensor]
"""residual stream before a sublayer -> behind it, [B, N, D] both"""


class Judge:
    """Knows the source's answers to some images, and tells how far others are from them.

    The images stand as streams before one sublayer, and are moved on by `advance`.
    """

    def __init__(self, model: ViT, embedded: Sequence[Tensor]) -> None:
        """embedded: chunks [B, N, D] of what enters the first block."""
        self.model, self.blocks = model, cast("list[Block]", list(model.blocks))
        self.streams = list(embedded)
        self.images = sum(len(chunk) for chunk in embedded)
        self.has_head = bool(model.spec["classes"])
        self._wanted = [self._answers(chunk, start=0) for chunk in self.streams]
        energy = torch.cat(self._wanted)
        self._energy = float((energy - energy.mean(dim=0)).square().sum()) or 1.0

    @property
    def unit(self) -> Literal["kl_nats", "feature_error"]:
        """Unit of `loss`."""
        return "kl_nats" if self.has_head else "feature_error"

    @torch.no_grad()
    def loss_of(self, model: ViT, embedded: Sequence[Tensor]) -> float:
        """Return the loss of another model's answers; embedded: what enters its first block, of the same images."""
        missed = 0.0
        for chunk, wanted in zip(embedded, self._wanted, strict=True):
            state = MergeState()
            for block in model.blocks:
                chunk = block(chunk, state)
            answers: Tensor = model.finish(chunk, state.sizes).double()
            missed += self._missed(F.log_softmax(answers, dim=-1) if self.has_head else answers, wanted)
        return missed / self.images if self.has_head else missed / self._energy

    @torch.no_grad()
    def loss(self, index: int, part: Part, sublayer: Sublayer) -> float:
        """Return the loss with another sublayer in the place of this one, before which the streams stand."""
        missed = 0.0
        for chunk, wanted in zip(self.streams, self._wanted, strict=True):
            x = sublayer(chunk)
            if part is Part.ATTENTION:
                x = self.blocks[index].after_mlp(x)
            missed += self._missed(self._answers(x, start=index + 1), wanted)
        return missed / self.images if self.has_head else missed / self._energy

    def advance(self, index: int, part: Part) -> None:
        """Move the streams behind a sublayer."""
        self.streams = behind(self.blocks[index], part, self.streams)

    @torch.no_grad()
    def _answers(self, x: Tensor, *, start: int) -> Tensor:
        for block in self.blocks[start:]:
            x = block(x)
        answers: Tensor = self.model.finish(x).double()
        return F.log_softmax(answers, dim=-1) if self.has_head else answers

    def _missed(self, answers: Tensor, wanted: Tensor) -> float:
        if self.has_head:
            return float(F.kl_div(answers, wanted, reduction="sum", log_target=True))
        return float((answers - wanted).square().sum())


@torch.no_grad()
def behind(block: Block, part: Part, streams: Sequence[Tensor]) -> list[Tensor]:
    """Return the streams behind a sublayer: chunks [B, N, D]."""
    move = block.after_attention if part is Part.ATTENTION else block.after_mlp
    return [move(chunk) for chunk in streams]
