"""Plan: the steps of a recipe with their keys, for every target, before anything runs.

Three lines lead to engines. The source line ends in the unpruned model; the compressed line continues it.

    source → finetune* ──► prune, distil … ──► export ──► quantize ──► compile    engine
                      └──► export ──► quantize (the same options) ──► compile     unpruned
                      └──► export ──► compile (first runtime, fp32)               baseline

quantize_aware, which is export and quantize with a training between, stands for these two in the unpruned line.
Steps with equal keys are one step: targets and lines share what they have in common. For a target that is not at hand
there is nothing to compare with: its graph is made, and its engine where that can be built ahead of time.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.planner import PlannedStep, Planner
from pipeline.search.limits import needs_a_limit
from pipeline.slack import slack_of
from stages.artifact import Format
from stages.catalog import get_stage
from stages.stage import Role
from targets.errors import InputError
from targets.profile import Budget, RuntimeChoice, TargetProfile
from targets.runtimes.own import options_obstacle

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from stages.data.images import ImageSet

CHECKS = 3
"""steps of the display after the planned ones: stages compared, candidates compared, engine validated"""
ENGINES = 3
"""that are compiled for each further batch size: baseline, unpruned, engine"""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Runtime and precision under consideration, at one batch size: the engine and its unpruned counterpart."""

    runtime: str
    precision: str
    variant: str = ""
    """of several graphs in a precision: how much of the model is quantized"""
    batch: int
    engine: PlannedStep
    unpruned: PlannedStep

    @property
    def name(self) -> str:
        """`openvino int8 linears`."""
        return f"{self.runtime} {self.precision} {self.variant}".rstrip()

    @property
    def graph(self) -> PlannedStep:
        """End of the compressed line: what the engine is compiled from."""
        assert self.engine.previous is not None  # an engine is compiled from something
        return self.engine.previous


@dataclass(frozen=True, kw_only=True)
class TargetPlan:
    """What is built and measured for one target that is at hand."""

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

    @property
    def checks(self) -> int:
        """Steps of the display that are not planned ones."""
        return CHECKS + ENGINES * len(self.other_batches)

    def ends_of(self, candidate: Candidate) -> tuple[PlannedStep, ...]:
        """The last steps of what a candidate certainly needs.

        Of several graphs only the chosen one's unpruned counterpart is built.
        """
        one_graph = len({one.graph.key for one in self.candidates}) == 1
        return (candidate.engine, candidate.unpruned) if one_graph else (candidate.engine,)

    def steps(self) -> Iterator[PlannedStep]:
        """Every step that a build of this target certainly needs, in order, each once."""
        ends = zip(*map(self.ends_of, self.candidates), strict=True)  # first all engines, then all unpruned ones
        return each_once([*(step for some in ends for step in some), self.baselines[self.profile.batch]])


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Runtime and precision of a target that is not at hand: its graph, and its engine where it can be built here."""

    runtime: str
    precision: str
    variant: str = ""
    batch: int
    graph: PlannedStep
    engine: PlannedStep | None
    left: str
    """what the board itself has to do before it can answer"""
    options: Mapping[str, Any] = field(default_factory=dict)
    """of the runtime's own"""

    @property
    def name(self) -> str:
        """`tensorrt_rtx int8 attention`."""
        return f"{self.runtime} {self.precision} {self.variant}".rstrip()


