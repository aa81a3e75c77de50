"""Refinement: a pruned attention is trained by itself, towards the stream of the source behind it.

The closed-form repair moves only proj. Here q, k and v follow, by Adam on the same squared error with the same weights
of tokens; no gradient passes through another block. What BRECQ does for rounding (Li et al., ICLR 2021,
https://arxiv.org/abs/2102.05426), for pruning. The result is dropped where the error rose, as with a learning rate too
high.

Shapes: B images of a step, N tokens of each, D residual width.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from stages.prune_attention.weights import attention_of
from stages.vit.model import Block
from stages.vit.sweep import Visit

IMAGES = 8
"""of a step"""
JUDGED = 5
"""One image in so many tells the error before and after."""

Images = tuple[Tensor, Tensor, Tensor]
"""What enters the attention [B, N, D], what it should add [B, N, D], weights [B, N]."""


def refine(visit: Visit, *, passes: int, lr: float, take_back: float) -> dict[str, float]:
    """Train the attention of the visited block in place, or leave it as it is where training does not help.

    lr: peak, falling to 0 as a cosine. take_back: share of the error of the blocks before that this one is to take
    back. Returns the relative error before and after, on one image in JUDGED.
    """
    block = visit.block
    parameters = list(attention_of(block).parameters())
    kept = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    order = torch.Generator().manual_seed(visit.index)
    chunks = sum(1 for _ in visit.pairs())
    before = _error(visit, take_back=take_back)
    for turn in range(passes):
        for index, chunk in enumerate(_images(visit, take_back=take_back)):
            steps = torch.split(torch.randperm(len(chunk[0]), generator=order), IMAGES)
            for step, some in enumerate(steps):
                done = (turn + (index + step / len(steps)) / chunks) / passes
                optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * done))
                few = some.to(chunk[0].device)
                with torch.enable_grad():
                    for parameter in parameters:
                        parameter.requires_grad_(True)
                    missed, energy = _missed(block, *(part[few] for part in chunk))
                    slopes = torch.autograd.grad(missed / energy, parameters)
                for parameter, slope in zip(parameters, slopes, strict=True):
                    parameter.grad = slope
                optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    after = _error(visit, take_back=take_back)
    if not after < before:  # also where it is no number
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.data.copy_(value)
    return {"error_before": before, "error_after": after}


def _images(visit: Visit, *, take_back: float, every: int = 1) -> Iterator[Images]:
    """Yield one image in `every`, chunk by chunk."""
    for chunk in visit.pairs():
        entering, leaving, weights = (part[::every] for part in chunk)
        given = visit.source.after_attention(entering)
        yield entering, take_back * leaving + (1 - take_back) * given - entering, weights


def _missed(block: Block, entering: Tensor, wanted: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted squared error of what the attention adds, and weighted energy of what it should add."""
    weight = weights[..., None]
    return ((block.attention_branch(entering) - wanted) ** 2 * weight).sum(), (wanted**2 * weight).sum()


def _error(visit: Visit, *, take_back: float) -> float:
    sums = [torch.stack(_missed(visit.block, *few)) for few in _images(visit, take_back=take_back, every=JUDGED)]
    missed, energy = torch.stack(sums).double().sum(dim=0).tolist()
    return float(missed / energy) if energy else 0.0
