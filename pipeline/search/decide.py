"""Which shape each block gets: the least loss within the budget, from prices and costs. Pure; milliseconds.

One group per sublayer, one option per shape. With one limit the multiple-choice knapsack is exact; so it is with
several (say latency and parameters) where the best choice for one of them keeps the others, too. Else the limits are
joined into one, weighted (a surrogate constraint, Glover 1975), and the weights moved towards what is violated until
all hold; the best selection that holds all is taken, which need not be the best there is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.search.knapsack import Knapsack, Option
from pipeline.search.latency import LatencyTable
from stages.offers.record import Offers, Sublayer
from stages.prune.options import BlockShape, with_shapes
from stages.vit.counts import attention_macs, count_macs, count_params, mlp_macs
from stages.vit.spec import BlockSpec, ViTSpec

Becomes = Callable[[ViTSpec], ViTSpec]
TURNS = 24
"""knapsacks that are solved for several limits, at most"""


@dataclass(frozen=True)
class Priced:
    """A sublayer's options with their losses and, by limit, their costs."""

    sublayer: Sublayer
    shapes: tuple[tuple[int, ...], ...]
    losses: tuple[float, ...]
    costs: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Allocation:
    """A shape for every block."""

    shapes: tuple[BlockShape, ...]
    loss: float
    """sum of the losses offered"""
    costs: Mapping[str, float]
    """by limit, without what no shape changes"""
    exact: bool = True
    """whether no other choice within the limits loses less, up to the rounding of costs (`knapsack.UNITS`)"""


class Allocator:
    """Prices and costs of one model on one target; answers for any budget."""

    def __init__(
        self, spec: ViTSpec, offers: Offers, table: LatencyTable, becomes: Becomes = lambda spec: spec
    ) -> None:
        """becomes: what merging and later steps make of a pruned spec; parameters and MACs are counted of that."""
        self.spec, self.table = spec, table
        finished = becomes(spec)
        self.groups = [_priced(one, spec, table, becomes, finished) for one in offers.sublayers]
        unpruned = {"latency": table.share(spec), "parameters": count_params(finished), "macs": count_macs(finished)}
        self.fixed = {
            name: total - sum(group.costs[name][-1] for group in self.groups) for name, total in unpruned.items()
        }
        """what no choice changes, by limit"""

    def cheapest(self, name: str) -> float:
        """Smallest total that any choice can have."""
        return self.fixed[name] + sum(min(group.costs[name]) for group in self.groups)

    def solve(self, limits: Mapping[str, float]) -> Allocation | None:
        """Return the choice of least loss whose totals are within the limits, by name; None where none is."""
        rooms = {name: limit - self.fixed[name] for name, limit in limits.items()}
        if any(room < 0 for room in rooms.values()):
            return None
        loose = {name for name, room in rooms.items() if room >= sum(max(one.costs[name]) for one in self.groups)}
        binding = [name for name in rooms if name not in loose]
        if not binding:
            return self._allocation([len(group.shapes) - 1 for group in self.groups])
        for name in binding:
            found = self._knapsack({name: 1.0}).solve(rooms[name])
            if found is None:
                return None
            one = self._allocation(found.picks)
            if all(one.costs[other] <= rooms[other] * (1 + 1e-9) for other in binding if other != name):
                return one
        joined = self._surrogate({name: rooms[name] for name in binding})
        return None if joined is None else replace(joined, exact=False)

    def frontier(self, name: str, *, points: int = 60) -> tuple[Allocation, ...]:
        """Return the whole trade between one total and the loss, from the cheapest to the unpruned model."""
        return tuple(self._allocation(one.picks) for one in self._knapsack({name: 1.0}).frontier(points=points))

    def uniform(self, *, shares: Sequence[float] = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)) -> list[Allocation]:
        """Return the same share of every MLP and of every head, by the same prices: what papers do."""
        found = []
        for share in shares:
            picks = [
                min(
                    range(len(group.shapes)),
                    key=lambda index, group=group: (
                        sum(  # type: ignore[misc]
                            abs(one - share * most)
                            for one, most in zip(group.shapes[index][-2:], group.shapes[-1][-2:], strict=True)
                        )
                        + 1000 * (group.shapes[index][0] < group.shapes[-1][0] and len(group.shapes[index]) > 1)
                    ),
                )
                for group in self.groups
            ]
            found.append(self._allocation(picks))
        return found

    def _surrogate(self, rooms: Mapping[str, float]) -> Allocation | None:
        names = list(rooms)
        weights = np.ones(len(names)) / len(names)
        best: Allocation | None = None
        for turn in range(TURNS):
            scaled = {name: weight / rooms[name] for name, weight in zip(names, weights, strict=True)}
            found = self._knapsack(scaled).solve(float(weights.sum()))
            if found is None:
                return best
            one = self._allocation(found.picks)
            used = np.array([one.costs[name] / rooms[name] for name in names])
            if (used <= 1 + 1e-9).all() and (best is None or one.loss < best.loss):
                best = one
            step = 0.5 / (1 + turn) ** 0.5
            weights = np.maximum(weights * np.exp(step * (used - used.mean()) / max(np.ptp(used), 1e-6)), 1e-6)
            weights /= weights.sum()
        return best or self._each_alone(rooms)

    def _each_alone(self, rooms: Mapping[str, float]) -> Allocation | None:
        """Shrink all limits together until one alone keeps them all: the last resort."""
        for shrink in np.linspace(1, 0, 101)[:-1]:
            for name in rooms:
                found = self._knapsack({name: 1.0}).solve(rooms[name] * shrink)
                one = self._allocation(found.picks) if found else None
                if one and all(one.costs[other] <= room * (1 + 1e-9) for other, room in rooms.items()):
                    return one
        return None

    def _knapsack(self, weights: Mapping[str, float]) -> Knapsack:
        return Knapsack([_options(group, weights) for group in self.groups])

    def _allocation(self, picks: Sequence[int]) -> Allocation:
        shapes = [BlockShape.of(block).model_dump() for block in self.spec.blocks]
        loss, costs = 0.0, dict.fromkeys(self.fixed, 0.0)
        for group, pick in zip(self.groups, picks, strict=True):
            shape = group.shapes[pick]
            names = ("mlp_width",) if group.sublayer.part == "mlp" else ("heads", "d_qk", "d_v")
            shapes[group.sublayer.block].update(zip(names, shape, strict=True))
            loss += group.losses[pick]
            costs = {name: cost + group.costs[name][pick] for name, cost in costs.items()}
        return Allocation(tuple(BlockShape(**shape) for shape in shapes), loss, costs)

    def total(self, allocation: Allocation, name: str) -> float:
        """Total of a choice, with what no choice changes."""
        return self.fixed[name] + allocation.costs[name]

    def spec_of(self, allocation: Allocation) -> ViTSpec:
        """The model's spec with these shapes."""
        return with_shapes(self.spec, allocation.shapes)