@dataclass(frozen=True, kw_only=True)
class AwayPlan:
    """What is made for one target that is not at hand: nothing is measured on it."""

    profile: TargetProfile
    budget: Budget
    facts: Mapping[str, Any]
    """of the machine that builds"""
    away: str
    """why this machine is not the target"""
    candidates: tuple[Prepared, ...]
    """what can be built here first, then as the profile has them"""
    source_graph: PlannedStep
    """fp32 graph of the source, which answers are compared with"""
    passed_over: tuple[tuple[str, str], ...]

    @property
    def checks(self) -> int:
        """Steps of the display that are not planned ones."""
        return CHECKS

    def steps(self) -> Iterator[PlannedStep]:
        """Every step that a build of this target needs, in order, each once."""
        return each_once([*(one.engine or one.graph for one in self.candidates), self.source_graph])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is known before the first step runs."""

    recipe: "Recipe"
    images: Mapping[Role, "ImageSet"]
    source: PlannedStep
    """last step of the source line: the unpruned model"""
    compressed: tuple[PlannedStep, ...]
    """steps after the source, up to the graph that is compiled"""
    targets: tuple[TargetPlan | AwayPlan, ...]


def each_once(ends: Iterable[PlannedStep]) -> Iterator[PlannedStep]:
    """Yield the steps of several lines in order, each once."""
    seen: set[str] = set()
    for end in ends:
        for step in end.line():
            if step.key not in seen:
                seen.add(step.key)
                yield step


def make_plan(recipe: "Recipe", images: Mapping[Role, "ImageSet"], profiles: list[TargetProfile]) -> Plan:
    """Compute every step and key of a recipe. Nothing runs, nothing heavy is imported.

    images: the roles opened. profiles: the targets, loaded.
    """
    planner = Planner(recipe, images)
    source = planner.source()
    compressed = planner.continue_with(source).line()[len(source.line()) :]
    _refuse_stray_options(recipe, profiles)
    targets = tuple(_plan_target(planner, profile, source) for profile in profiles)
    return Plan(recipe=recipe, images=images, source=source, compressed=compressed, targets=targets)


def _refuse_stray_options(recipe: "Recipe", profiles: list[TargetProfile]) -> None:
    """Raise InputError for options of a runtime that no target has: they would do nothing."""
    known = {choice.name for profile in profiles for choice in profile.runtimes}
    for name in recipe.runtime_options:
        if name not in known:
            names = ", ".join(profile.name for profile in profiles)
            raise InputError(
                f"runtime_options: {name!r} is no runtime of {names}; those have {', '.join(sorted(known))}"
            )


def _plan_target(planner: Planner, profile: TargetProfile, source: PlannedStep) -> TargetPlan | AwayPlan:
    from targets.athand import away
    from targets.facts import probe
    from targets.profile import refuse_image_size, refuse_unsupported

    refuse_unsupported(profile)
    refuse_image_size(profile, planner.recipe.model.size)
    for name in planner.recipe.runtimes or ():
        if name not in {choice.name for choice in profile.runtimes}:
            known = ", ".join(choice.name for choice in profile.runtimes)
            raise InputError(f"target {profile.name!r} has no runtime {name!r}; it has {known}")
    facts = probe()
    reason = away(profile, facts)
    if reason is None:
        return _plan_here(planner, profile, source, facts)
    return _plan_away(planner, profile, source, facts, reason)


def _plan_here(planner: Planner, profile: TargetProfile, source: PlannedStep, facts: Mapping[str, Any]) -> TargetPlan:
    from targets.facts import fingerprint
    from targets.profile import usable_runtimes

    device = fingerprint(dict(facts))
    recipe = planner.recipe
    usable, passed_over = [], []
    for found, reason in usable_runtimes(profile):
        choice = recipe.with_options(found, batch=profile.batch)
        if not _wanted(recipe, choice):
            passed_over.append((choice.name, NOT_WANTED))
        elif reason is not None:
            passed_over.append((choice.name, reason))
        else:
            usable.append(choice)
    needs = _needs(usable, facts)
    asked = _asked(planner, usable, facts)
    budget = recipe.budget_for(profile)
    agreement = _agreement(budget)
    graphs = {
        (held, variant): (
            planner.continue_with(source, needs=needs, precision=held, variant=variant, agreement=agreement),
            planner.continue_with(
                source, only=Format.ONNX, needs=needs, precision=held, variant=variant, agreement=agreement
            ),
        )
        for held, variant in dict.fromkeys((_held(choice, precision), variant) for choice, precision, variant in asked)
    }

    def compile_step(
        after: PlannedStep, choice: RuntimeChoice, precision: str, variant: str, batch: int, what: str
    ) -> PlannedStep:
        wrong = options_obstacle(choice.name, choice.options, batch=batch)
        if wrong is not None:
            raise InputError(f"target {profile.name!r} at batch {batch}: {wrong}")
        options = get_stage("compile").options(
            runtime=choice.name,
            precision=precision,
            batch=batch,
            threads=profile.threads,
            cores=profile.cores,
            hint=choice.hint,
            streams=choice.streams,
            options=choice.options,
        )
        rung = f"{precision} {variant}".rstrip()
        title = f"compile {what}: {choice.name} {rung}, batch {batch}"
        return planner.step("compile", options, after=after, title=title, profile=profile, device=device)

    def candidates(batch: int) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(
                runtime=choice.name,
                precision=precision,
                variant=variant,
                batch=batch,
                engine=compile_step(graph, choice, precision, variant, batch, "engine"),
                unpruned=compile_step(unpruned, choice, precision, variant, batch, "unpruned"),
            )
            for choice, precision, variant in asked
            for graph, unpruned in [graphs[_held(choice, precision), variant]]
        )

    passed_over += _lacking(planner, usable, asked)
    if not asked:
        why = "; ".join(f"{name}: {reason}" for name, reason in passed_over)
        raise InputError(f"target {profile.name!r} cannot be built here: {why}; `vitrim doctor` says what to install")
    first = next((choice for choice in usable if "fp32" in choice.precisions), None)
    if first is None:
        raise InputError(f"target {profile.name!r} has no usable runtime in fp32 for the baseline")
    if any(graph.searched for graph, _ in graphs.values()):
        needs_a_limit(budget)
    exported = planner.export_of(source)
    batches = sorted({profile.batch, *recipe.measure.batches})
    return TargetPlan(
        profile=profile,
        budget=budget,
        facts=facts,
        candidates=candidates(profile.batch),
        baselines={batch: compile_step(exported, first, "fp32", "", batch, "baseline") for batch in batches},
        other_batches={batch: candidates(batch) for batch in batches if batch != profile.batch},
        passed_over=tuple(passed_over),
    )


VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""instruction sets of x86 that add products of 8 bits without overflow"""
NOT_WANTED = "not among the recipe's runtimes"


