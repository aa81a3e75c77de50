"""Diversity-guided MLP reduction (DGMR): the arithmetic, without models or data.

Greedy pivoted Gram-Schmidt on the neurons' input weights: always take the row farthest from the span of those taken.
That is QR with column pivoting of the transposed weight (Businger and Golub 1965); LAPACK's blocked `geqp3` does it.

Paper: Shen et al., "Diversity-Guided MLP Reduction for Efficient Large Vision Transformers", arXiv 2506.08591.
Shapes: M neurons, D inputs of each, K neurons kept.
"""

import numpy as np
import torch
from scipy.linalg import qr
from torch import Tensor

NEGLIGIBLE = 1e-9
"""Relative to the longest row: what is left of a row below this is rounding, not direction."""


def order_by_diversity(rows: Tensor, *, count: int) -> Tensor:
    """Pick the rows that span the most, most important first: indices [K], each prefix a smaller answer.

    rows: [M, D], one per neuron. At most D rows span the space; the search then starts again with the original rows of
    the neurons not taken, as in the paper for r > 1. Where the rank is lower than D, it starts again earlier.
    """
    width = len(rows)
    if not 0 < count <= width:
        raise ValueError(f"count must be in 1..{width} (the MLP width), got {count}")

    left = np.arange(width)
    weights = rows.detach().cpu().double().numpy()
    picks: list[int] = []
    while len(picks) < count:
        triangle, pivots = qr(weights[left].T, mode="r", pivoting=True)
        lengths = np.abs(np.diagonal(triangle))  # of each row's residual, when it was taken
        rank = int(np.sum(lengths > NEGLIGIBLE * lengths[0]))
        best = left[pivots[:rank]] if rank else left  # only zero rows are left: any order will do
        picks.extend(best.tolist())
        left = np.setdiff1d(left, best)
    return torch.tensor(picks[:count], device=rows.device)
