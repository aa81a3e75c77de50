"""Second moments of what enters and what should leave a linear layer: all that its closed-form fit needs.

Chunks of tokens are centred and multiplied in their own precision (fp32), then joined in float64 by the pairwise update
of Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing sample variances", 1979).

Shapes: n tokens of a chunk, M inputs (the hidden vector that enters fc2), D targets.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

STRIPS = 4
"""A Gram matrix is symmetric: computed in so many strips, only 5/8 of it needs multiplying."""


@dataclass
class Moments:
    """Sums over weighted tokens, float64, centred at the weighted means."""

    tokens: int
    weight: float
    mean_in: Tensor
    """[M]"""
    mean_out: Tensor
    """[D]"""
    gram: Tensor
    """[M, M], inputs with inputs"""
    cross: Tensor
    """[D, M], targets with inputs"""
    energy: float
    """targets with themselves, summed over D"""

    @classmethod
    def of(cls, inputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> "Moments":
        """Moments of one chunk: inputs [n, M], targets [n, D], weights [n] (all 1 by default)."""
        if weights is None:
            weights = inputs.new_ones(len(inputs))
        total = float(weights.sum(dtype=torch.float64))
        share, root = weights / total, weights.sqrt()[:, None]
        mean_in, mean_out = share @ inputs, share @ targets
        # In place: a second buffer of this size costs more time than the multiplication.
        inputs, targets = (inputs - mean_in).mul_(root), (targets - mean_out).mul_(root)
        return cls(
            tokens=len(inputs),
            weight=total,
            mean_in=mean_in.double(),
            mean_out=mean_out.double(),
            gram=_gram(inputs).double(),
            cross=(targets.T @ inputs).double(),
            energy=float(targets.square().sum(dtype=torch.float64)),
        )

    def absorb(self, other: "Moments") -> "Moments":
        """Add the moments of other tokens to these, in place; returns these."""
        weight = self.weight + other.weight
        step_in, step_out = other.mean_in - self.mean_in, other.mean_out - self.mean_out
        between = self.weight * other.weight / weight
        self.gram.add_(other.gram).addr_(step_in, step_in, alpha=between)
        self.cross.add_(other.cross).addr_(step_out, step_in, alpha=between)
        self.energy += other.energy + between * float(step_out @ step_out)
        self.mean_in += step_in * (other.weight / weight)
        self.mean_out += step_out * (other.weight / weight)
        self.tokens += other.tokens
        self.weight = weight
        return self


def _gram(rows: Tensor) -> Tensor:
    """Transposed rows times rows, [n, M] -> [M, M], without computing the lower half twice."""
    width = rows.shape[1]
    gram = rows.new_empty(width, width)
    edges = [width * strip // STRIPS for strip in range(STRIPS + 1)]
    for start, end in pairwise(edges):
        gram[start:end, start:] = rows[:, start:end].T @ rows[:, start:]
        gram[end:, start:end] = gram[start:end, end:].T
    return gram