def _plan_away(
    planner: Planner, profile: TargetProfile, source: PlannedStep, facts: Mapping[str, Any], away: str
) -> AwayPlan:
    """Plan all legal candidates; what can be built without the board comes first."""
    from targets.athand import left_to_do

    recipe = planner.recipe
    choices, passed_over = [], []
    for choice in profile.runtimes:
        if _wanted(recipe, choice):
            choices.append(recipe.with_options(choice, batch=profile.batch))
        else:
            passed_over.append((choice.name, NOT_WANTED))
    needs = _needs(choices, profile.board.model_dump())
    asked = _asked(planner, choices, None)
    budget = recipe.budget_for(profile)
    graphs = {
        (held, variant): planner.continue_with(
            source, needs=needs, precision=held, variant=variant, agreement=_agreement(budget)
        )
        for held, variant in dict.fromkeys((_held(choice, precision), variant) for choice, precision, variant in asked)
    }
    if any(graph.searched for graph in graphs.values()):
        raise InputError(
            f"target {profile.name!r} is not at hand ({away}), and prune with blocks: auto chooses shapes by "
            "measurement; write the shapes into the recipe, e.g. those of the report of a target at hand"
        )
    candidates = []
    for choice, precision, variant in asked:
        built, left = left_to_do(profile, choice)
        graph = graphs[_held(choice, precision), variant]
        candidates.append(
            Prepared(
                runtime=choice.name,
                precision=precision,
                variant=variant,
                batch=profile.batch,
                graph=graph,
                engine=_ahead(planner, profile, choice, precision, variant, graph) if built else None,
                left=left,
                options=choice.options,
            )
        )
    passed_over += _lacking(planner, choices, asked)
    if not candidates:
        why = "; ".join(f"{name}: {reason}" for name, reason in passed_over)
        raise InputError(f"nothing can be made for target {profile.name!r}: {why}")
    return AwayPlan(
        profile=profile,
        budget=budget,
        facts=facts,
        away=away,
        candidates=tuple(sorted(candidates, key=lambda one: one.engine is None)),
        source_graph=planner.export_of(source),
        passed_over=tuple(passed_over),
    )


