"""The search: prices of shapes, a latency table of the target, the knapsack, and whole models that put it right.

Everything that takes time is a step or a record of the store, so that a second build asks nothing again.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.keys import code_digest
from pipeline.planner import PlannedStep
from pipeline.search.best_first import Pursuit, Reached
from pipeline.search.decide import Allocation, Allocator
from pipeline.search.grounds import AIM, Glimpse, Start, Tried, look, taken_whole, try_merging
from pipeline.search.latency import Correction
from pipeline.search.limits import UnreachableError, limits_of, refuse_unreachable
from pipeline.search.probes import measuring_code
from pipeline.search.record import Decision, Ground, ParetoPoint, Round, SublayerDecision
from pipeline.search.workbench import Check, Tell, Workbench, named
from stages.prune.options import BlockShape, PruneOptions
from stages.prune_width.options import method_for
from stages.vit.counts import count_macs
from stages.vit.spec import SPEC_FILE, ViTSpec
from targets.errors import InputError
from targets.record import digest_of

CLOSE_ENOUGH = 0.03
"""below the limit by no more than this: no further round"""
CODE = ("pipeline/search", "stages/vit/counts.py")
Combination = tuple[int | None, float | None]
"""side of the input in pixels, share of the residual width; None: as the model comes"""


@dataclass(kw_only=True)
class Search:
    """One search for one target, on one pair of runtime and precision."""

    bench: Workbench
    model: PlannedStep
    """the step that gives the model that is pruned"""
    step: PlannedStep
    """the prune step with blocks: auto"""
    at_most: float | None = None
    """share of the unpruned engine's time that is allowed besides what the budget says"""

    @property
    def options(self) -> PruneOptions:
        """What the recipe says of the pruning."""
        options = self.step.options
        assert isinstance(options, PruneOptions)
        return options

    def run(self, check: Check) -> Decision:
        """Decide. check: shows work as a step."""
        bench, search = self.bench, self.options.search
        if search.tokens and any(bench.later(bench.spec).merge):
            raise InputError("prune.search.tokens and a step merge_tokens both say what merges; give one of them")
        pairs: list[Combination] = list(itertools.product((None, *search.sizes), (None, *search.widths)))[1:]
        changed = [self._changed(*pair) for pair in pairs]
        key = digest_of(
            [
                [bench.offers_step(step).key for step in (self.model, *changed)],
                bench.table_key(bench.spec),
                bench.candidate.unpruned.key,
                bench.target.budget.model_dump(mode="json"),
                self.at_most,
                self.options.model_dump(mode="json"),
                digest_of(bench.later(bench.spec).model_dump(mode="json")),
                code_digest(CODE),
                measuring_code(),
            ]
        )
        kept = bench.runner.store.get_record("decision", key) if bench.reuse else None
        if kept is not None:
            found: Decision = check("choose shapes", lambda tell: Decision.model_validate(kept), cached=True)
            return found
        began = time.monotonic()
        first = self._start(self.model, bench.spec, check)
        limits = limits_of(bench.target.budget, first.table)
        if self.at_most is not None:
            limits["latency"] = min(self.at_most, limits.get("latency", self.at_most))
        glimpses = self._glimpses(changed, first, limits, check)
        decision = self._decide(first, glimpses, limits, check)
        decision = decision.replace(seconds=round(time.monotonic() - began, 1))
        bench.runner.store.put_record("decision", key, decision.model_dump(mode="json"))
        return decision

    # Starts.

    def _changed(self, size: int | None, width: float | None) -> PlannedStep:
        """Plan the steps that make the model read other pictures, or make it narrower."""
        model = self.model
        if size is not None:
            model = self.bench.planned(model, "resize_input", f"read pictures of {size} pixels", size=size)
        if width is not None:
            how = method_for(self.bench.spec)
            model = self.bench.planned(model, "prune_width", f"narrow the stream to {width:g}", keep=width, method=how)
        return model

    def _start(self, model: PlannedStep, spec: ViTSpec, check: Check) -> Start:
        """Price and time the shapes of a model."""
        return Start(
            spec=spec,
            offers=self.bench.offers(model),
            table=self.bench.table(spec, check),
            becomes=self._finished,
            reshaped=self.bench.later(spec) != spec,
        )

    def _finished(self, spec: ViTSpec) -> ViTSpec:
        """What a pruned spec becomes: after the later steps, and with every bias that repair and removal may add."""
        return self.bench.later(spec.replace(patch_bias=True, proj_bias=True, fc2_bias=True))

    def _glimpses(
        self, changed: Sequence[PlannedStep], first: Start, limits: Mapping[str, float], check: Check
    ) -> list[Glimpse]:
        """Look at every size and width: what it loses and takes by itself, and what it may come to."""
        allocator = Allocator(first.spec, first.offers, first.table, first.becomes)
        found = []
        for model in changed:
            spec = load_changed(self.bench, model)
            loss, ratio = self.bench.base_loss(model, named(spec)), None
            if "latency" in limits:
                ratio, _ = check(f"time {named(spec)}", partial(self.bench.whole, spec, f"time {named(spec)}", 0.0))
            found.append(
                look(allocator, limits, model=model, spec=spec, loss=loss, ratio=ratio, becomes=self._finished)
            )
        return found

    # The decision.

    def _decide(self, first: Start, glimpses: Sequence[Glimpse], limits: Mapping[str, float], check: Check) -> Decision:
        passed: list[Ground] = []

        def tried(start: Start, best: float | None = None) -> list[Tried]:
            def work(tell: Tell) -> list[Tried]:
                whole = partial(self._ratio, tell=tell)
                found, over = try_merging(start, limits, whole, best)
                passed.extend(over)
                return found

            timed = (start.offers.merges or start.reshaped) and "latency" in limits
            done: list[Tried] = check(f"try merging{self._of(start.spec)}", work) if timed else work(_silent)
            return done

        def price(one: Glimpse, best: float | None) -> list[Tried]:
            if one.fits:
                return [taken_whole(one, first)]
            return tried(self._start(one.model, one.spec, check), best)

        def go(one: Tried) -> Reached | None:
            title = f"choose shapes{self._of(one.start.spec)}"
            found: Reached | None = check(title, lambda tell: self._rounds(one, limits, tell))
            return found

        pursuit = Pursuit(price=price, go=go, priced=self.options.search.priced)
        unchanged = tried(first)
        best = pursuit.run(unchanged, glimpses)
        if best is None:
            refuse_unreachable(limits, {name: min(one.cheapest(name) for one in pursuit.tried) for name in limits})
            # Each limit alone can be kept, but not all of them together.
            raise UnreachableError(
                f"no shapes of this model keep all of {', '.join(limits)} together; allow more of one"
            )
        reached = {id(one.ground): one.loss for one in pursuit.reached}
        grounds = (
            *(_ground(one, best=reached.get(id(one), one.total), chosen=one is best.ground) for one in pursuit.tried),
            *passed,
            *map(_glimpsed, pursuit.left),
        )
        return self._told(best, unchanged[0], limits, grounds if len(grounds) > 1 else ())

    def _of(self, spec: ViTSpec) -> str:
        return "" if spec == self.bench.spec else f" of {named(spec)}"

    def _ratio(self, spec: ViTSpec, title: str, tell: Tell) -> float:
        return self.bench.whole(spec, title, 0.0, tell)[0]

    def _rounds(self, ground: Tried, limits: Mapping[str, float], tell: Tell) -> Reached | None:
        """Build and time whole models until one is within the limits and makes use of them."""
        if "latency" not in limits:
            first = ground.first
            return None if first is None else Reached(ground=ground, best=first, rounds=(), kept=True)
        rounds: list[Round] = []
        best: Allocation | None = None
        for turn in range(self.options.search.rounds):
            correction = Correction.through(ground.points)
            found = ground.solve(limits)
            if found is None:
                break
            total, aim = ground.allocator.total(found, "latency"), AIM * limits["latency"]
            spec = ground.merged(ground.allocator.spec_of(found))
            measured, interval = self.bench.whole(
                spec, f"round {turn + 1}", turn / self.options.search.rounds, tell, deciding=True
            )
            rounds.append(
                Round(
                    aim=aim,
                    table=total,
                    predicted=correction.measured(total),
                    measured=measured,
                    interval=interval,
                    loss=ground.loss + found.loss,
                )
            )
            ground.points.append((total, measured))
            if interval[1] <= limits["latency"] and (best is None or found.loss < best.loss):
                best = found
            if best is found and (not ground.priced or measured >= limits["latency"] * (1 - 2 * CLOSE_ENOUGH)):
                break
        if best is not None:
            return Reached(ground=ground, best=best, rounds=tuple(rounds), kept=True)
        # No round kept the limit beyond doubt: what the corrected table now says of all.
        last = ground.solve(limits)
        return None if last is None else Reached(ground=ground, best=last, rounds=tuple(rounds), kept=False)

    def _told(
        self, reached: Reached, unchanged: Tried, limits: Mapping[str, float], grounds: tuple[Ground, ...]
    ) -> Decision:
        ground, best = reached.ground, reached.best
        allocator, spec = ground.allocator, ground.start.spec
        shown = ground if ground.priced else unchanged
        correction = Correction.through(shown.points)

        def point(one: Allocation) -> ParetoPoint:
            return ParetoPoint(
                ratio=correction.measured(shown.allocator.total(one, "latency")),
                loss=shown.loss + one.loss,
                macs=shown.allocator.total(one, "macs") / count_macs(self.bench.spec),
            )

        return Decision(
            runtime=self.bench.candidate.runtime,
            precision=self.bench.candidate.precision,
            unit=ground.start.offers.unit,
            limits=dict(limits),
            shapes=best.shapes,
            size=_size(spec) if _size(spec) != _size(self.bench.spec) else None,
            width=spec.width if spec.width != self.bench.spec.width else None,
            width_method=method_for(self.bench.spec),
            merge=ground.tokens.merge if ground.tokens else (),
            loss=reached.loss,
            grounds=grounds,
            sublayers=tuple(_sublayers(allocator, best)),
            rounds=reached.rounds,
            kept=reached.kept,
            pareto=tuple(map(point, shown.allocator.frontier("latency"))),
            uniform=tuple(map(point, shown.allocator.uniform())),
            table=ground.start.table,
            exact=best.exact,
            solve_ms=max(unchanged.solve_ms, ground.solve_ms),
        )


