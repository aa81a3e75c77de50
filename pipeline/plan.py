"""Plan: the steps of a recipe with their keys, for every target, before anything runs.

Three lines lead to engines. The source line ends in the unpruned model; the compressed line continues it.

    source → finetune* ──► prune, distil … ──► export ──► quantize ──► compile    engine
                      └──► export ──► quantize (the same options) ──► compile     unpruned
                      └──► export ──► compile (first runtime, fp32)               baseline

Steps with equal keys are one step: targets and lines share what they have in common.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.keys import step_key
from pipeline.search.limits import needs_a_limit
from stages.artifact import Format
from stages.catalog import get_stage
from stages.stage import Role
from targets.errors import InputError
from targets.profile import Budget, TargetProfile
from targets.record import Record

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from stages.data.images import ImageSet

SOURCE_STAGES = ("source", "finetune")
"""stages before the model that everything is compared with"""


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """One step: a stage with checked options and a key."""

    stage: str
    title: str
    options: Record
    key: str
    previous: "PlannedStep | None"
    roles: tuple[Role, ...] = ()
    profile: TargetProfile | None = None
    """only for a target-bound stage"""
    device: str | None = None
    """fingerprint of the device, likewise"""
    searched: bool = False
    """it depends on what a search decides, so that it is not yet what will run"""

    def line(self) -> "tuple[PlannedStep, ...]":
        """All steps from the first to this one."""
        return (*(self.previous.line() if self.previous else ()), self)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Runtime and precision under consideration, at one batch size: the engine and its unpruned counterpart."""

    runtime: str
    precision: str
    batch: int
    engine: PlannedStep
    unpruned: PlannedStep

    @property
    def name(self) -> str:
        """`openvino int8`."""
        return f"{self.runtime} {self.precision}"


@dataclass(frozen=True, kw_only=True)
class TargetPlan:
    """What is built and measured for one target."""

    profile: TargetProfile
    budget: Budget
    facts: Mapping[str, Any]
    """of the device that builds and measures"""
    candidates: tuple[Candidate, ...]
    baselines: Mapping[int, PlannedStep]
    """fp32 engine of the source on the profile's first runtime, by batch size"""
    other_batches: Mapping[int, tuple[Candidate, ...]]
    """the same candidates at batch sizes that are shown but not judged"""
    passed_over: tuple[tuple[str, str], ...]
    """runtimes of the profile that cannot be used here, with the reason"""

    def steps(self) -> Iterator[PlannedStep]:
        """Every step that a build of this target certainly needs, in order, each once."""
        seen: set[str] = set()
        ends = [end for one in self.candidates for end in (one.engine, one.unpruned)]
        for end in [*ends, self.baselines[self.profile.batch]]:
            for step in end.line():
                if step.key not in seen:
                    seen.add(step.key)
                    yield step


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is known before the first step runs."""

    recipe: "Recipe"
    images: Mapping[Role, "ImageSet"]
    source: PlannedStep
    """last step of the source line: the unpruned model"""
    compressed: tuple[PlannedStep, ...]
    """steps after the source, up to the graph that is compiled"""
    targets: tuple[TargetPlan, ...]


class Planner:
    """Turns a recipe and opened images into planned steps."""

    def __init__(self, recipe: "Recipe", images: Mapping[Role, "ImageSet"]) -> None:
        self.recipe = recipe
        self.images = images
        self.fingerprints = {role: one.fingerprint for role, one in images.items()}

    def step(
        self,
        name: str,
        options: Record,
        *,
        after: PlannedStep | None,
        title: str | None = None,
        profile: TargetProfile | None = None,
        device: str | None = None,
    ) -> PlannedStep:
        """Plan one stage after another step; refuses when it needs images that the recipe does not name."""
        stage = get_stage(name)
        roles = stage.roles(options)
        for role in roles:
            if role not in self.images:
                raise InputError(
                    f"{name} reads images for {role.value!r}, but the recipe has no data.{role.value}; add it"
                )
        key = step_key(
            stage,
            options,
            input_key=after.key if after else None,
            images=self.fingerprints,
            seed=self.recipe.seed,
            device=device,
        )
        return PlannedStep(
            stage=name,
            title=title or name,
            options=options,
            key=key,
            previous=after,
            roles=roles,
            profile=profile if stage.target_bound else None,
            device=device if stage.target_bound else None,
            searched=(after is not None and after.searched) or is_auto(name, options),
        )

    def again(self, step: PlannedStep, *, after: PlannedStep, title: str) -> PlannedStep:
        """Plan the same step of another model."""
        return self.step(step.stage, step.options, after=after, title=title, profile=step.profile, device=step.device)

    def source(self) -> PlannedStep:
        """The source line: the model as the user gave it, fine-tuned if the recipe says so."""
        last = self.step("source", self.recipe.model, after=None)
        for step in self.recipe.steps:
            if step.stage in SOURCE_STAGES:
                last = self.step(step.stage, step.options, after=last, title=step.title)
        return last

    def continue_with(self, start: PlannedStep, *, only: Format | None = None) -> PlannedStep:
        """Apply the recipe's steps to a model; `only` keeps those that consume this format, and the export."""
        last = start
        for step in self.recipe.steps:
            stage = get_stage(step.stage)
            if step.stage in SOURCE_STAGES:
                continue
            if only and stage.consumes != only and step.stage != "export":
                continue
            last = self.step(step.stage, step.options, after=last, title=step.title)
        return last

    def export_of(self, start: PlannedStep) -> PlannedStep:
        """The fp32 graph of a model, with the recipe's export options."""
        step = next(step for step in self.recipe.steps if step.stage == "export")
        return self.step("export", step.options, after=start)


