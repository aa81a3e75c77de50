"""Grounds: what scales all sublayers - input size, width of the stream, token merging - and which of them are tried.

A ground loses something before anything is pruned. One that loses more by itself than another one altogether, within
the limits, cannot win and costs nothing more. And a size or width is priced in full only where the prices of the model
as it comes say that it may win: pricing every shape takes minutes, looking at a whole model seconds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.planner import PlannedStep
from pipeline.search.decide import Allocation, Allocator
from pipeline.search.latency import Correction, LatencyTable
from pipeline.search.record import Ground, spelled
from stages.merge_tokens.options import MergeTokensOptions
from stages.merge_tokens.options import reshaped as merging
from stages.offers.record import MergeOffer, Offers
from stages.vit.counts import count_macs, count_params
from stages.vit.spec import ViTSpec

AIM = 0.96
"""of the latency allowed: the interval of the final measurement has to lie within it, too"""

Whole = Callable[[ViTSpec, str], float]
"""times a whole model of these shapes: its ratio to the unpruned engine's time"""


@dataclass(frozen=True, kw_only=True)
class Start:
    """An input size and a width of the residual stream, priced: the model that is cut, its prices and its table."""

    spec: ViTSpec
    offers: Offers
    table: LatencyTable


@dataclass(frozen=True, kw_only=True)
class Glimpse:
    """An input size and a width that was looked at, and not yet priced."""

    model: PlannedStep
    spec: ViTSpec
    loss: float
    """before anything is pruned"""
    ratio: float | None
    """of the whole model; None where latency is no limit"""
    estimate: float | None
    """loss within the limits, if its shapes cost what those of the model as it comes do; None: nothing keeps them"""


@dataclass(kw_only=True)
class Tried:
    """A start with a schedule of merging: one knapsack, and what its whole models took."""

    start: Start
    tokens: MergeOffer | None
    allocator: Allocator
    points: list[tuple[float, float]]
    """(sum of the table, measured) of whole models, the first with all sublayers whole"""
    first: Allocation | None = None
    """the choice before any round"""

    @property
    def loss(self) -> float:
        """Loss with all sublayers whole."""
        return _loss(self.start, self.tokens)

    @property
    def total(self) -> float | None:
        """Loss of the first choice; None where nothing keeps the limits."""
        return None if self.first is None else self.loss + self.first.loss

    def merged(self, spec: ViTSpec) -> ViTSpec:
        """A spec with this schedule."""
        return spec if self.tokens is None else merging(MergeTokensOptions(counts=self.tokens.merge), spec)

    def solve(self, limits: Mapping[str, float]) -> Allocation | None:
        """The choice of least loss, with latency as the whole models have corrected it."""
        if "latency" not in limits:
            return self.allocator.solve(limits)
        allowed = Correction.through(self.points).allowed(AIM * limits["latency"])
        return self.allocator.solve({**limits, "latency": allowed})

    def cheapest(self, name: str) -> float:
        """The smallest total that any choice is predicted to have."""
        total = self.allocator.cheapest(name)
        return Correction.through(self.points).measured(total) / AIM if name == "latency" else total


def estimate(allocator: Allocator, limits: Mapping[str, float], spec: ViTSpec, ratio: float | None) -> float | None:
    """Return the loss within the limits of a model that is smaller by itself, by the prices of the one as it comes.

    allocator: of the model as it comes. spec, ratio: of the smaller one. None: nothing keeps the limits.
    """
    scale = {
        "latency": ratio or 1.0,
        "macs": count_macs(spec) / count_macs(allocator.spec),
        "parameters": count_params(spec) / count_params(allocator.spec),
    }
    allowed = {name: (AIM if name == "latency" else 1.0) * limit / scale[name] for name, limit in limits.items()}
    found = allocator.solve(allowed)
    return None if found is None else found.loss


def promising(glimpses: Sequence[Glimpse], bound: float | None, most: int) -> list[Glimpse]:
    """Return at most so many that may lose less than the bound, which None stands for a model that keeps no limits.

    Where nothing keeps the limits, the fastest goes on, to say how far it would have come.
    """
    able = [(one.loss + one.estimate, index) for index, one in enumerate(glimpses) if one.estimate is not None]
    if not able and bound is None:
        fastest = sorted(range(len(glimpses)), key=lambda index: glimpses[index].ratio or 1.0)
        return [glimpses[index] for index in fastest[:1]]
    better = sorted(pair for pair in able if bound is None or pair[0] < bound)
    return [glimpses[index] for _, index in better[:most]]


def try_grounds(starts: Sequence[Start], limits: Mapping[str, float], whole: Whole) -> tuple[list[Tried], list[Ground]]:
    """Solve every start with every schedule of merging that may win; returns them, and what was passed over."""
    waiting = [(_loss(start, tokens), start, tokens) for start in starts for tokens in (None, *start.offers.merges)]
    tried: list[Tried] = []
    passed: list[Ground] = []
    best: float | None = None
    for loss, start, tokens in sorted(waiting, key=lambda one: one[0]):
        if best is not None and loss >= best:
            passed.append(_passed_over(start, tokens, loss))
            continue
        total = start.table.share(start.spec)
        one = Tried(
            start=start,
            tokens=tokens,
            allocator=Allocator(start.spec, start.offers, start.table),
            points=[(total, total)],
        )
        if tokens is not None and "latency" in limits:
            title = f"{tokens.keep:g} of the tokens, {spelled(tokens.merge)}"
            one.points = [(total, whole(one.merged(start.spec), title))]
        one.first = one.solve(limits)
        tried.append(one)
        if one.total is not None:
            best = one.total if best is None else min(best, one.total)
    return tried, passed


def _loss(start: Start, tokens: MergeOffer | None) -> float:
    return start.offers.base_loss + (tokens.loss if tokens else 0.0)


def _passed_over(start: Start, tokens: MergeOffer | None, loss: float) -> Ground:
    return Ground(
        size=(start.spec.preprocess.height, start.spec.preprocess.width),
        width=start.spec.width,
        tokens=tokens.keep if tokens else None,
        merge=tokens.merge if tokens else (),
        ratio=None,
        loss=loss,
        best=None,
        chosen=False,
        note="loses more by itself",
    )
