"""The exact multiple-choice knapsack: one option per group, least loss within a cost.

A table of the least loss for every whole number of cost units is filled group by group; costs are rounded up to units,
so a budget is never exceeded, and the answer is exact but for that rounding. It stands in for the integer program of
MDP (CVPR 2025, https://arxiv.org/abs/2504.02168), which separates into groups once the residual width is fixed. Method:
Kellerer, Pferschy and Pisinger, "Knapsack Problems" (2004), chapter 11.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNITS = 8192
"""steps between nothing and the dearest choice of all groups"""


@dataclass(frozen=True)
class Option:
    """One choice of a group."""

    cost: float
    """in any unit, 0 or more"""
    loss: float
    """in any unit; may be negative"""


@dataclass(frozen=True)
class Selection:
    """One option per group."""

    picks: tuple[int, ...]
    """index of the option taken in each group"""
    cost: float
    """sum of the options' own costs, not rounded"""
    loss: float


class Knapsack:
    """All answers for one set of groups: filled once, read for any budget."""

    def __init__(self, groups: Sequence[Sequence[Option]], *, units: int = UNITS) -> None:
        """Raises ValueError for a group without options and for costs that are no numbers of 0 or more."""
        for index, group in enumerate(groups):
            if not group:
                raise ValueError(f"group {index} has no options")
            if not all(np.isfinite((one.cost, one.loss)).all() and one.cost >= 0 for one in group):
                raise ValueError(f"group {index} has an option whose cost or loss is no finite number, or below 0")
        self._groups = [tuple(group) for group in groups]
        self.cheapest = float(sum(min(one.cost for one in group) for group in groups))
        self.dearest = float(sum(max(one.cost for one in group) for group in groups))
        self._unit = (self.dearest - self.cheapest) / units or 1.0
        self._useful = [_undominated(group) for group in self._groups]
        # Costs beyond the group's cheapest, so that what must be paid anyway is not rounded.
        self._floors = [min(one.cost for one in group) for group in self._groups]
        self._steps = [
            [self._up(one.cost - floor) for one in group]
            for group, floor in zip(self._groups, self._floors, strict=True)
        ]
        width = sum(max(steps) for steps in self._steps) + 1
        self._fill(width)

    def _up(self, cost: float) -> int:
        """Round up to units; what is a whole number of them up to rounding stays that."""
        return int(np.ceil(cost / self._unit - 1e-9))

    def _fill(self, width: int) -> None:
        losses: NDArray[np.float64] = np.zeros(width)
        self._taken: list[NDArray[np.int32]] = []
        for group, steps, useful in zip(self._groups, self._steps, self._useful, strict=True):
            best = np.full(width, np.inf)
            taken = np.zeros(width, dtype=np.int32)
            for index in useful:
                step = steps[index]
                reached = losses[: width - step] + group[index].loss
                better = reached < best[step:]
                best[step:][better] = reached[better]
                taken[step:][better] = index
            losses = best
            self._taken.append(taken)
        self._losses = losses

    def solve(self, budget: float) -> Selection | None:
        """Return the selection of least loss whose cost is within the budget; None where even the cheapest is not."""
        if budget < self.cheapest and not np.isclose(budget, self.cheapest, rtol=1e-12, atol=0):
            return None
        last = len(self._losses) - 1
        at = last
        if budget < self.dearest:  # beyond it the table's last cell, which the rounding up has moved a little
            at = int(np.floor(np.clip((budget - self.cheapest) / self._unit + 1e-9, 0, last)))
        # Every group's cost is rounded up, so a cell a few steps on may hold choices that cost no more than the budget.
        for beyond in range(min(len(self._groups), last - at), 0, -1):
            one = self._selection(self._picks(at + beyond))
            if one.cost <= budget * (1 + 1e-12):
                return one
        return self._selection(self._picks(at))

    def frontier(self, *, points: int = 100) -> tuple[Selection, ...]:
        """Return selections from the cheapest to the dearest, each with less loss than the one before."""
        found: list[Selection] = []
        for budget in np.linspace(self.cheapest, self.dearest, points):
            one = self.solve(float(budget))
            if one is not None and (not found or one.loss < found[-1].loss):
                found.append(one)
        return tuple(found)

    def _picks(self, at: int) -> tuple[int, ...]:
        picks = []
        for steps, taken in zip(reversed(self._steps), reversed(self._taken), strict=True):
            pick = int(taken[at])
            picks.append(pick)
            at -= steps[pick]
        return tuple(reversed(picks))

    def _selection(self, picks: tuple[int, ...]) -> Selection:
        taken = [group[pick] for group, pick in zip(self._groups, picks, strict=True)]
        return Selection(picks, float(sum(one.cost for one in taken)), float(sum(one.loss for one in taken)))


def _undominated(group: Sequence[Option]) -> list[int]:
    """Return the options that no other beats in both cost and loss, by rising cost."""
    found: list[int] = []
    for index in sorted(range(len(group)), key=lambda index: (group[index].cost, group[index].loss)):
        if not found or group[index].loss < group[found[-1]].loss:
            found.append(index)
    return found
