"""Refinement: a pruned MLP is trained by itself, towards the stream of the source behind it.

The closed-form repair moves only fc2. Here fc1 follows, by Adam on the same squared error with the same weights of
tokens; no gradient passes through another block, so a pass over the images costs about three forward passes through
the MLPs alone. What BRECQ does for rounding (Li et al., ICLR 2021, https://arxiv.org/abs/2102.05426), for pruning.

The result stays only where it is better on images that were not trained on.
"""

import math
from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor

from stages.prune_mlp.neurons import mlp_of
from stages.vit.model import Block
from stages.vit.sweep import HELD_OUT, Visit

TOKENS = 1024
"""of a step"""


def refine(visit: Visit, *, passes: int, lr: float) -> dict[str, float]:
    """Train the MLP of the visited block in place; returns its relative error on held-out images before and after.

    lr: peak, falling to 0 as a cosine. Of few images (a single chunk) all are both trained on and held out.
    """
    block = visit.block
    chunks = sum(1 for _ in visit.pairs())
    held_out = chunks // HELD_OUT or (1 if chunks > 1 else 0)
    before = _error(block, islice(visit.pairs(), chunks - held_out if held_out else 0, None))
    parameters = list(mlp_of(block).parameters())
    kept = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    batches = [_batches(pair[0]) for pair in islice(visit.pairs(), chunks - held_out)]
    steps, step = passes * sum(batches), 0
    order = torch.Generator().manual_seed(visit.index)
    with torch.enable_grad():
        for parameter in parameters:
            parameter.requires_grad_(True)
        for _ in range(passes):
            for entering, leaving, weights in islice(visit.pairs(), chunks - held_out):
                tokens = [entering.flatten(0, 1), leaving.flatten(0, 1), weights.flatten()]
                drawn = torch.randperm(len(tokens[0]), generator=order).to(entering.device)
                for some in drawn.chunk(_batches(entering)):
                    optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
                    missed, energy = _missed(block, *(part[some] for part in tokens))
                    slopes = torch.autograd.grad(missed / energy, parameters)
                    for parameter, slope in zip(parameters, slopes, strict=True):
                        parameter.grad = slope
                    optimizer.step()
                    step += 1
        for parameter in parameters:
            parameter.grad = None
    after = _error(block, islice(visit.pairs(), chunks - held_out if held_out else 0, None))
    if not after < before:  # also where it is no number
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    return {"error_before": before, "error_after": after}


def _batches(entering: Tensor) -> int:
    """Steps that the tokens of a chunk [B, N, D] are good for."""
    return math.ceil(entering.shape[0] * entering.shape[1] / TOKENS)


def _missed(block: Block, entering: Tensor, leaving: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted squared error of what the MLP adds, and weighted energy of what it should add."""
    wanted = leaving - entering  # [..., D]
    given = block.after_mlp(entering) - entering
    weight = weights[..., None]
    return ((given - wanted) ** 2 * weight).mean(), (wanted**2 * weight).mean()


def _error(block: Block, pairs: Iterable[tuple[Tensor, Tensor, Tensor]]) -> float:
    with torch.no_grad():
        sums = [torch.stack(_missed(block, *pair)) for pair in pairs]
    missed, energy = torch.stack(sums).double().mean(dim=0).tolist()
    return float(missed / energy) if energy else 0.0
