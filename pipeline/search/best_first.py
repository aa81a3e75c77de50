"""Best first: what promises the least loss goes on, until nothing promises less than what was reached. Pure.

A ground that is priced promises its first choice; a size or width that was only looked at promises what the prices of
the model as it comes make of it. Neither is certain: whole models that are timed raise the loss of a ground, so another
one that promised a little more may win in the end.
"""

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

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
        while queue:
            promise, _, item = heapq.heappop(queue)
            if self.least is not None and promise >= self.least:
                break
            if isinstance(item, Tried):
                found = self.go(item) if turns > 0 else None
                turns -= 1
                if found is not None:
                    self.reached.append(found)
            elif item.fits or most:
                most -= 0 if item.fits else 1
                self.left = [one for one in self.left if one is not item]
                self._add(queue, self.price(item, self.least))
        return min(self.reached, key=lambda one: (not one.kept, one.loss), default=None)

    @property
    def least(self) -> float | None:
        """Least loss that is known to keep the limits."""
        return min((one.loss for one in self.reached if one.kept), default=None)

    def _add(self, queue: list[Waiting], grounds: Sequence[Tried]) -> None:
        for one in grounds:
            self.tried.append(one)
            self._push(queue, one.total, one)

    def _push(self, queue: list[Waiting], promise: float | None, item: Tried | Glimpse) -> None:
        if promise is not None:
            heapq.heappush(queue, (promise, next(self.order), item))
