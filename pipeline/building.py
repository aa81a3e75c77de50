"""What the builds of all targets share, at hand or not: the display, what is kept, specs, agreement of the stages."""

import json
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.answers import Tell, engine_answers, likeness, prefixed, torch_answers
from pipeline.events import Event
from pipeline.keys import code_digest
from pipeline.plan import AwayPlan, Plan, TargetPlan
from pipeline.planner import PlannedStep
from pipeline.plausible import told_of_source, unlike_timm
from pipeline.reference import Reference
from pipeline.report.compose import Built, compose
from pipeline.report.record import Report
from pipeline.runner import Runner
from pipeline.validation import Validation
from stages.artifact import Artifact, Format
from stages.data.images import ImageSet, check_labels, unlabelled
from stages.graph.described import Described, is_described, read_described
from stages.stage import Role
from targets.errors import InputError
from targets.record import digest_of

NO_LABELS = (
    "no image of evaluate has a label: agreement with the source is measured in the place of accuracy; give labels: "
    "FILE.csv, or folders CLASS/name.jpg, to know how many are right"
)
AGREEMENT_IMAGES = 512
"""images of `select` that stages are compared on, at most"""
MEASURING_CODE = (
    "pipeline/validation.py",
    "pipeline/parity.py",
    "pipeline/answers.py",
    "pipeline/pixels.py",
    "pipeline/told.py",
    "pipeline/statistics.py",
    "pipeline/features.py",
    "targets/measure",
    "targets/agent",
)


