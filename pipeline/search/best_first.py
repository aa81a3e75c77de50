"""Best first: what promises the least loss goes on, until nothing promises less than what was reached. Pure.

A ground that is priced promises its first choice; a size or width that was only looked at promises what the prices of
the model as it comes make of it. Neither is certain: whole models that are timed raise the loss of a ground, so another
one that promised a little more may win in the end.
"""

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from pipeline.search.decide import Allocation
from pipeline.search.grounds import Glimpse, Tried
from pipeline.search.record import Round

Waiting = tuple[float, int, Tried | Glimpse]
"""loss promised, order of arrival, ground"""


@dataclass(frozen=True, kw_only=True)
class Reached:
    """The best choice on one ground, after its rounds."""

    ground: Tried
    best: Allocation
    rounds: tuple[Round, ...]
    kept: bool
    """whether it is known to keep the limits; else the corrected table says so"""

    @property
    def loss(self) -> float:
        """Predicted, altogether."""
        return self.ground.loss + self.best.loss


@dataclass(kw_only=True)
class Pursuit:
    """Which grounds are priced and which get rounds."""

    price: Callable[[Glimpse, float | None], Sequence[Tried]]
    """prices a size or width, with the least loss known within the limits: its grounds"""
    go: Callable[[Tried], Reached | None]
    """the rounds of a ground; None where no shapes keep the limits after all"""
    priced: int
    """at most so many sizes and widths are priced; one that fits whole needs no prices and does not count"""
    tried: list[Tried] = field(default_factory=list)
    reached: list[Reached] = field(default_factory=list)
    left: list[Glimpse] = field(default_factory=list)
    """only looked at"""
    whole: dict[int, Glimpse] = field(default_factory=dict)
    """by the id of its ground: what was taken with nothing pruned"""
    order: Iterator[int] = field(default_factory=itertools.count)

    def run(self, grounds: Sequence[Tried], glimpses: Sequence[Glimpse]) -> Reached | None:
        """Return the best of what was reached. None: nothing keeps the limits, as far as they were priced."""
        queue: list[Waiting] = []
        self.left = list(glimpses)
        self._add(queue, grounds)
        for one in glimpses:
            self._push(queue, one.promise, one)
        if not queue and glimpses:
            # Nothing keeps the limits: the fastest is priced, to say how far it would have come.
            self._push(queue, 0.0, min(glimpses, key=lambda one: one.ratio or 1.0))
        most, turns = self.priced, self.priced + 1
        replaced: list[Tried] = []
        while queue:
            promise, _, item = heapq.heappop(queue)
            if self.least is not None and promise >= self.least:
                break
            if isinstance(item, Tried):
                found = self.go(item) if turns > 0 else None
                turns -= 1
                if found is not None:
                    self.reached.append(found)
                glimpse = self.whole.get(id(item))
                if glimpse is not None and turns > 0 and not (found and found.kept):
                    # With nothing pruned it is a little too slow after all: prices say what little has to go.
                    self._push(queue, glimpse.promise, replace(glimpse, fits=False))
            elif item.fits or most:
                most -= 0 if item.fits else 1
                self.left = [one for one in self.left if one.model is not item.model]
                priced = self.price(item, self.least)
                if item.fits:
                    self.whole |= {id(one): item for one in priced}
                else:  # its prices stand in the place of what was taken whole
                    replaced += [one for one in self.tried if self._is_of(one, item)]
                self._add(queue, priced)
        standing = [one for one in self.reached if not _among(one.ground, replaced)]
        best = min(standing or self.reached, key=lambda one: (not one.kept, one.loss), default=None)
        chosen = [] if best is None else [best.ground]
        self.tried = [one for one in self.tried if _among(one, chosen) or not _among(one, replaced)]
        return best

    @property
    def least(self) -> float | None:
        """Least loss that is known to keep the limits."""
        return min((one.loss for one in self.reached if one.kept), default=None)

    def _is_of(self, ground: Tried, item: Glimpse) -> bool:
        """Whether a ground is what was looked at, taken whole."""
        whole = self.whole.get(id(ground))
        return whole is not None and whole.model is item.model

    def _add(self, queue: list[Waiting], grounds: Sequence[Tried]) -> None:
        for one in grounds:
            self.tried.append(one)
            self._push(queue, one.total, one)

    def _push(self, queue: list[Waiting], promise: float | None, item: Tried | Glimpse) -> None:
        if promise is not None:
            heapq.heappush(queue, (promise, next(self.order), item))


def _among(ground: Tried, others: Sequence[Tried]) -> bool:
    return any(ground is one for one in others)
