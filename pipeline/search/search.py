"""The search: prices of shapes, a latency table of the target, the knapsack, and whole models that put it right.

Everything that takes time is a step or a record of the store, so that a second build asks nothing again.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.events import Event
from pipeline.keys import code_digest
from pipeline.plan import Candidate, PlannedStep, Planner, TargetPlan
from pipeline.runner import Runner
from pipeline.search.decide import Allocation, Allocator
from pipeline.search.latency import Correction, LatencyTable
from pipeline.search.limits import limits_of, refuse_unreachable
from pipeline.search.probes import Shares, engine_of, measure_shares, measuring_code, probes_for, table_from
from pipeline.search.record import Decision, Ground, ParetoPoint, Round, SublayerDecision, spelled
from stages.catalog import get_stage
from stages.merge_tokens.options import MergeTokensOptions
from stages.merge_tokens.options import reshaped as merging
from stages.offers.record import OFFERS_FILE, MergeOffer, Offers
from stages.prune.options import BlockShape, PruneOptions
from stages.vit.counts import count_macs
from stages.vit.spec import SPEC_FILE, ViTSpec
from targets.errors import InputError
from targets.record import digest_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.artifact import Artifact
    from targets.preprocess import Preprocess

Tell = Callable[[str, float | None], None]
AIM = 0.96
"""of the latency allowed: the interval of the final measurement has to lie within it, too"""
CLOSE_ENOUGH = 0.03
"""below the limit by no more than this: no further round"""
WHOLE = "whole"
CODE = ("pipeline/search", "stages/vit/counts.py")


class Check(Protocol):
    """Shows a piece of work as a step of the build, and does it."""

    def __call__(self, title: str, work: Callable[[Tell], Any], *, cached: bool = False) -> Any:
        """Return what the work returns."""


@dataclass(frozen=True, kw_only=True)
class _Start:
    """An input size and a width of the residual stream: the model that is cut, its prices and its table."""

    spec: ViTSpec
    offers_key: str
    offers: Offers
    table: LatencyTable


@dataclass(kw_only=True)
class _Ground:
    """A start with a schedule of merging: one knapsack, and what its whole models took."""

    start: _Start
    tokens: MergeOffer | None
    allocator: Allocator
    points: list[tuple[float, float]]
    """(sum of the table, measured) of whole models, the first with all sublayers whole"""

    @property
    def loss(self) -> float:
        """Loss with all sublayers whole."""
        return self.start.offers.base_loss + (self.tokens.loss if self.tokens else 0.0)

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


@dataclass(kw_only=True)
class Search:
    """One search for one target, on one pair of runtime and precision."""

    planner: Planner
    runner: Runner
    target: TargetPlan
    candidate: Candidate
    spec: ViTSpec
    """of the model that is pruned"""
    model: PlannedStep
    """the step that gives it"""
    step: PlannedStep
    """the prune step with blocks: auto"""
    later: Callable[[ViTSpec], ViTSpec]
    """what steps after the pruning make of a spec"""
    inputs: "Callable[[Preprocess], NDArray[Any]]"
    """images to time engines with, prepared for a model: [N, 3, H, W]"""
    reuse: bool = True

    @property
    def options(self) -> PruneOptions:
        """What the recipe says of the pruning."""
        options = self.step.options
        assert isinstance(options, PruneOptions)
        return options

    def run(self, check: "Check") -> Decision:
        """Decide. check: shows work as a step."""
        search = self.options.search
        if search.tokens and any(self.later(self.spec).merge):
            raise InputError("prune.search.tokens and a step merge_tokens both say what merges; give one of them")
        starts = [
            self._start(size, width, check)
            for size, width in itertools.product((None, *search.sizes), (None, *search.widths))
        ]
        key = digest_of(
            [
                [[start.offers_key, start.table.digest()] for start in starts],
                self.candidate.unpruned.key,
                self.target.budget.model_dump(mode="json"),
                self.options.model_dump(mode="json"),
                digest_of(self.later(self.spec).model_dump(mode="json")),
                code_digest(CODE),
                measuring_code(),
            ]
        )
        kept = self.runner.store.get_record("decision", key) if self.reuse else None
        if kept is not None:
            found: Decision = check("choose shapes", lambda tell: Decision.model_validate(kept), cached=True)
            return found
        decision: Decision = check("choose shapes", lambda tell: self._decide(starts, tell))
        self.runner.store.put_record("decision", key, decision.model_dump(mode="json"))
        return decision

    # Prices and table.

    def _start(self, size: int | None, width: float | None, check: "Check") -> _Start:
        """Price and time the shapes of the model, or of one that reads other pictures or is narrower.

        size: side of the input in pixels. width: share of the residual width.
        """
        model, spec = self.model, self.spec
        if size is not None:
            model = self.planned(model, "resize_input", f"read pictures of {size} pixels", size=size)
        if width is not None:
            model = self.planned(model, "prune_width", f"narrow the stream to {width:g}", keep=width)
        if model is not self.model:
            spec = load_changed(self.runner.bring(model).folder)
        offers_step = self.offers_step(model)
        folder = self.runner.bring(offers_step).folder
        offers = Offers.model_validate_json((folder / OFFERS_FILE).read_text(encoding="utf-8"))
        table = self._table(spec, check, changed=model is not self.model)
        return _Start(spec=spec, offers_key=offers_step.key, offers=offers, table=table)

    def planned(self, after: PlannedStep, stage: str, title: str, **options: Any) -> PlannedStep:
        """A step that changes the model before it is priced."""
        return self.planner.step(stage, get_stage(stage).options(**options), after=after, title=title)

    def offers_step(self, model: PlannedStep) -> PlannedStep:
        """The step that prices shapes."""
        search, rules = self.options.search, self.target.profile.shapes
        options = get_stage("offers").options(
            mlp_multiple=rules.mlp_multiple,
            head_multiple=rules.head_multiple,
            head_widths=rules.head_widths,
            equal_head_widths=rules.equal_head_widths,
            mlp=search.mlp,
            attention=search.attention,
            off=search.off,
            tokens=search.tokens,
            fit_images=search.fit_images,
            select_images=search.select_images,
        )
        return self.planner.step("offers", options, after=model, title="price shapes")

    def _table(self, spec: ViTSpec, check: "Check", *, changed: bool) -> LatencyTable:
        search = self.options.search
        wanted = probes_for(spec, self.target.profile.shapes, mlp=search.mlp, attention=search.attention)
        probes = {probe.name: probe.spec for probe in wanted}
        if changed:
            probes = {WHOLE: spec, **probes}
        steps = {
            name: engine_of(self.planner, one, self.candidate, title=f"probe {name}") for name, one in probes.items()
        }
        key = digest_of([[step.key for step in steps.values()], self.candidate.unpruned.key, measuring_code()])
        kept = self.runner.store.get_record("latency_table", key) if self.reuse else None
        title = f"time shapes of {_named(spec)}" if changed else "time shapes"
        if kept is not None:
            found: LatencyTable = check(title, lambda tell: LatencyTable.model_validate(kept), cached=True)
            return found
        table: LatencyTable = check(title, lambda tell: self._measured_table(spec, probes, steps, tell))
        self.runner.store.put_record("latency_table", key, table.model_dump(mode="json"))
        return table

    def _measured_table(
        self, spec: ViTSpec, probes: Mapping[str, ViTSpec], steps: Mapping[str, PlannedStep], tell: Tell
    ) -> LatencyTable:
        built: dict[str, Artifact] = {}
        for place, (name, step) in enumerate(steps.items()):
            built[name] = self._quietly(step, lambda text, place=place: tell(text, 0.6 * place / len(steps)))  # type: ignore[misc]
        measured = self._measure(built, spec, lambda text, share: tell(text, 0.6 + 0.4 * (share or 0)))
        shares = {name: share for name, (share, _) in measured.ratios.items()}
        sizes = {name: int(one.manifest.facts["engine_bytes"]) for name, one in built.items()}
        whole = shares.pop(WHOLE, 1.0)
        return table_from(
            spec,
            {name: one for name, one in probes.items() if name != WHOLE},
            shares,
            {name: size for name, size in sizes.items() if name != WHOLE},
            unpruned_p50_ms=measured.unpruned_p50_ms,
            whole=whole,
        )

    def _measure(self, built: "Mapping[str, Artifact]", spec: ViTSpec, tell: Tell) -> Shares:
        """Time engines that read what a model of this spec does."""
        return measure_shares(
            {name: one.folder for name, one in built.items()},
            self.inputs(spec.preprocess),
            unpruned=self.runner.bring(self.candidate.unpruned).folder,
            unpruned_inputs=self.inputs(self.spec.preprocess),
            batch=self.candidate.batch,
            threads=self.target.profile.threads,
            tell=tell,
        )

    def _quietly(self, step: PlannedStep, tell: Callable[[str], None]) -> "Artifact":
        """Bring a step whose parts are not steps of the user's build."""

        def watch(event: Event) -> None:
            if event.kind in ("step_started", "progress"):
                tell(event.step)

        quiet = replace(self.runner, watch=watch, fresh=False, done=self.runner.done)
        return quiet.bring(step)

    # The decision.

    def _decide(self, starts: Sequence[_Start], tell: Tell) -> Decision:
        limits = limits_of(self.target.budget, starts[0].table)
        grounds = [ground for start in starts for ground in self._grounds(start, tell)]
        refuse_unreachable(limits, {name: min(ground.cheapest(name) for ground in grounds) for name in limits})
        began = time.perf_counter()
        firsts = [ground.solve(limits) for ground in grounds]
        solve_ms = 1000 * (time.perf_counter() - began) / len(grounds)
        possible = [(ground.loss + one.loss, ground) for ground, one in zip(grounds, firsts, strict=True) if one]
        if not possible:
            # Each limit alone can be kept, but not all of them together.
            raise InputError(f"no shapes of this model keep all of {', '.join(limits)} together; allow more of one")
        ground = min(possible, key=lambda pair: pair[0])[1]
        best, rounds = self._rounds(ground, limits, tell)
        told = [
            Ground(
                size=self._size_of(one.start.spec),
                width=one.start.spec.width,
                tokens=one.tokens.keep if one.tokens else None,
                merge=one.tokens.merge if one.tokens else (),
                ratio=one.points[0][1],
                loss=one.loss,
                best=None if first is None else one.loss + first.loss,
                chosen=one is ground,
            )
            for one, first in zip(grounds, firsts, strict=True)
        ]
        return self._told(ground, best, limits, rounds, tuple(told) if len(told) > 1 else (), solve_ms)

    def _grounds(self, start: _Start, tell: Tell) -> Iterator[_Ground]:
        """Yield the start as it is and with each schedule of merging, whose whole model is timed."""
        for tokens in (None, *start.offers.merges):
            total = start.table.share(start.spec)
            ground = _Ground(
                start=start,
                tokens=tokens,
                allocator=Allocator(start.spec, start.offers, start.table),
                points=[(total, total)],
            )
            if tokens is not None:
                title = f"{tokens.keep:g} of the tokens, {spelled(tokens.merge)}"
                measured, _ = self._whole(ground.merged(start.spec), title, 0.0, tell)
                ground.points = [(total, measured)]
            yield ground

    def _rounds(self, ground: _Ground, limits: Mapping[str, float], tell: Tell) -> tuple[Allocation, list[Round]]:
        """Build and time whole models until one is within the limits and makes use of them."""
        rounds: list[Round] = []
        best: Allocation | None = None
        for turn in range(self.options.search.rounds if "latency" in limits else 1):
            correction = Correction.through(ground.points)
            found = ground.solve(limits)
            if found is None:
                break
            if "latency" not in limits:
                return found, rounds
            total, aim = ground.allocator.total(found, "latency"), AIM * limits["latency"]
            spec = ground.merged(ground.allocator.spec_of(found))
            measured, interval = self._whole(spec, f"round {turn + 1}", turn / self.options.search.rounds, tell)
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
            if best is found and measured >= limits["latency"] * (1 - 2 * CLOSE_ENOUGH):
                break
        # Where no round kept the limit beyond doubt, what the corrected table now says of all.
        best = best or ground.solve(limits)
        if best is None:
            refuse_unreachable(limits, {name: ground.cheapest(name) for name in limits})
            raise InputError(f"no shapes of this model keep all of {', '.join(limits)} together; allow more of one")
        return best, rounds

    def _whole(self, spec: ViTSpec, title: str, share: float, tell: Tell) -> tuple[float, tuple[float, float]]:
        """Build a whole model of these shapes with random weights and time it against the unpruned engine."""
        step = engine_of(self.planner, self.later(spec), self.candidate, title=title)
        built = self._quietly(step, lambda text: tell(text, share))
        return self._measure({WHOLE: built}, spec, lambda text, _: tell(f"{title}: {text}", share)).ratios[WHOLE]

    def _size_of(self, spec: ViTSpec) -> tuple[int, int] | None:
        size = (spec.preprocess.height, spec.preprocess.width)
        return None if size == (self.spec.preprocess.height, self.spec.preprocess.width) else size

    def _told(
        self,
        ground: _Ground,
        best: Allocation,
        limits: Mapping[str, float],
        rounds: list[Round],
        grounds: tuple[Ground, ...],
        solve_ms: float,
    ) -> Decision:
        allocator, correction = ground.allocator, Correction.through(ground.points)

        def point(one: Allocation) -> ParetoPoint:
            return ParetoPoint(
                ratio=correction.measured(allocator.total(one, "latency")),
                loss=ground.loss + one.loss,
                macs=allocator.total(one, "macs") / count_macs(self.spec),
            )

        return Decision(
            runtime=self.candidate.runtime,
            precision=self.candidate.precision,
            unit=ground.start.offers.unit,
            limits=dict(limits),
            shapes=best.shapes,
            size=self._size_of(ground.start.spec),
            width=ground.start.spec.width if ground.start.spec.width != self.spec.width else None,
            merge=ground.tokens.merge if ground.tokens else (),
            loss=ground.loss + best.loss,
            grounds=grounds,
            sublayers=tuple(_sublayers(allocator, best)),
            rounds=tuple(rounds),
            pareto=tuple(map(point, allocator.frontier("latency"))),
            uniform=tuple(map(point, allocator.uniform())),
            table=ground.start.table,
            solve_ms=solve_ms,
        )


def _named(spec: ViTSpec) -> str:
    return f"{spec.preprocess.height}x{spec.preprocess.width} pixels, width {spec.width}"


def load_changed(folder: Path) -> ViTSpec:
    """Spec of a model folder."""
    return ViTSpec.model_validate_json((folder / SPEC_FILE).read_text(encoding="utf-8"))


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
