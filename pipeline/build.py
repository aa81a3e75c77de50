"""Build: a recipe becomes an engine with its report and bundle, for every target.

plan → bring the steps into the store → choose among candidates → validate → report and bundle.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipeline.answers import Tell, engine_answers, likeness, prefixed, torch_answers
from pipeline.choose import Choice, choose
from pipeline.events import Event, Watcher, ignore
from pipeline.keys import code_digest, content_digest
from pipeline.pixels import INPUTS
from pipeline.plan import Candidate, Plan, PlannedStep, Planner, TargetPlan, make_plan
from pipeline.reference import Reference, spec_in
from pipeline.report.compose import Built, compose
from pipeline.report.record import Report
from pipeline.runner import Runner
from pipeline.search.replan import replan, reshaping_after, searched_step
from pipeline.search.search import Search
from pipeline.search.workbench import Workbench
from pipeline.store import Store
from pipeline.validation import Engines, Subject, Validation, validate
from stages.artifact import Artifact, Format
from stages.data.images import ImageSet, check_labels, check_roles, open_images
from stages.prune.options import PruneOptions, reshaped
from stages.stage import Role
from stages.vit.spec import ViTSpec
from targets.errors import InputError
from targets.profile import load_profile
from targets.record import digest_of

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from pipeline.search.record import Decision

AGREEMENT_IMAGES = 512
"""images of `select` that stages are compared on, at most"""
CHECKS = 3
"""steps of the display after the planned ones: stages compared, candidates compared, engine validated"""
ENGINES = 3
"""that are compiled for each further batch size: baseline, unpruned, engine"""
MEASURING_CODE = (
    "pipeline/validation.py",
    "pipeline/answers.py",
    "pipeline/pixels.py",
    "pipeline/statistics.py",
    "pipeline/features.py",
    "targets/measure",
    "targets/agent",
)


def plan_recipe(recipe: "Recipe", store: Store, *, watch: Watcher = ignore) -> Plan:
    """Open and check the images, load the targets, compute every key. Nothing runs."""
    texts = recipe.measure.text_embeddings
    if texts is not None and not texts.is_file():
        raise InputError(f"measure.text_embeddings: there is no file {str(texts)!r}")
    profiles = [load_profile(name) for name in recipe.targets]
    index = store.root / "images.index"

    def tell(message: str, share: float | None) -> None:
        watch(Event(kind="progress", step="reading images", message=message, share=share))

    images = {role: open_images(source, role, index_cache=index, tell=tell) for role, source in recipe.images().items()}
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
    total += sum(CHECKS + ENGINES * len(target.other_batches) for target in plan.targets)
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
        target.profile.name: _TargetBuild(plan=plan, target=target, runner=runner, reuse=resume).run(
            output / target.profile.name, command
        )
        for target in plan.targets
    }


@dataclass(kw_only=True)
class _TargetBuild:
    """The work for one target."""

    plan: Plan
    target: TargetPlan
    runner: Runner
    reuse: bool
    pair: "Choice | None" = None
    """how runtime and precision were chosen before a search"""

    @property
    def _pixels(self) -> Path:
        return self.runner.store.root / "pixels"

    def run(self, output: Path, command: str) -> Report:
        from pipeline.bundling import write_bundle_of
        from pipeline.report.files import write_report

        self.runner.target = self.target.profile.name
        self.runner.bring(self.plan.source)
        before = self._spec(self.plan.source)
        self._check_labels(before)
        self._check_search(before)
        decision = self._search(before) if searched_step(self.plan) else None
        for step in self.target.steps():
            self.runner.bring(step)
        baseline = self._engine(self.target.baselines[self.target.profile.batch])
        lazy = self._reference(baseline, before)
        agreements = self._check("compare stages", lambda tell: self._stage_agreements(lazy, tell))
        choice = self._check("compare candidates", lambda tell: self._choose(lazy, baseline, tell))
        choice = choice.joined_with(self.pair)
        winner = next(one for one in self.target.candidates if one.name == choice.winner)
        subject = self._subject(winner, before)
        key = self._validation_key(winner)
        kept = self._kept("validation", key, Validation)
        validation = self._check(
            "validate engine", lambda tell: kept or self._validate(subject, key, tell), cached=kept is not None
        )
        engine = self.runner.bring(winner.engine)
        built = Built(
            plan=self.plan,
            target=self.target,
            winner=winner,
            choice=choice,
            validation=validation,
            before=before,
            after=self._spec(winner.engine),
            bytes_before=_engine_bytes(self.runner.bring(self.target.baselines[winner.batch])),
            bytes_after=_engine_bytes(engine),
            steps=[(step.title, self.runner.bring(step)) for step in winner.engine.line()],
            agreements=agreements,
            engine_facts=_engine_facts(engine),
            reused=("validation",) if kept else (),
            versions=_versions(),
            command=command,
            recipe_text=self.plan.recipe.text,
            decision=decision,
        )
        report = compose(built)
        write_report(output, report)
        write_bundle_of(
            output / "bundle",
            report=report,
            engine=engine,
            graph=self._graph(winner),
            spec_folder=self._model(winner.engine).folder,
        )
        return report

    def _check_labels(self, before: ViTSpec) -> None:
        """Refuse labels that the answers cannot have, as soon as it is known what they can."""
        evaluate, texts = self.plan.images.get(Role.EVALUATE), self.plan.recipe.measure.text_embeddings
        if evaluate is None:
            return
        if texts is not None:
            from pipeline.features import load_text_embeddings

            check_labels(evaluate, len(load_text_embeddings(texts)))
        elif before.classes:
            check_labels(evaluate, before.classes)

    def _check_search(self, before: ViTSpec) -> None:
        """Refuse what a search cannot try before anything is built for it."""
        step = searched_step(self.plan)
        if step is not None and isinstance(step.options, PruneOptions):
            reshaped(step.options, before)

    # Choosing.

    def _reference(self, baseline: Path, before: ViTSpec) -> Reference:
        images = self._select()
        some = images.subset(range(min(len(images), AGREEMENT_IMAGES)))
        return Reference(images=some, baseline=baseline, spec=before, folder=self._pixels)

    def _stage_agreements(self, reference: Reference, tell: Tell) -> dict[str, tuple[float, float | None]]:
        """Agreement with the source on `select` after every step of the compressed line that changed the model."""
        found: dict[str, tuple[float, float | None]] = {}
        select = self.plan.images.get(Role.SELECT)
        if select is None:
            return found
        for step in self.plan.compressed:
            artifact = self.runner.bring(step)
            if step.stage == "export":
                continue  # parity with torch is checked there: its answers are those of the step before
            key = digest_of(
                [step.key, self.target.baselines[self.target.profile.batch].key, reference.images.fingerprint]
            )
            kept = self.runner.store.get_record("agreement", key)
            if kept is None:
                kept = self._agreement(artifact, reference, prefixed(tell, step.title))
                self.runner.store.put_record("agreement", key, kept)
            found[step.key] = (kept["agreement"], kept["top1"])
        return found

    def _agreement(self, artifact: Artifact, reference: Reference, tell: Tell) -> dict[str, Any]:
        if artifact.manifest.holds == Format.VIT:
            answers = torch_answers(artifact.folder, reference.pixels_for(artifact.folder), tell=tell)
        else:
            answers = engine_answers(
                artifact.folder / "model.onnx",
                reference.pixels_for(artifact.folder),
                tell=tell,
                precision=str(artifact.manifest.options.get("precision", "fp32")),
            )
        labels = reference.images.labels
        right = (
            float((answers.argmax(axis=1) == labels).mean()) if labels is not None and reference.spec.classes else None
        )
        return {"agreement": likeness(reference.answers, answers, has_head=bool(reference.spec.classes)), "top1": right}

    def _choose(self, reference: Reference, baseline: Path, tell: Tell, *, unpruned: bool = False) -> Choice:
        """Choose among the engines, or among their unpruned counterparts."""
        candidates = {one.name: one for one in self.target.candidates}
        engines = {name: one.unpruned if unpruned else one.engine for name, one in candidates.items()}
        key = digest_of(
            [
                [one.key for one in engines.values()],
                self.target.baselines[self.target.profile.batch].key,
                reference.images.fingerprint,
                code_digest(("pipeline/choose.py", *MEASURING_CODE)),
            ]
        )
        kept: Choice | None = self._kept("choice", key, Choice)
        if kept is not None:
            return kept
        made = choose(
            candidates,
            {name: self._engine(one) for name, one in engines.items()},
            baseline=baseline,
            reference=reference.answers,
            pixels=reference.pixels_for(self._model(next(iter(engines.values()))).folder),
            baseline_pixels=reference.pixels,
            has_head=bool(reference.spec.classes),
            threads=self.target.profile.threads,
            sizes={name: _engine_bytes(self.runner.bring(one)) for name, one in engines.items()},
            tell=tell,
        )
        self.runner.store.put_record("choice", key, made.model_dump(mode="json"))
        return made

    # Searching.

    def _search(self, before: ViTSpec) -> "Decision":
        """Choose runtime and precision by the unpruned engines, then shapes for them; plans the target anew."""
        baseline = self._engine(self.target.baselines[self.target.profile.batch])
        for one in self.target.candidates:
            self.runner.bring(one.unpruned)
        lazy = self._reference(baseline, before)
        self.pair = self._check("compare runtimes", lambda tell: self._choose(lazy, baseline, tell, unpruned=True))
        candidate = next(one for one in self.target.candidates if one.name == self.pair.winner)
        step = searched_step(self.plan)
        if step is None or step.previous is None or not isinstance(step.options, PruneOptions):
            raise RuntimeError("a search needs a step that leaves its shapes to it")
        self.runner.bring(step.previous)
        bench = Workbench(
            planner=Planner(self.plan.recipe, self.plan.images),
            runner=self.runner,
            target=self.target,
            candidate=candidate,
            spec=self._spec(step.previous),
            search=step.options.search,
            later=reshaping_after(self.plan, step),
            inputs=lambda preprocess: lazy.pixels_as(preprocess).inputs(max(INPUTS, candidate.batch)),
            reuse=self.reuse,
        )
        search = Search(bench=bench, model=step.previous, step=step)
        decision = search.run(self._check)
        self.plan, self.target = replan(self.plan, self.target, decision, candidate)
        return decision

    # Validating.

    def _subject(self, winner: Candidate, before: ViTSpec) -> Subject:
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
            model=self._model(winner.engine).folder,
            spec=before,
            preprocess=self._spec(winner.engine).preprocess,
            measure=self.plan.recipe.measure,
            budget=self.target.budget,
            threads=self.target.profile.threads,
            command_bundle=lambda role, folder: self._command_bundle(role, folder, winner),
        )

    def _validate(self, subject: Subject, key: str, tell: Tell) -> Validation:
        select = self._select()
        made = validate(
            subject, select=select, evaluate=self.plan.images.get(Role.EVALUATE), pixels=self._pixels, tell=tell
        )
        self.runner.store.put_record("validation", key, made.model_dump(mode="json"))
        return made

    def _validation_key(self, winner: Candidate) -> str:
        recipe = self.plan.recipe
        batches = sorted(self.target.baselines)
        others = [
            next(one for one in self.target.other_batches[batch] if one.name == winner.name)
            for batch in batches
            if batch != winner.batch
        ]
        evaluate = self.plan.images.get(Role.EVALUATE)
        return digest_of(
            {
                "engines": [[one.engine.key, one.unpruned.key] for one in (winner, *others)],
                "baselines": [self.target.baselines[batch].key for batch in batches],
                "select": self._select().fingerprint,
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
            graph=_last(step, Format.ONNX, self.runner),
            spec_folder=_last(step, Format.VIT, self.runner).folder,
        )

    # Small things.

    def _select(self) -> ImageSet:
        for role in (Role.SELECT, Role.FIT, Role.TRAIN):
            if role in self.plan.images:
                return self.plan.images[role]
        raise InputError("the recipe needs images for data.select: candidates are compared on them")

    def _check(self, title: str, work: Any, *, cached: bool = False) -> Any:
        import time

        runner = self.runner
        runner.position += 1
        place: dict[str, Any] = {
            "target": runner.target,
            "step": title,
            "index": runner.position,
            "total": max(runner.total, runner.position),
        }
        runner.watch(Event(kind="step_started", **place))
        started = time.monotonic()
        result = work(
            lambda message, share: runner.watch(Event(kind="progress", message=message, share=share, **place))
        )
        runner.watch(Event(kind="step_finished", seconds=time.monotonic() - started, cached=cached, **place))
        return result

    def _kept(self, kind: str, key: str, record: type[Any]) -> Any:
        found = self.runner.store.get_record(kind, key) if self.reuse else None
        if found is not None:
            with suppress(ValidationError):
                return record.model_validate(found)
        return None

    def _engine(self, step: PlannedStep) -> Path:
        return self.runner.bring(step).folder

    def _spec(self, step: PlannedStep) -> ViTSpec:
        return spec_in(self._model(step).folder)

    def _model(self, step: PlannedStep) -> Artifact:
        return _last(step, Format.VIT, self.runner)

    def _graph(self, winner: Candidate) -> Artifact:
        return _last(winner.engine, Format.ONNX, self.runner)


def _last(step: PlannedStep, holds: Format, runner: Runner) -> Artifact:
    """The last artifact of a format on the way to a step."""
    for one in reversed(step.line()):
        artifact = runner.bring(one)
        if artifact.manifest.holds == holds:
            return artifact
    raise InputError(f"{step.title} does not build on a {holds}")


def _engine_bytes(artifact: Artifact) -> int:
    return sum(file.size_bytes for name, file in artifact.manifest.files.items() if name != "engine.json")


def _engine_facts(artifact: Artifact) -> Mapping[str, Any]:
    import json

    facts: Mapping[str, Any] = json.loads((artifact.folder / "engine.json").read_text())
    return facts


def _versions() -> dict[str, str]:
    import platform

    found = {"python": platform.python_version()}
    for name in (
        "vitrim",
        "torch",
        "timm",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "onnxruntime-gpu",
        "openvino",
        "nncf",
        "numpy",
    ):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


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
