"""Orthogonal least squares: order neurons by how much error of the layer behind them each one takes away.

Forward selection for several outputs (Chen, Cowan and Grant, "Orthogonal least squares learning algorithm for radial
basis function networks", 1991): given the neurons taken, every other neuron j would lower the squared error of the best
linear fit of the targets by gain_j = |c_j|^2 / g_jj, where g is the covariance of what the neurons taken cannot explain
and c_j the covariance of neuron j with the targets in it. Take the largest, deflate, repeat.

With n = c^T c only two symmetric matrices are left, and the targets' width D drops out of the loop:

    l = g[:, p] / sqrt(g_pp)    w = n[:, p] / sqrt(g_pp) - gain_p / 2 * l    g <- g - l l^T    n <- n - w l^T - l w^T

The updates of BATCH steps are applied together, as matrix products. Everything is float64.

Shapes: M neurons, D targets, K neurons ordered.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BATCH = 64
NEGLIGIBLE = 1e-10
"""Share of a neuron's variance below which the neurons taken explain it up to rounding."""


@dataclass(frozen=True)
class Order:
    """Neurons, most useful first. Each prefix is an offer: `picks[:k]` leaves the squared error `errors[k]`."""

    picks: Tensor
    """[K] indices"""
    errors: Tensor | None
    """[K + 1], float64, falling; errors[0] is the energy of the targets; None where no data were seen"""
    groups: Tensor | None = None
    """[M]: which of the picks stands for each neuron, where the method says so"""


def order_by_error(gram: Tensor, cross: Tensor, *, energy: float, count: int | None = None) -> Order:
    """Order neurons by forward selection.

    gram: [M, M] second moments of the neurons, cross: [D, M] of targets with neurons, energy: of the targets, all three
    centred where the fit has a bias, and with the same weights. A ridge is what the caller adds to gram's diagonal.
    count: how many to order; all by default.
    """
    width = len(gram)
    count = width if count is None else count
    if not 0 < count <= width:
        raise ValueError(f"count must be in 1..{width} (the MLP width), got {count}")

    gram = gram.to(torch.float64, copy=True)
    known = cross.T.double() @ cross.double()  # [M, M], n in the formulas
    negligible = NEGLIGIBLE * gram.diagonal()
    taken = torch.zeros(width, dtype=torch.bool, device=gram.device)
    picks: list[int] = []
    gains: list[float] = []
    while len(picks) < count:
        steps = min(BATCH, count - len(picks))
        l = gram.new_zeros(width, steps)  # noqa: E741 - the letter of the formula
        w = gram.new_zeros(width, steps)
        variance, power = gram.diagonal().clone(), known.diagonal().clone()
        for step in range(steps):
            gain = torch.where(variance > negligible, power / variance, 0.0).masked_fill(taken, -torch.inf)
            pick = int(gain.argmax())
            picks.append(pick)
            taken[pick] = True
            gains.append(max(float(gain[pick]), 0.0))
            if gains[-1] == 0.0:  # explained by those before it, or of no use: nothing to deflate
                continue
            root = variance[pick].sqrt()
            now, ago = l[pick, :step], w[pick, :step]
            l[:, step] = (gram[pick] - l[:, :step] @ now) / root
            w[:, step] = (known[pick] - w[:, :step] @ now - l[:, :step] @ ago) / root - gains[-1] / 2 * l[:, step]
            variance -= l[:, step] ** 2
            power -= 2 * w[:, step] * l[:, step]
        gram.addmm_(l, l.T, alpha=-1)
        known.addmm_(w, l.T, alpha=-1).addmm_(l, w.T, alpha=-1)
    return Order(torch.tensor(picks, device=gram.device), _errors(gram.new_tensor(gains), energy))


def error_curve(gram: Tensor, cross: Tensor, picks: Tensor, *, energy: float) -> Tensor:
    """Squared error that each prefix of an order leaves: [K + 1]; the same arguments as `order_by_error`."""
    kept = gram[picks][:, picks].double()
    triangle = torch.linalg.cholesky(kept + NEGLIGIBLE * torch.diag(kept.diagonal()))
    gains = torch.linalg.solve_triangular(triangle, cross[:, picks].double().T, upper=False).square().sum(dim=1)
    return _errors(gains, energy)


def _errors(gains: Tensor, energy: float) -> Tensor:
    """What is left of the energy after each gain, and before the first: [K] -> [K + 1]."""
    return (energy - torch.cat([gains.new_zeros(1), gains.cumsum(0)])).clamp(min=0)
