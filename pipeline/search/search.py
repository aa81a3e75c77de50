"""The search: prices of shapes, a latency table of the target, the knapsack, and whole models that put it right.

Everything that takes time is a step or a record of the store, so that a second build asks nothing again.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.events import Event
from pipeline.keys import code_digest
from pipeline.plan import Candidate, PlannedStep, Planner, TargetPlan
from pipeline.runner import Runner
from pipeline.search.decide import Allocation, Allocator
from pipeline.search.latency import Correction, LatencyTable
from pipeline.search.limits import limits_of, refuse_unreachable
from pipeline.search.probes import Shares, engine_of, measure_shares, measuring_code, probes_for, table_from
from pipeline.search.record import Decision, ParetoPoint, Round, SublayerDecision
from stages.catalog import get_stage
from stages.offers.record import OFFERS_FILE, Offers
from stages.prune.options import BlockShape, PruneOptions
from stages.vit.counts import count_macs
from stages.vit.spec import ViTSpec
from targets.record import digest_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.artifact import Artifact

Tell = Callable[[str, float | None], None]
AIM = 0.97
"""of the latency allowed: the interval of the final measurement has to lie within it, too"""
CLOSE_ENOUGH = 0.03
"""below the limit by no more than this: no further round"""
CODE = ("pipeline/search", "stages/vit/counts.py")


class Check(Protocol):
    """Shows a piece of work as a step of the build, and does it."""

    def __call__(self, title: str, work: Callable[[Tell], Any], *, cached: bool = False) -> Any:
        """Return what the work returns."""


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
    inputs: "Callable[[], NDArray[Any]]"
    """images to time engines with: [N, 3, H, W]"""
    reuse: bool = True

    @property
    def options(self) -> PruneOptions:
        """What the recipe says of the pruning."""
        options = self.step.options
        assert isinstance(options, PruneOptions)
        return options

    def offers_step(self) -> PlannedStep:
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
            fit_images=search.fit_images,
            select_images=search.select_images,
        )
        return self.planner.step("offers", options, after=self.model, title="price shapes")

    def run(self, check: "Check") -> Decision:
        """Decide. check: shows work as a step."""
        offers_step = self.offers_step()
        folder = self.runner.bring(offers_step).folder
        offers = Offers.model_validate_json((folder / OFFERS_FILE).read_text(encoding="utf-8"))
        table = self._table(check)
        key = digest_of(
            [
                offers_step.key,
                table.digest(),
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
        decision: Decision = check("choose shapes", lambda tell: self._decide(offers, table, tell))
        self.runner.store.put_record("decision", key, decision.model_dump(mode="json"))
        return decision

    # The table.

    def _table(self, check: "Check") -> LatencyTable:
        search = self.options.search
        wanted = probes_for(self.spec, self.target.profile.shapes, mlp=search.mlp, attention=search.attention)
        probes = {probe.name: probe.spec for probe in wanted}
        steps = {
            name: engine_of(self.planner, spec, self.candidate, title=f"probe {name}") for name, spec in probes.items()
        }
        key = digest_of([[step.key for step in steps.values()], self.candidate.unpruned.key, measuring_code()])
        kept = self.runner.store.get_record("latency_table", key) if self.reuse else None
        if kept is not None:
            found: LatencyTable = check("time shapes", lambda tell: LatencyTable.model_validate(kept), cached=True)
            return found
        table: LatencyTable = check("time shapes", lambda tell: self._measured_table(probes, steps, tell))
        self.runner.store.put_record("latency_table", key, table.model_dump(mode="json"))
        return table

    def _measured_table(
        self, probes: Mapping[str, ViTSpec], steps: Mapping[str, PlannedStep], tell: Tell
    ) -> LatencyTable:
        built: dict[str, Artifact] = {}
        for place, (name, step) in enumerate(steps.items()):
            built[name] = self._quietly(step, lambda text, place=place: tell(text, 0.6 * place / len(steps)))  # type: ignore[misc]
        shares = self._measure(built, lambda text, share: tell(text, 0.6 + 0.4 * (share or 0)))
        return table_from(
            self.spec,
            probes,
            {name: share for name, (share, _) in shares.ratios.items()},
            {name: int(one.manifest.facts["engine_bytes"]) for name, one in built.items()},
            unpruned_p50_ms=shares.unpruned_p50_ms,
        )

    def _measure(self, built: "Mapping[str, Artifact]", tell: Tell) -> Shares:
        return measure_shares(
            {name: one.folder for name, one in built.items()},
            self.runner.bring(self.candidate.unpruned).folder,
            self.inputs(),
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

    def _decide(self, offers: Offers, table: LatencyTable, tell: Tell) -> Decision:
        allocator = Allocator(self.spec, offers, table)
        limits = limits_of(self.target.budget, table)
        refuse_unreachable(limits, {name: allocator.cheapest(name) for name in limits})
        points = [(table.share(self.spec), 1.0)]
        rounds: list[Round] = []
        best: Allocation | None = None
        started = time.perf_counter()
        for turn in range(self.options.search.rounds if "latency" in limits else 1):
            correction = Correction.through(points)
            aim = AIM * limits.get("latency", 0.0)
            allowed = {**limits, **({"latency": correction.allowed(aim)} if "latency" in limits else {})}
            started = time.perf_counter()
            found = allocator.solve(allowed)
            solve_ms = 1000 * (time.perf_counter() - started)
            if found is None:
                refuse_unreachable(allowed, {name: allocator.cheapest(name) for name in allowed})
                break
            if "latency" not in limits:
                best = found
                break
            total = allocator.total(found, "latency")
            measured, interval = self._whole(allocator.spec_of(found), turn, tell)
            rounds.append(
                Round(
                    aim=aim,
                    table=total,
                    predicted=correction.measured(total),
                    measured=measured,
                    interval=interval,
                    loss=found.loss,
                )
            )
            points.append((total, measured))
            if interval[1] <= limits["latency"] and (best is None or found.loss < best.loss):
                best = found
            if best is found and measured >= limits["latency"] * (1 - 2 * CLOSE_ENOUGH):
                break
        if best is None:
            # No round kept the limit beyond doubt: what the corrected table now says of all.
            best = allocator.solve({**limits, "latency": Correction.through(points).allowed(AIM * limits["latency"])})
        if best is None:
            raise RuntimeError("no allocation within reachable limits")  # refuse_unreachable has looked
        return self._told(allocator, best, offers, limits, rounds, Correction.through(points), solve_ms)

    def _whole(self, spec: ViTSpec, turn: int, tell: Tell) -> tuple[float, tuple[float, float]]:
        """Build a whole model of these shapes with random weights and time it against the unpruned engine."""
        step = engine_of(self.planner, self.later(spec), self.candidate, title=f"round {turn + 1}")
        share = turn / self.options.search.rounds
        built = self._quietly(step, lambda text: tell(text, share))
        return self._measure({"whole": built}, lambda text, _: tell(f"round {turn + 1}: {text}", share)).ratios["whole"]

    def _told(
        self,
        allocator: Allocator,
        best: Allocation,
        offers: Offers,
        limits: Mapping[str, float],
        rounds: list[Round],
        correction: Correction,
        solve_ms: float,
    ) -> Decision:
        return Decision(
            runtime=self.candidate.runtime,
            precision=self.candidate.precision,
            unit=offers.unit,
            limits=dict(limits),
            shapes=best.shapes,
            loss=best.loss,
            sublayers=tuple(_sublayers(allocator, best)),
            rounds=tuple(rounds),
            pareto=tuple(_point(allocator, one, correction) for one in allocator.frontier("latency")),
            uniform=tuple(_point(allocator, one, correction) for one in allocator.uniform()),
            table=allocator.table,
            solve_ms=solve_ms,
        )


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


def _point(allocator: Allocator, one: Allocation, correction: Correction) -> ParetoPoint:
    return ParetoPoint(
        ratio=correction.measured(allocator.total(one, "latency")),
        loss=one.loss,
        macs=allocator.total(one, "macs") / count_macs(allocator.spec),
    )