def is_auto(stage: str, options: Record) -> bool:
    """Whether a step leaves its shapes to a search."""
    return stage == "prune" and getattr(options, "blocks", None) == "auto"


def make_plan(recipe: "Recipe", images: Mapping[Role, "ImageSet"], profiles: list[TargetProfile]) -> Plan:
    """Compute every step and key of a recipe. Nothing runs, nothing heavy is imported.

    images: the roles opened. profiles: the targets, loaded.
    """
    planner = Planner(recipe, images)
    source = planner.source()
    graph = planner.continue_with(source)
    unpruned_graph = planner.continue_with(source, only=Format.ONNX)
    compressed = graph.line()[len(source.line()) :]
    targets = tuple(_plan_target(planner, profile, source, graph, unpruned_graph) for profile in profiles)
    return Plan(recipe=recipe, images=images, source=source, compressed=compressed, targets=targets)


def graph_precision(graph: PlannedStep) -> str:
    """What precision the graph that is compiled holds: that of the last quantize step, else fp32."""
    quantize = [step for step in graph.line() if step.stage == "quantize"]
    return str(getattr(quantize[-1].options, "precision", "int8")) if quantize else "fp32"


def _plan_target(
    planner: Planner,
    profile: TargetProfile,
    source: PlannedStep,
    graph: PlannedStep,
    unpruned_graph: PlannedStep,
) -> TargetPlan:
    from targets.facts import fingerprint, probe
    from targets.profile import refuse_image_size, refuse_unsupported, usable_runtimes

    refuse_unsupported(profile)
    refuse_image_size(profile, planner.recipe.model.size)
    facts = probe()
    device = fingerprint(facts)
    recipe = planner.recipe
    wanted = recipe.runtimes
    usable, passed_over = [], []
    for choice, reason in usable_runtimes(profile):
        if wanted is not None and choice.name not in wanted:
            passed_over.append((choice.name, "not among the recipe's runtimes"))
        elif reason is not None:
            passed_over.append((choice.name, reason))
        else:
            usable.append(choice)
    if wanted is not None:
        for name in wanted:
            if name not in {choice.name for choice in profile.runtimes}:
                known = ", ".join(choice.name for choice in profile.runtimes)
                raise InputError(f"target {profile.name!r} has no runtime {name!r}; it has {known}")
    precision = graph_precision(graph)
    fit = [choice for choice in usable if precision in choice.precisions]
    if not fit:
        why = "; ".join(f"{name}: {reason}" for name, reason in passed_over) or f"none of its runtimes runs {precision}"
        raise InputError(f"target {profile.name!r} cannot be built here: {why}; `vitrim doctor` says what to install")

    def compile_step(after: PlannedStep, runtime: str, precision: str, batch: int, what: str) -> PlannedStep:
        options = get_stage("compile").options(
            runtime=runtime, precision=precision, batch=batch, threads=profile.threads
        )
        title = f"compile {what}: {runtime} {precision}, batch {batch}"
        return planner.step("compile", options, after=after, title=title, profile=profile, device=device)

    def candidates(batch: int) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(
                runtime=choice.name,
                precision=hint,
                batch=batch,
                engine=compile_step(graph, choice.name, hint, batch, "engine"),
                unpruned=compile_step(unpruned_graph, choice.name, hint, batch, "unpruned"),
            )
            for choice in fit
            for hint in _precisions(precision, choice.precisions, facts)
        )

    first = next((choice for choice in usable if "fp32" in choice.precisions), None)
    if first is None:
        raise InputError(f"target {profile.name!r} has no usable runtime in fp32 for the baseline")
    budget = recipe.budget_for(profile)
    if graph.searched:
        needs_a_limit(budget)
    exported = planner.export_of(source)
    batches = sorted({profile.batch, *recipe.measure.batches})
    return TargetPlan(
        profile=profile,
        budget=budget,
        facts=facts,
        candidates=candidates(profile.batch),
        baselines={batch: compile_step(exported, first.name, "fp32", batch, "baseline") for batch in batches},
        other_batches={batch: candidates(batch) for batch in batches if batch != profile.batch},
        passed_over=tuple(passed_over),
    )


def _precisions(graph: str, legal: tuple[str, ...], facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Precisions to try for a graph: its own, and bf16 for an fp32 graph where the CPU computes in it."""
    isa = set(facts["instruction_sets"])
    if graph == "fp32" and "bf16" in legal and isa & {"avx512_bf16", "amx_bf16"}:
        return ("fp32", "bf16")
    return (graph,)
