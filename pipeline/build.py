"""Build: a recipe becomes an engine with its report and bundle, for every target.

plan → bring the steps into the store → choose among candidates → validate → report and bundle.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.answers import Tell
from pipeline.away import AwayBuild
from pipeline.building import MEASURING_CODE, TargetWork, engine_bytes, engine_facts, last_of, versions
from pipeline.choose import Choice, choose, pairs_of
from pipeline.events import Event, Watcher, ignore
from pipeline.floors import floor_on
from pipeline.keys import code_digest, content_digest
from pipeline.pixels import INPUTS
from pipeline.plan import AwayPlan, Candidate, Plan, TargetPlan, make_plan
from pipeline.planner import PlannedStep, Planner
from pipeline.reference import Reference
from pipeline.report.compose import Built
from pipeline.report.record import Report
from pipeline.runner import Runner
from pipeline.search.limits import UnreachableError
from pipeline.search.pairs import as_fast, better, worth_a_search
from pipeline.search.replan import replan, reshaping_after, reshaping_before, searched_step
from pipeline.search.search import Search
from pipeline.search.workbench import Workbench
from pipeline.slack import slack_of
from pipeline.store import Store
from pipeline.survivors import bring_candidates
from pipeline.validation import Engines, Subject, Validation, validate
from stages.artifact import Artifact, Format
from stages.data.images import ImageSet, check_roles, open_images
from stages.graph.described import Described
from stages.prune.options import PruneOptions, reshaped
from stages.stage import Role
from stages.vit.spec import ViTSpec
from targets.errors import InputError, StageError, WorkerError
from targets.measure.floor import Floor
from targets.profile import Budget, load_profile
from targets.record import digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.recipe import Recipe
    from pipeline.search.record import Decision


def plan_recipe(recipe: "Recipe", store: Store, *, watch: Watcher = ignore, without_images: bool = False) -> Plan:
    """Open and check the images, load the targets, compute every key. Nothing runs.

    without_images: none is looked for; what the steps make of the model's size is right, and no key is.
    """
    texts = recipe.measure.text_embeddings
    if texts is not None and not texts.is_file():
        raise InputError(f"measure.text_embeddings: there is no file {str(texts)!r}")
    profiles = [load_profile(name) for name in recipe.targets]
    index = store.root / "images.index"

    def tell(message: str, share: float | None) -> None:
        watch(Event(kind="progress", step="reading images", message=message, share=share))

    sources = recipe.images()
    if without_images:
        return make_plan(recipe, {role: ImageSet(role=role, items=(), places=()) for role in sources}, profiles)
    images = {role: open_images(source, role, index_cache=index, tell=tell) for role, source in sources.items()}
    check_roles(images)
    return make_plan(recipe, images, profiles)


def build(
    recipe: "Recipe",
    *,
    store: Store,
    output: Path,
    resume: bool = True,
    watch: Watcher = ignore,
    command: str = "",
) -> dict[str, Report]:
    """Build every target of a recipe; returns the reports, which also lie in `output/<target>/`.

    resume: take over what is finished in the store. Raises InputError for bad input, StageError and WorkerError where
    something that was tried failed. An interruption at any moment costs the running step only.
    """
    _check_output(output)
    plan = plan_recipe(recipe, store, watch=watch)
    total = len({step.key for target in plan.targets for step in target.steps()})
    total += sum(target.checks for target in plan.targets)
    runner = Runner(
        store=store,
        images=plan.images,
        sources=recipe.images(),
        seed=recipe.seed,
        watch=watch,
        fresh=not resume,
        total=total,
    )
    return {
        target.profile.name: (
            AwayBuild(plan=plan, target=target, runner=runner, reuse=resume)
            if isinstance(target, AwayPlan)
            else _TargetBuild(plan=plan, target=target, runner=runner, reuse=resume)
        ).run(output / target.profile.name, command)
        for target in plan.targets
    }


@dataclass(kw_only=True)
class _TargetBuild(TargetWork):
    """The work for one target that is at hand."""

    target: TargetPlan
    pair: "Choice | None" = None
    """how runtime and precision were chosen before a search"""
    searched: "Mapping[str, str]" = field(default_factory=dict)
    """by candidate, why it lost although its shapes were searched, too"""

    def run(self, output: Path, command: str) -> Report:
        before = self.begin()
        self._check_search(before)
        decision = self._search(before) if searched_step(self.plan) else None
        self.target = bring_candidates(self.runner, self.target, self.target.ends_of)
        for step in self.target.steps():
            self.runner.bring(step)
        baseline = self._engine(self._baseline)
        lazy = self.reference(baseline, self.runner.contents(self._baseline), before)
        choice = self.check("compare candidates", lambda tell: self._choose(lazy, baseline, tell))
        choice = choice.joined_with(self.pair, self.searched)
        winner = next(one for one in self.target.candidates if one.name == choice.winner)
        agreements = self.check("compare stages", lambda tell: self.stage_agreements(winner.graph, lazy, tell))
        subject = self._subject(winner, before)
        validation, reused = self.validated(
            "validate engine", self._validation_key(winner), lambda tell: self._validate(subject, tell)
        )
        engine = self.runner.bring(winner.engine)
        built = Built(
            plan=self.plan,
            target=self.target,
            winner=winner,
            choice=choice,
            validation=validation,
            before=before,
            after=self.spec_of(winner.engine),
            bytes_before=engine_bytes(self.runner.bring(self.target.baselines[winner.batch])),
            bytes_after=engine_bytes(engine),
            steps=[(step.title, self.runner.bring(step)) for step in winner.engine.line()],
            agreements=agreements,
            engine_facts=engine_facts(engine),
            reused=("validation",) if reused else (),
            versions=versions(),
            command=command,
            recipe_text=self.plan.recipe.text,
            decision=decision,
        )
        described = self.described(winner.engine)
        return self.finish(output, built, engine=engine, graph=self._graph(winner), described=described)

    def _check_search(self, before: Described) -> None:
        """Refuse what a search cannot try before anything is built for it."""
        step = searched_step(self.plan)
        if step is not None and isinstance(step.options, PruneOptions) and isinstance(before, ViTSpec):
            reshaped(step.options, reshaping_before(self.plan, step)(before))

    # Choosing.

    def _choose(self, reference: Reference, baseline: Path, tell: Tell, *, unpruned: bool = False) -> Choice:
        """Choose among the engines, or among their unpruned counterparts."""
        candidates = {one.name: one for one in self.target.candidates}
        engines = {name: one.unpruned if unpruned else one.engine for name, one in candidates.items()}
        limits = Budget() if unpruned else self.target.budget  # the unpruned need not keep them
        key = digest_of(
            [
                [self.runner.contents(one) for one in engines.values()],
                reference.key,
                reference.images.fingerprint,
                slack_of(self.target.budget),
                limits.model_dump(mode="json"),
                code_digest(("pipeline/choose.py", "pipeline/contest.py", *MEASURING_CODE)),
            ]
        )
        kept: Choice | None = self.kept("choice", key, Choice)
        if kept is not None:
            return kept
        made = choose(
            candidates,
            {name: self._engine(one) for name, one in engines.items()},
            baseline=baseline,
            reference=reference.answers,
            pixels=reference.pixels_for(self.described(next(iter(engines.values())))),
            baseline_pixels=reference.pixels,
            has_head=bool(reference.spec.classes),
            threads=self.target.profile.threads,
            sizes={name: engine_bytes(self.runner.bring(one)) for name, one in engines.items()},
            slack=slack_of(self.target.budget),
            budget=limits,
            tell=tell,
        )
        self.runner.store.put_record("choice", key, made.model_dump(mode="json"))
        return made

    # Searching.

    def _search(self, before: Described) -> "Decision":
        """Choose runtime and precision by the unpruned engines, then shapes for them; plans the target anew.

        A second pair is searched where it may still win; see `pipeline.search.pairs`.
        """
        baseline = self._engine(self._baseline)
        self.target = bring_candidates(self.runner, self.target, lambda one: (one.unpruned,))
        lazy = self.reference(baseline, self.runner.contents(self._baseline), before)
        choice = self.check("compare runtimes", lambda tell: self._choose(lazy, baseline, tell, unpruned=True))
        self.pair = choice
        first, others = pairs_of(choice)
        decisions = {first.name: self._searched(first.name, lazy, before)}
        found = decisions[first.name]
        other = worth_a_search(first, found, others) if self._search_step()[2].search.pairs > 1 else None
        won = first
        if other is not None:
            failed = ""
            try:
                with suppress(UnreachableError):  # no shapes of it are that fast
                    limit = as_fast(first, found, other)
                    decisions[other.name] = self._searched(other.name, lazy, before, at_most=limit)
            except (InputError, StageError, WorkerError) as error:  # the first pair's shapes are there
                failed = str(error)
            won, self.searched = better(first, other, decisions, failed=failed)
        # Shapes of one pair are no good ones of the other: it may be faster by them, and over the budget or lose more.
        self.plan, self.target = replan(self.plan, self.target, decisions[won.name], {won.name})
        return decisions[won.name]

    def _searched(self, name: str, lazy: Reference, before: Described, *, at_most: float | None = None) -> "Decision":
        """Search the shapes for one candidate. at_most: share of its unpruned time that is allowed, if less."""
        candidate = next(one for one in self.target.candidates if one.name == name)
        step, model, options = self._search_step()
        self.runner.bring(model)
        bench = Workbench(
            planner=Planner(self.plan.recipe, self.plan.images),
            runner=self.runner,
            target=self.target,
            candidate=candidate,
            spec=_vit(self.spec_of(model)),
            source=_vit(before),
            search=options.search,
            later=reshaping_after(self.plan, step),
            inputs=lambda preprocess: lazy.pixels_as(preprocess).inputs(max(INPUTS, candidate.batch)),
            reuse=self.reuse,
            refit=options.refit and options.repair == "sequential",
            take_back=options.take_back,
        )
        return Search(bench=bench, model=model, step=step, at_most=at_most).run(self.check)

    def _search_step(self) -> tuple[PlannedStep, PlannedStep, PruneOptions]:
        """The step that leaves its shapes to a search, the step before it, and what the recipe says of it."""
        step = searched_step(self.plan)
        if step is None or step.previous is None or not isinstance(step.options, PruneOptions):
            raise RuntimeError("a search needs a step that leaves its shapes to it")
        return step, step.previous, step.options

    # Validating.

    def _subject(self, winner: Candidate, before: Described) -> Subject:
        others = {
            batch: next(one for one in candidates if one.name == winner.name)
            for batch, candidates in self.target.other_batches.items()
        }
        picked = {winner.batch: winner, **others}
        engines = Engines(
            baseline={batch: self._engine(self.target.baselines[batch]) for batch in picked},
            unpruned={batch: self._engine(one.unpruned) for batch, one in picked.items()},
            engine={batch: self._engine(one.engine) for batch, one in picked.items()},
        )
        return Subject(
            engines=engines,
            batch=winner.batch,
            precision=winner.precision,
            model=self.model_of(winner.engine),
            source_graph=last_of(self.plan.source, Format.ONNX, self.runner).folder / "model.onnx"
            if self.model_of(winner.engine) is None
            else None,
            graph=self._graph(winner).folder / "model.onnx",
            held=str(getattr(winner.graph.options, "precision", "fp32")),
            runtime=winner.runtime,
            spec=before,
            preprocess=self.spec_of(winner.engine).preprocess,
            measure=self.plan.recipe.measure,
            budget=self.target.budget,
            threads=self.target.profile.threads,
            floors={
                role: {batch: self._floor(spec, runtime, precision, batch).ms for batch in picked}
                for role, spec, runtime, precision in (
                    ("baseline", before, str(getattr(self._baseline.options, "runtime", "")), "fp32"),
                    ("unpruned", before, winner.runtime, winner.precision),
                    ("engine", self.spec_of(winner.engine), winner.runtime, winner.precision),
                )
            },
            command_bundle=lambda role, folder: self._command_bundle(role, folder, winner),
        )

    def _floor(self, spec: Described, runtime: str, precision: str, batch: int) -> Floor:
        return floor_on(
            self.target.profile, spec, precision=precision, batch=batch, runtime=runtime, facts=self.target.facts
        )

    def _validate(self, subject: Subject, tell: Tell) -> Validation:
        evaluate = self.plan.images.get(Role.EVALUATE)
        return validate(subject, select=self.select(), evaluate=evaluate, pixels=self.pixels, tell=tell)

    def _validation_key(self, winner: Candidate) -> str:
        recipe, contents = self.plan.recipe, self.runner.contents
        batches = sorted(self.target.baselines)
        others = [
            next(one for one in self.target.other_batches[batch] if one.name == winner.name)
            for batch in batches
            if batch != winner.batch
        ]
        evaluate = self.plan.images.get(Role.EVALUATE)
        return digest_of(
            {
                "engines": [[contents(one.engine), contents(one.unpruned)] for one in (winner, *others)],
                "baselines": [contents(self.target.baselines[batch]) for batch in batches],
                "select": self.select().fingerprint,
                "evaluate": evaluate.fingerprint if evaluate else None,
                "measure": recipe.measure.model_dump(mode="json"),
                "texts": content_digest(recipe.measure.text_embeddings) if recipe.measure.text_embeddings else None,
                "budget": self.target.budget.accuracy_drop_points,
                "code": code_digest(MEASURING_CODE),
            }
        )

    def _command_bundle(self, role: str, folder: Path, winner: Candidate) -> None:
        from pipeline.bundling import write_plain_bundle

        step = winner.engine if role == "engine" else self.target.baselines[winner.batch]
        engine = self.runner.bring(step)
        write_plain_bundle(
            folder,
            engine=engine,
            graph=last_of(step, Format.ONNX, self.runner),
            spec_folder=self.described(step),
        )

    # Small things.

    @property
    def _baseline(self) -> PlannedStep:
        return self.target.baselines[self.target.profile.batch]

    def _engine(self, step: PlannedStep) -> Path:
        return self.runner.bring(step).folder

    def _graph(self, winner: Candidate) -> Artifact:
        return last_of(winner.engine, Format.ONNX, self.runner)


def _vit(model: Described) -> ViTSpec:
    if not isinstance(model, ViTSpec):
        raise RuntimeError("shapes of a graph are not searched: the recipe would have been refused")
    return model


def _check_output(output: Path) -> None:
    """Refuse an output folder that cannot be written before any work is done."""
    import os

    folder = output
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(
            f"output {str(output)!r} cannot be a folder: {str(folder)!r} is a file; choose another with --output"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"output {str(output)!r} cannot be written: {str(folder)!r} is read-only; choose another with --output"
        )