@dataclass(kw_only=True)
class TargetWork:
    """The work for one target."""

    plan: Plan
    target: TargetPlan | AwayPlan
    runner: Runner
    reuse: bool

    @property
    def pixels(self) -> Path:
        """Folder for decoded images."""
        return self.runner.store.root / "pixels"

    def refuse_labels(self, before: Described) -> None:
        """Refuse labels that the answers cannot have, as soon as it is known what they can."""
        evaluate, texts = self.plan.images.get(Role.EVALUATE), self.plan.recipe.measure.text_embeddings
        if evaluate is None or (self.plan.recipe.measure.metric == "auto" and unlabelled(evaluate)):
            return
        if texts is not None:
            from pipeline.features import load_text_embeddings

            check_labels(evaluate, len(load_text_embeddings(texts)))
        elif before.classes:
            check_labels(evaluate, before.classes)

    def begin(self) -> Described:
        """Bring the source; returns what is known of it."""
        self.runner.target = self.target.profile.name
        self.runner.bring(self.plan.source)
        before = self.spec_of(self.plan.source)
        self.refuse_labels(before)
        if self.target is self.plan.targets[0]:
            self.warn_of(before)
        return before

    def warn_of(self, before: Described) -> None:
        """Tell what speaks for images that are read in another way than in the source's training."""
        evaluate = self.plan.images.get(Role.EVALUATE)
        labelled = evaluate is not None and evaluate.labels is not None
        without = NO_LABELS if evaluate is not None and before.classes and unlabelled(evaluate) else None
        for message in (without, unlike_timm(before), told_of_source(self.plan.recipe, labelled)):
            if message:
                self.runner.watch(Event(kind="warning", target=self.runner.target, message=message))

    def validated(self, title: str, key: str, work: Callable[[Tell], Validation]) -> tuple[Validation, bool]:
        """What a validation finds, and whether an earlier build did it.

        key: of all that it depends on. work: does it anew.
        """
        kept: Validation | None = self.kept("validation", key, Validation)

        def validate(tell: Tell) -> Validation:
            if kept is not None:
                return kept
            made = work(tell)
            self.runner.store.put_record("validation", key, made.model_dump(mode="json"))
            return made

        return self.check(title, validate, cached=kept is not None), kept is not None

    def finish(
        self, output: Path, built: Built, *, engine: Artifact | None, graph: Artifact, described: Path
    ) -> Report:
        """Write report and bundle of a target into its folder."""
        from pipeline.bundling import write_bundle_of
        from pipeline.held import expected_of
        from pipeline.report.files import write_report

        report = compose(built)
        write_report(output, report)
        away = self.target.profile if isinstance(self.target, AwayPlan) else None
        write_bundle_of(
            output / "bundle",
            report=report,
            engine=engine,
            graph=graph,
            spec_folder=described,
            profile=away,
            options=getattr(built.winner, "options", None),
            expected=expected_of(self.target.budget, report.accuracy, built.validation.per_image),
        )
        return report

    def reference(self, baseline: Path, key: str, before: Described) -> Reference:
        """What stages and candidates are compared with: the answers of a baseline, an engine's folder or a graph."""
        images = self.select()
        some = images.subset(range(min(len(images), AGREEMENT_IMAGES)))
        return Reference(images=some, baseline=baseline, key=key, spec=before, folder=self.pixels)

    def stage_agreements(
        self, graph: PlannedStep, reference: Reference, tell: Tell
    ) -> dict[str, tuple[float, float | None]]:
        """Agreement with the source on `select` after every step up to a graph that changed the model."""
        found: dict[str, tuple[float, float | None]] = {}
        select = self.plan.images.get(Role.SELECT)
        if select is None:
            return found
        for step in graph.line()[len(self.plan.source.line()) :]:
            if step.stage != "export":  # parity with torch is checked there: its answers are those of the step before
                found[step.key] = self.agreement_of(step, reference, tell)
        return found

    def agreement_of(self, step: PlannedStep, reference: Reference, tell: Tell) -> tuple[float, float | None]:
        """Agreement of a model or graph with the source on `select`, and its top-1 where there are labels."""
        artifact = self.runner.bring(step)
        key = self._agreement_key(step, reference)
        kept = self.runner.store.get_record("agreement", key)
        if kept is None:
            kept = self._agreement(artifact, reference, prefixed(tell, step.title))
            self.runner.store.put_record("agreement", key, kept)
        return kept["agreement"], kept["top1"]

    def usable_agreement_of(self, step: PlannedStep, reference: Reference, tell: Tell) -> float:
        """The same agreement of a candidate's graph; NaN where one of its answers is not finite."""
        agreement, _ = self.agreement_of(step, reference, tell)
        kept = self.runner.store.get_record("agreement", self._agreement_key(step, reference))
        return agreement if kept is None or kept.get("finite", True) else float("nan")

    def _agreement_key(self, step: PlannedStep, reference: Reference) -> str:
        files = self.runner.contents(step)
        return digest_of([files, reference.key, reference.images.fingerprint, code_digest(("pipeline/answers.py",))])

    def _agreement(self, artifact: Artifact, reference: Reference, tell: Tell) -> dict[str, Any]:
        import numpy as np

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
        return {
            "agreement": likeness(reference.answers, answers, has_head=bool(reference.spec.classes)),
            "top1": right,
            "finite": bool(np.isfinite(answers).all()),
        }

    def select(self) -> ImageSet:
        """Images that choices are made on."""
        for role in (Role.SELECT, Role.FIT, Role.TRAIN):
            if role in self.plan.images:
                return self.plan.images[role]
        raise InputError("the recipe needs images for data.select: candidates are compared on them")

    def check(self, title: str, work: Callable[[Tell], Any], *, cached: bool = False) -> Any:
        """Do something that is no planned step, and show it as one."""
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

    def kept(self, kind: str, key: str, record: type[Any]) -> Any:
        """What the store has of an earlier build; None where it has nothing, or all is to be done anew."""
        found = self.runner.store.get_record(kind, key) if self.reuse else None
        if found is not None:
            with suppress(ValidationError):
                return record.model_validate(found)
        return None

    def spec_of(self, step: PlannedStep) -> Described:
        """What is known of the model that a step builds on."""
        return read_described(self.described(step))

    def described(self, step: PlannedStep) -> Path:
        """The last folder on the way to a step that says what the model is."""
        for one in reversed(step.line()):
            folder = self.runner.bring(one).folder
            if is_described(folder):
                return folder
        raise InputError(f"{step.title} does not build on a model")

    def model_of(self, step: PlannedStep) -> Path | None:
        """Folder of the model that a step builds on, for torch; None where there is only a graph."""
        if self.plan.source.line()[0].stage == "source_onnx":
            return None
        return last_of(step, Format.VIT, self.runner).folder


def last_of(step: PlannedStep, holds: Format, runner: Runner) -> Artifact:
    """The last artifact of a format on the way to a step."""
    for one in reversed(step.line()):
        artifact = runner.bring(one)
        if artifact.manifest.holds == holds:
            return artifact
    raise InputError(f"{step.title} does not build on a {holds}")


def engine_bytes(artifact: Artifact) -> int:
    """Size of an engine's files."""
    return sum(file.size_bytes for name, file in artifact.manifest.files.items() if name != "engine.json")


def engine_facts(artifact: Artifact) -> Mapping[str, Any]:
    """What engine.json says."""
    facts: Mapping[str, Any] = json.loads((artifact.folder / "engine.json").read_text())
    return facts


def versions() -> dict[str, str]:
    """What is installed of what a build uses."""
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
        "tensorrt",
        "tensorrt-rtx",
        "nncf",
        "numpy",
    ):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
