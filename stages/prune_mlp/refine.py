"""Refinement: a pruned MLP is trained by itself, towards the stream of the source behind it.

The closed-form repair moves only fc2. Here fc1 follows, by Adam on the same squared error with the same weights of
tokens; no gradient passes through another block, so a pass over the images costs about three forward passes through
the pruned MLPs and one through the source's. What BRECQ does for rounding (Li et al., ICLR 2021,
https://arxiv.org/abs/2102.05426), for pruning.

The result is dropped only where the error rose, as with a learning rate too high. To drop it also where the error on
images held out was larger was tried, and made the whole model worse on images that no block had seen.

Shapes: B images of a chunk, N tokens of each, T tokens together, D residual width.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stages.prune_mlp.neurons import mlp_of
from stages.vit.model import Block
from stages.vit.sweep import Visit

TOKENS = 1024
"""of a step"""
JUDGED = 5
"""One image in so many tells the error before and after."""

Tokens = tuple[Tensor, Tensor, Tensor]
"""What enters the MLP [T, D], what it should add [T, D], weights [T]."""


def refine(visit: Visit, *, passes: int, lr: float, take_back: float) -> dict[str, float]:
    """Train the MLP of the visited block in place, or leave it as it is where training does not help.

    lr: peak, falling to 0 as a cosine. take_back: share of the error of the blocks before that this one is to take
    back. Returns the relative error before and after, on one image in JUDGED.
    """
    block = visit.block
    parameters = list(mlp_of(block).parameters())
    kept = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    order = torch.Generator().manual_seed(visit.index)
    chunks = sum(1 for _ in visit.pairs())
    before = _error(visit, take_back=take_back)
    for turn in range(passes):
        for index, tokens in enumerate(_tokens(visit, take_back=take_back)):
            drawn = torch.randperm(len(tokens[0]), generator=order).to(tokens[0].device)
            batches = drawn.chunk(math.ceil(len(drawn) / TOKENS))
            for step, some in enumerate(batches):
                done = (turn + (index + step / len(batches)) / chunks) / passes
                optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * done))
                slopes = _slopes(block, parameters, tokens, some)
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


def _tokens(visit: Visit, *, take_back: float, every: int = 1) -> Iterator[Tokens]:
    """Yield the tokens of one image in `every`, chunk by chunk."""
    for chunk in visit.pairs():
        entering, leaving, weights = (part[::every] for part in chunk)
        given = visit.source.after_mlp(entering)
        wanted = take_back * leaving + (1 - take_back) * given - entering  # [B, N, D]
        yield entering.flatten(0, 1), wanted.flatten(0, 1), weights.flatten()


def _slopes(block: Block, parameters: Sequence[Tensor], tokens: Tokens, some: Tensor) -> tuple[Tensor, ...]:
    """Return the gradient of the relative error of some tokens; some: indices."""
    with torch.enable_grad():
        for parameter in parameters:
            parameter.requires_grad_(True)
        missed, energy = _missed(block, *(part[some] for part in tokens))
        return torch.autograd.grad(missed / energy, parameters)


def _missed(block: Block, entering: Tensor, wanted: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted squared error of what the MLP adds, and weighted energy of what it should add."""
    weight = weights[:, None]
    return ((block.mlp_branch(entering) - wanted) ** 2 * weight).sum(), (wanted**2 * weight).sum()


def _error(visit: Visit, *, take_back: float) -> float:
    sums = [torch.stack(_missed(visit.block, *tokens)) for tokens in _tokens(visit, take_back=take_back, every=JUDGED)]
    missed, energy = torch.stack(sums).double().sum(dim=0).tolist()
    return float(missed / energy) if energy else 0.0
