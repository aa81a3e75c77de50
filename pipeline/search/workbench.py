"""What a search asks of the target and of the images: prices, latency tables, whole models. All of it is kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.events import Event
from pipeline.plan import Candidate, TargetPlan
from pipeline.planner import PlannedStep, Planner
from pipeline.runner import Runner
from pipeline.search.latency import LatencyTable
from pipeline.search.probes import (
    DECIDING,
    SEARCHING,
    Shares,
    engine_of,
    measure_shares,
    measuring_code,
    probes_for,
    table_from,
)
from stages.catalog import get_stage
from stages.offers.record import OFFERS_FILE, Offers
from stages.prune.options import SearchOptions
from stages.quantize.stage import Alpha, strength_of
from stages.vit.spec import ViTSpec
from targets.measure.procedure import Procedure
from targets.record import digest_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.artifact import Artifact
    from targets.preprocess import Preprocess

Tell = Callable[[str, float | None], None]
WHOLE = "whole"


class Check(Protocol):
    """Shows a piece of work as a step of the build, and does it."""

    def __call__(self, title: str, work: Callable[[Tell], Any], *, cached: bool = False) -> Any:
        """Return what the work returns."""


@dataclass(kw_only=True)
class Workbench:
    """One pair of runtime and precision on one target, and the model that is to be pruned for it."""

    planner: Planner
    runner: Runner
    target: TargetPlan
    candidate: Candidate
    spec: ViTSpec
    """of the model as it comes"""
    source: ViTSpec
    """of the source, whose engine is the unpruned one: another one, where steps before the pruning changed it"""
    search: SearchOptions
    later: Callable[[ViTSpec], ViTSpec]
    """what steps after the pruning make of a spec"""
    inputs: "Callable[[Preprocess], NDArray[Any]]"
    """images to time engines with, prepared for a model: [N, 3, H, W]"""
    reuse: bool = True
    refit: bool = True
    """whether pruning fits MLPs that keep their width again; take_back: the share of the error that they take"""
    take_back: float = 0.7

    def planned(self, after: PlannedStep, stage: str, title: str, **options: Any) -> PlannedStep:
        """Return a step that changes the model before it is priced."""
        return self.planner.step(stage, get_stage(stage).options(**options), after=after, title=title)

    # Prices.

    def offers_step(self, model: PlannedStep) -> PlannedStep:
        """Return the step that prices every shape of a model."""
        search, rules = self.search, self.target.profile.shapes
        options = get_stage("offers").options(
            mlp_multiple=rules.mlp_multiple,
            head_multiple=rules.head_multiple,
            head_least=rules.head_least,
            head_widths=rules.head_widths,
            equal_head_widths=rules.equal_head_widths,
            mlp=search.mlp,
            attention=search.attention,
            off=search.off,
            refit=self.refit,
            take_back=self.take_back,
            tokens=search.tokens,
            fit_images=search.fit_images,
            select_images=search.select_images,
        )
        return self.planner.step("offers", options, after=model, title="price shapes")

    def offers(self, model: PlannedStep) -> Offers:
        """Price every shape of a model."""
        return self._read_offers(self.offers_step(model))

    def base_loss(self, model: PlannedStep, what: str) -> float:
        """Return what a changed model loses before anything is pruned. what: its name, for the display."""
        options = get_stage("offers").options(mlp=False, attention=False, select_images=self.search.select_images)
        return self._read_offers(self.planner.step("offers", options, after=model, title=f"loss of {what}")).base_loss

    def _read_offers(self, step: PlannedStep) -> Offers:
        path = self.runner.bring(step).folder / OFFERS_FILE
        return Offers.model_validate_json(path.read_text(encoding="utf-8"))

    # Latency.

    def table_key(self, spec: ViTSpec) -> str:
        """Return what a table is kept under."""
        steps = self._probe_steps(self._probes(spec))
        return digest_of(
            [
                [step.key for step in steps.values()],
                spec.model_dump(mode="json"),
                self.candidate.unpruned.key,
                measuring_code(),
            ]
        )

    def table(self, spec: ViTSpec, check: Check) -> LatencyTable:
        """Time the shapes of a model's sublayers."""
        key = self.table_key(spec)
        kept = self.runner.store.get_record("latency_table", key) if self.reuse else None
        title = "time shapes" if spec == self.spec else f"time shapes of {named(spec)}"
        if kept is not None:
            found: LatencyTable = check(title, lambda tell: LatencyTable.model_validate(kept), cached=True)
            return found
        table: LatencyTable = check(title, lambda tell: self._measured_table(spec, tell))
        self.runner.store.put_record("latency_table", key, table.model_dump(mode="json"))
        return table

    def whole(
        self, spec: ViTSpec, title: str, share: float, tell: Tell, *, deciding: bool = False
    ) -> tuple[float, tuple[float, float]]:
        """Build a whole model of these shapes with random weights and time it: ratio to the unpruned engine, 95 %.

        deciding: whether the interval decides that a limit is kept; more processes are measured then.
        """
        finished = self.later(spec)
        step = self._whole_step(finished, title)
        built = self._quietly(step, lambda text: tell(text, share))
        procedure = DECIDING if deciding else SEARCHING
        told = lambda text, _: tell(f"{title}: {text}", share)  # noqa: E731
        return self._measure({WHOLE: built}, finished, told, procedure=procedure).ratios[WHOLE]

    def _whole_step(self, spec: ViTSpec, title: str) -> PlannedStep:
        return engine_of(
            self.planner, spec, self.candidate, title=title, alpha=self._alpha(), returned=self._returned()
        )

    def _probes(self, spec: ViTSpec) -> dict[str, ViTSpec]:
        wanted = probes_for(spec, self.target.profile.shapes, mlp=self.search.mlp, attention=self.search.attention)
        probes = {probe.name: probe.spec for probe in wanted}
        return probes if spec == self.source else {WHOLE: spec, **probes}

    def _probe_steps(self, probes: Mapping[str, ViTSpec]) -> dict[str, PlannedStep]:
        alpha = self._alpha()
        return {
            name: self._whole_step(one, f"probe {name}")
            if name == WHOLE
            else engine_of(self.planner, one, self.candidate, title=f"probe {name}", alpha=alpha)
            for name, one in probes.items()
        }

    def _alpha(self) -> Alpha | None:
        """The SmoothQuant strength that the unpruned counterpart chose; None where it is not quantized."""
        for step in self.candidate.unpruned.line():
            if step.stage == "quantize":
                return strength_of(self.runner.bring(step).manifest.facts)
        return None

    def _returned(self) -> tuple[str, ...]:
        """The layers that went back to float in the unpruned counterpart: whole models keep the same ones."""
        for step in self.candidate.unpruned.line():
            if step.stage == "quantize":
                return tuple(one["layer"] for one in self.runner.bring(step).manifest.facts.get("returned", ()))
        return ()

    def _measured_table(self, spec: ViTSpec, tell: Tell) -> LatencyTable:
        probes = self._probes(spec)
        steps = self._probe_steps(probes)
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

    def _measure(
        self, built: "Mapping[str, Artifact]", spec: ViTSpec, tell: Tell, *, procedure: Procedure = SEARCHING
    ) -> Shares:
        """Time engines that read what a model of this spec does."""
        return measure_shares(
            {name: one.folder for name, one in built.items()},
            self.inputs(spec.preprocess),
            unpruned=self.runner.bring(self.candidate.unpruned).folder,
            unpruned_inputs=self.inputs(self.source.preprocess),
            batch=self.candidate.batch,
            threads=self.target.profile.threads,
            procedure=procedure,
            tell=tell,
        )

    def _quietly(self, step: PlannedStep, tell: Callable[[str], None]) -> "Artifact":
        """Bring a step whose parts are not steps of the user's build."""

        def watch(event: Event) -> None:
            if event.kind in ("step_started", "progress"):
                tell(event.step)

        quiet = replace(self.runner, watch=watch, fresh=False, done=self.runner.done)
        return quiet.bring(step)


def named(spec: ViTSpec) -> str:
    """Input size and width in words."""
    return f"{spec.preprocess.height} x {spec.preprocess.width} pixels, width {spec.width}"