def _priced(sublayer: Sublayer, spec: ViTSpec, table: LatencyTable, becomes: Becomes, finished: ViTSpec) -> Priced:
    shapes = tuple(offer.shape for offer in sublayer.offers)
    index = sublayer.block
    block = spec.blocks[index]
    count = (
        _counting(finished, index) if _counts_apart(spec, finished, index) else _counting_whole(spec, index, becomes)
    )
    costs: dict[str, list[float]] = {"latency": [], "parameters": [], "macs": []}
    for shape in shapes:
        if sublayer.part == "mlp":
            one = block.replace(mlp=shape[0] > 0, mlp_width=shape[0])
            costs["latency"].append(table.mlp_share(shape[0]))
        else:
            heads, d_qk, d_v = shape
            one = block.replace(attention=block.attention if heads else "off", heads=heads, d_qk=d_qk, d_v=d_v)
            costs["latency"].append(table.attention_share((heads, d_qk, d_v)))
        params, macs = count(one)
        costs["parameters"].append(params)
        costs["macs"].append(macs)
    return Priced(
        sublayer, shapes, tuple(offer.loss for offer in sublayer.offers), {name: tuple(c) for name, c in costs.items()}
    )


def _counts_apart(spec: ViTSpec, finished: ViTSpec, index: int) -> bool:
    """Whether a block is counted by itself: later steps leave its shape, and it merges no tokens by its keys."""
    same = len(spec.blocks) == len(finished.blocks) and spec.blocks[index] == finished.blocks[index]
    return same and not (finished.merge and finished.merge[index])


def _counting(finished: ViTSpec, index: int) -> Callable[[BlockSpec], tuple[int, int]]:
    """Count parameters and MACs of a block in its place."""
    before, between = finished.tokens_in(index), finished.tokens_in(index + 1)
    apart = finished.replace(merge=())

    def count(block: BlockSpec) -> tuple[int, int]:
        macs = attention_macs(finished, block, tokens=before) + mlp_macs(finished, block, tokens=between)
        return count_params(apart.replace(blocks=(block,))), macs

    return count


def _counting_whole(spec: ViTSpec, index: int, becomes: Becomes) -> Callable[[BlockSpec], tuple[int, int]]:
    """Count the finished model with a block in its place."""

    def count(block: BlockSpec) -> tuple[int, int]:
        whole = becomes(spec.replace(blocks=(*spec.blocks[:index], block, *spec.blocks[index + 1 :])))
        return count_params(whole), count_macs(whole)

    return count


def _options(group: Priced, weights: Mapping[str, float]) -> list[Option]:
    return [
        Option(sum(weight * group.costs[name][index] for name, weight in weights.items()), loss)
        for index, loss in enumerate(group.losses)
    ]
