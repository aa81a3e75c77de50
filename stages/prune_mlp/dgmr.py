"""Diversity-guided MLP reduction (DGMR): the arithmetic, without models or data.

Greedy pivoted Gram-Schmidt on the neurons' input weights: always take the row farthest from the span of those taken.
That is QR with column pivoting of the transposed weight (Businger and Golub 1965). A row's distance needs the rows
taken before it, so LAPACK's `geqp3` reads the whole matrix once per pick. Here only the longest rows are looked at:

    distances only shrink, so a row that was shorter than the best of these candidates when the block of picks began
    cannot be the next pick; where the best candidate is no longer longer than all others were, the block ends,
    and all rows are brought up to date by one block of Householder reflections (matrix products).

The picks are those of the plain loop; what is saved is reading memory. All in float64: a Gram matrix, or float32, gives
other picks, because the square of the condition number, or rounding, decides between the last rows.

Paper: Shen et al., "Diversity-Guided MLP Reduction for Efficient Large Vision Transformers", arXiv 2506.08591.
Shapes: M neurons, D inputs of each, K neurons kept, C candidates, P picks of a block.
"""

import torch
from torch import Tensor

NEGLIGIBLE = 1e-9
"""Relative to the longest row: what is left of a row below this is rounding, not direction."""
CANDIDATES = 1024
PICKS = 64
"""of a block, at most"""
STALE = 1e-3
"""Share of a row's squared length below which its downdated length is computed anew."""


def order_by_diversity(rows: Tensor, *, count: int) -> Tensor:
    """Pick the rows that span the most, most important first: indices [K], each prefix a smaller answer.

    rows: [M, D], one per neuron. At most D rows span the space; the search then starts again with the original rows of
    the neurons not taken, as in the paper for r > 1. Where the rank is lower than D, it starts again earlier.
    """
    width = len(rows)
    if not 0 < count <= width:
        raise ValueError(f"count must be in 1..{width} (the MLP width), got {count}")

    left = torch.arange(width, device=rows.device)
    picks: list[int] = []
    while len(picks) < count:
        found = _one_round(rows.detach()[left].double(), count=count - len(picks))
        if not found:  # only zero rows are left: any order will do
            found = list(range(count - len(picks)))
        picks.extend(left[found].tolist())
        others = torch.ones(len(left), dtype=torch.bool, device=left.device)
        others[found] = False
        left = left[others]
    return torch.tensor(picks, device=rows.device)


def _one_round(rows: Tensor, *, count: int) -> list[int]:
    """Pick until so many are found or none adds a direction. rows: [M, D], float64, overwritten."""
    width, depth = rows.shape
    negligible = 0.0
    picks: list[int] = []
    rest = rows  # in the coordinates that the picks leave free
    while len(picks) < min(count, depth):
        lengths = rest.square().sum(dim=1)  # of rows taken: rounding, far below what is negligible
        if not picks:
            negligible = NEGLIGIBLE**2 * float(lengths.max())
        order = lengths.argsort(descending=True, stable=True)
        among = order[:CANDIDATES].sort().values
        beaten = float(lengths[order[CANDIDATES]]) if width > CANDIDATES else -1.0
        steps = min(PICKS, count - len(picks), rest.shape[1])
        chosen, basis = _block(rest[among], lengths[among], steps=steps, beaten=beaten, negligible=negligible)
        if not chosen:
            break
        picks.extend(among[chosen].tolist())
        rest = _without(rest, basis)
    return picks


def _block(
    candidates: Tensor, lengths: Tensor, *, steps: int, beaten: float, negligible: float
) -> tuple[list[int], Tensor]:
    """Pick among candidates [C, D] as long as the best is the best of all rows: places and directions [P, D].

    lengths: squared, [C]. beaten: of the longest row that is no candidate.
    """
    lengths, start = lengths.clone(), lengths
    basis = candidates.new_empty(steps, candidates.shape[1])
    along = candidates.new_empty(steps, len(candidates))
    chosen: list[int] = []
    for step in range(steps):
        best = int(lengths.argmax())
        length = float(lengths[best])
        if length <= negligible or (step and (length <= beaten or length <= STALE * float(start[best]))):
            break
        direction = candidates[best] - along[:step, best] @ basis[:step]
        basis[step] = direction / direction.norm()
        along[step] = candidates @ basis[step]
        lengths -= along[step].square()
        lengths[best] = -1.0
        chosen.append(best)
    return chosen, basis[: len(chosen)]


def _without(rows: Tensor, basis: Tensor) -> Tensor:
    """Return the rows' coordinates in the complement of a basis [P, D], computed in place: a view [M, D - P].

    Householder reflections that turn the basis into the first P axes, applied as I - Y T Y^T
    (Schreiber and Van Loan, 1989).
    """
    packed, factors = torch.geqrf(basis.T.contiguous())
    y = packed.tril(-1)
    y.diagonal().fill_(1.0)
    # 0: nothing to reflect. Any factor will do there, because it only touches an axis that is left out.
    factors = factors.masked_fill(factors == 0, 1.0)
    t = torch.linalg.inv((y.T @ y).triu(1) + torch.diag(1 / factors))
    rows.addmm_(rows @ (y @ t), y.T, alpha=-1)
    return rows[:, len(basis) :]
