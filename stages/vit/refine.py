"""Refinement: one sublayer is trained by itself, towards the stream of the source behind it.

The closed-form repair moves only a sublayer's last layer. Here its other layers follow, by Adam on the same squared
error with the same weights of tokens; no gradient passes through another block. What BRECQ does for rounding (Li et
al., ICLR 2021, https://arxiv.org/abs/2102.05426), for pruning.

The result is dropped only where the error rose, as with a learning rate too high. To drop it also where the error on
images held out was larger was tried, and made the whole model worse on images that no block had seen.

Shapes: S samples of a chunk (images or tokens), D residual width.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from stages.vit.sweep import Visit

JUDGED = 5
"""One image in so many tells the error before and after."""

Samples = tuple[Tensor, Tensor, Tensor]
"""What enters the sublayer [S, ..., D], what it should add, weights of its tokens [S, ...]."""


def refine_alone(
    parameters: Sequence[nn.Parameter],
    branch: Callable[[Tensor], Tensor],
    samples: Callable[[int], Iterator[Samples]],
    *,
    together: int,
    passes: int,
    lr: float,
    seed: int,
) -> dict[str, float]:
    """Train a sublayer in place, or leave it as it is where training does not help.

    branch: from what enters it to what it adds. samples(every): chunks of one image in `every`. together: samples of a
    step. lr: peak, falling to 0 as a cosine. seed: of the order of samples. Returns the relative error before and
    after, on one image in JUDGED.
    """
    kept = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    order = torch.Generator().manual_seed(seed)
    before, chunks = _error(branch, samples)
    for turn in range(passes):
        for index, chunk in enumerate(samples(1)):
            drawn = torch.randperm(len(chunk[0]), generator=order).to(chunk[0].device)
            batches = drawn.chunk(math.ceil(len(drawn) / together))
            for step, some in enumerate(batches):
                done = (turn + (index + step / len(batches)) / chunks) / passes
                optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * done))
                with torch.enable_grad():
                    for parameter in parameters:
                        parameter.requires_grad_(True)
                    missed, energy = _missed(branch, *(part[some] for part in chunk))
                    slopes = torch.autograd.grad(missed / energy, parameters)
                for parameter, slope in zip(parameters, slopes, strict=True):
                    parameter.grad = slope
                optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    after, _ = _error(branch, samples)
    if not after < before:  # also where it is no number
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.data.copy_(value)
    return {"error_before": before, "error_after": after}


def aims(visit: Visit, whole: Callable[[Tensor], Tensor], *, take_back: float, every: int) -> Iterator[Samples]:
    """Yield what enters a sublayer [B, N, D], what it should add, and weights [B, N], of one image in `every`.

    whole: the source's sublayer, from the stream before it to that behind it. take_back: share of the error of the
    blocks before that this one is to take back.
    """
    for chunk in visit.pairs():
        entering, leaving, weights = (part[::every] for part in chunk)
        yield entering, take_back * leaving + (1 - take_back) * whole(entering) - entering, weights


def _missed(
    branch: Callable[[Tensor], Tensor], entering: Tensor, wanted: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted squared error of what the sublayer adds, and weighted energy of what it should add."""
    weight = weights[..., None]
    return ((branch(entering) - wanted) ** 2 * weight).sum(), (wanted**2 * weight).sum()


def _error(branch: Callable[[Tensor], Tensor], samples: Callable[[int], Iterator[Samples]]) -> tuple[float, int]:
    """Relative error, and the number of chunks."""
    sums = [torch.stack(_missed(branch, *chunk)) for chunk in samples(JUDGED)]
    missed, energy = torch.stack(sums).double().sum(dim=0).tolist()
    return (float(missed / energy) if energy else 0.0), len(sums)
