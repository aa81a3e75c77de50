"""Grounds: what scales all sublayers - input size, width of the stream, token merging - and which of them are tried.

A ground loses something before anything is pruned. One that loses more by itself than another one altogether, within
the limits, cannot win and costs nothing more. And a size or width is priced in full only where the prices of the model
as it comes say that it may win: pricing every shape takes minutes, looking at a whole model seconds. One that keeps the
limits with nothing pruned needs no prices at all.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from pipeline.planner import PlannedStep
from pipeline.search.decide import Allocation, Allocator, Becomes
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
    becomes: Becomes = lambda spec: spec
    """what later steps make of a spec, with all that pruning may add"""
    reshaped: bool = False
    """whether later steps change the model, so that it takes another time than the table says"""


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
    fits: bool = False
    """keeps the limits with nothing pruned: what it loses is known, and no price is needed"""

    @property
    def promise(self) -> float | None:
        """Loss within the limits altogether, as far as one can tell before its shapes are priced."""
        return None if self.estimate is None else self.loss + self.estimate


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
    solve_ms: float = 0.0
    """time of one solution"""
    priced: bool = True
    """False: taken whole, without prices of its own"""

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
        return _merged(self.tokens, spec)

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


def look(
    allocator: Allocator,
    limits: Mapping[str, float],
    *,
    model: PlannedStep,
    spec: ViTSpec,
    loss: float,
    ratio: float | None,
    becomes: Becomes = lambda spec: spec,
) -> Glimpse:
    """Say what a model that is smaller by itself may come to within the limits, by the prices of the one as it comes.

    allocator: of the model as it comes. becomes: what later steps make of a spec. The rest: of the smaller one.
    """
    finished, whole = becomes(spec), becomes(allocator.spec)
    shrunk = {
        "latency": ratio or 1.0,
        "macs": count_macs(finished) / count_macs(whole),
        "parameters": count_params(finished) / count_params(whole),
    }
    aimed = aimed_at(limits)
    found = allocator.solve({name: limit / shrunk[name] for name, limit in aimed.items()})
    sizes = {"latency": ratio or 1.0, "macs": count_macs(finished), "parameters": count_params(finished)}
    return Glimpse(
        model=model,
        spec=spec,
        loss=loss,
        ratio=ratio,
        estimate=None if found is None else found.loss,
        fits=all(sizes[name] <= limit for name, limit in aimed.items()),
    )


def aimed_at(limits: Mapping[str, float]) -> dict[str, float]:
    """Limits with the reserve that a latency needs."""
    return {name: AIM * limit if name == "latency" else limit for name, limit in limits.items()}


def taken_whole(glimpse: Glimpse, first: Start) -> Tried:
    """A ground that keeps the limits with nothing pruned: every sublayer offers what it has, and nothing else.

    first: the model as it comes; its table, scaled to the time that was measured, says where the time goes.
    """
    spec = glimpse.spec
    whole = tuple(one.replace(offers=one.offers[-1:]) for one in first.offers.sublayers)
    table = first.table.scaled((glimpse.ratio or 1.0) / first.table.share(first.spec))
    start = replace(
        first, spec=spec, offers=first.offers.replace(sublayers=whole, merges=(), base_loss=glimpse.loss), table=table
    )
    allocator = Allocator(spec, start.offers, table, start.becomes)
    total = table.share(spec)
    one = Tried(start=start, tokens=None, allocator=allocator, points=[(total, glimpse.ratio or total)], priced=False)
    one.first = allocator.solve({})
    return one


def try_merging(
    start: Start, limits: Mapping[str, float], whole: Whole, best: float | None = None
) -> tuple[list[Tried], list[Ground]]:
    """Solve a start with every schedule of merging that may win; returns them, and what was passed over.

    best: loss within the limits of what was tried before.
    """
    waiting = [(_loss(start, tokens), tokens) for tokens in (None, *start.offers.merges)]
    tried: list[Tried] = []
    passed: list[Ground] = []
    for loss, tokens in sorted(waiting, key=lambda one: one[0]):
        if best is not None and loss >= best:
            passed.append(_passed_over(start, tokens, loss))
            continue
        total = start.table.share(start.spec)
        one = Tried(
            start=start,
            tokens=tokens,
            allocator=Allocator(start.spec, start.offers, start.table, partial(_finished, start, tokens)),
            points=[(total, total)],
        )
        if "latency" in limits and (tokens is not None or start.reshaped):
            title = f"{tokens.keep:g} of the tokens, {spelled(tokens.merge)}" if tokens else "with the later steps"
            one.points = [(total, whole(one.merged(start.spec), title))]
        began = time.perf_counter()
        one.first = one.solve(limits)
        one.solve_ms = 1000 * (time.perf_counter() - began)
        tried.append(one)
        if one.total is not None:
            best = one.total if best is None else min(best, one.total)
    return tried, passed


def _merged(tokens: MergeOffer | None, spec: ViTSpec) -> ViTSpec:
    return spec if tokens is None else merging(MergeTokensOptions(counts=tokens.merge), spec)


def _finished(start: Start, tokens: MergeOffer | None, spec: ViTSpec) -> ViTSpec:
    return start.becomes(_merged(tokens, spec))


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