def load_changed(bench: Workbench, model: PlannedStep) -> ViTSpec:
    """Spec of a model that was changed before it is priced."""
    return ViTSpec.model_validate_json((bench.runner.bring(model).folder / SPEC_FILE).read_bytes())


def _silent(message: str, share: float | None) -> None:
    """Tell nobody."""


def _ground(one: Tried, *, best: float | None, chosen: bool) -> Ground:
    return Ground(
        size=_size(one.start.spec),
        width=one.start.spec.width,
        tokens=one.tokens.keep if one.tokens else None,
        merge=one.tokens.merge if one.tokens else (),
        ratio=one.points[0][1],
        loss=one.loss,
        best=best,
        chosen=chosen,
        note=None if one.priced else "fits whole",
    )


def _glimpsed(one: Glimpse) -> Ground:
    return Ground(
        size=_size(one.spec),
        width=one.spec.width,
        tokens=None,
        ratio=one.ratio,
        loss=one.loss,
        best=one.promise,
        chosen=False,
        note="fits whole" if one.fits else "estimated",
    )


def _size(spec: ViTSpec) -> tuple[int, int]:
    return spec.preprocess.height, spec.preprocess.width


def _sublayers(allocator: Allocator, best: Allocation) -> list[SublayerDecision]:
    found = []
    for group in allocator.groups:
        shape = _shape(best.shapes[group.sublayer.block], group.sublayer.part)
        at, last = group.shapes.index(shape), len(group.shapes) - 1
        times = group.costs["latency"]
        steeper = [
            (group.losses[i] - group.losses[at]) / (times[at] - times[i])
            for i in range(len(times))
            if times[i] < times[at] and group.losses[i] > group.losses[at]
        ]
        found.append(
            SublayerDecision(
                block=group.sublayer.block,
                part=group.sublayer.part,
                before=group.shapes[last],
                after=shape,
                loss=group.losses[at],
                time_before=times[last],
                time_after=times[at],
                next_loss=min(steeper) if steeper else None,
            )
        )
    return found


def _shape(block: BlockShape, part: str) -> tuple[int, ...]:
    return (block.mlp_width,) if part == "mlp" else (block.heads, block.d_qk, block.d_v)