def _ahead(
    planner: Planner, profile: TargetProfile, choice: RuntimeChoice, precision: str, variant: str, graph: PlannedStep
) -> PlannedStep:
    """The step that builds an engine for a GPU that is elsewhere."""
    assert profile.board.gpu is not None  # else nothing is built ahead of time
    capability = profile.board.gpu.compute_capability.value
    options = get_stage("compile").options(
        runtime=choice.name,
        precision=precision,
        batch=profile.batch,
        options=choice.options,
        compute_capability=capability,
    )
    rung = f"{precision} {variant}".rstrip()
    title = f"compile engine: {choice.name} {rung}, batch {profile.batch}, for {profile.name}"
    return planner.step("compile", options, after=graph, title=title, profile=profile)


def _agreement(budget: Budget) -> float:
    """Share of the images of `select` on which a quantized graph must answer as before."""
    return max(round(1 - slack_of(budget), 6), 1e-6)  # a budget of 100 points asks for nothing


def _wanted(recipe: "Recipe", choice: RuntimeChoice) -> bool:
    return recipe.runtimes is None or choice.name in recipe.runtimes


def _needs(choices: Iterable[RuntimeChoice], processor: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a graph must be for the target, by precision: options of the step that makes it.

    processor: architecture and instruction sets of what runs it.
    """
    from targets.runtimes.nvidia.capability import LEGAL

    nvidia = [choice for choice in choices if choice.name in LEGAL]
    if nvidia:  # the TensorRTs take no other zero points than 0, and run in fp32 what the graph holds in fp32
        rest = {"rest": "float16"} if any("fp16" in choice.precisions for choice in nvidia) else {}
        return {"int8": {"symmetric": True, **rest}, "fp8": rest}
    saturates = processor["architecture"] == "x86_64" and not VNNI & set(processor["instruction_sets"])
    return {"int8": {"half_range": True}} if saturates else {}


def _asked(
    planner: Planner, choices: Iterable[RuntimeChoice], facts: Mapping[str, Any] | None
) -> list[tuple[RuntimeChoice, str, str]]:
    """Runtimes with the precisions to try: the recipe's one, or for `auto` every one that the target has, by variant.

    facts: of the CPU that runs what is built; what a runtime makes of an fp32 graph when told to is tried, too, bf16
    where that CPU computes in it. None: the target is not at hand.
    """
    from targets.runtimes.nvidia.capability import LEGAL

    if planner.leaves_precision_open:
        choices = list(choices)
        return [
            (choice, precision, variant)
            for choice in choices
            for precision in choice.precisions
            for variant in planner.variants(precision, symmetric=any(one.name in LEGAL for one in choices))
        ]
    wide = facts and {"avx512_bf16", "amx_bf16"} & set(facts["instruction_sets"])
    hints = [one for one in ("bf16", "fp16") if planner.precision == "fp32" and facts and (one != "bf16" or wide)]
    return [
        (choice, precision, "")
        for choice in choices
        for precision in (planner.precision, *hints)
        if precision in choice.precisions and (precision not in hints or _held(choice, precision) == "fp32")
    ]


def _lacking(
    planner: Planner, choices: Iterable[RuntimeChoice], asked: Iterable[tuple[RuntimeChoice, str, str]]
) -> list[tuple[str, str]]:
    """Runtimes that the recipe's precision leaves without a candidate, with the reason."""
    having = {choice.name for choice, _, _ in asked}
    return [
        (choice.name, f"it does not run {planner.precision} there; it runs {', '.join(choice.precisions)}")
        for choice in choices
        if choice.name not in having
    ]


def _held(choice: RuntimeChoice, precision: str) -> str:
    """What the graph holds for a runtime to run in a precision: to OpenVINO some are a hint for an fp32 graph."""
    from targets.runtimes.intel.options import BY_HINT

    return "fp32" if precision in BY_HINT.get(choice.name, ()) else precision
