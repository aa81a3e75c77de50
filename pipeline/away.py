"""Build for a target that is not at hand: its graph, its engine where that can be built here, and no measurement.

What can be known without the board is: the graph answers like torch, and how accurate it is in another runtime, on this
machine's processor. Both are told as a proxy. The choice among candidates is a rule: an engine that could be built here
comes first, then the profile's preferred precision among those that agree with the source.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.answers import Tell, prefixed
from pipeline.building import MEASURING_CODE, TargetWork, engine_bytes, engine_facts, last_of, versions
from pipeline.choose import Choice
from pipeline.keys import code_digest, content_digest
from pipeline.plan import AwayPlan, Prepared
from pipeline.planner import PlannedStep
from pipeline.reference import Reference
from pipeline.report.compose import Built
from pipeline.report.record import CandidateRow, Report
from pipeline.slack import slack_of
from pipeline.survivors import leave_spare
from pipeline.validation import Engines, Subject, Validation, validate_graph
from stages.artifact import Artifact, Format
from stages.graph.described import Described
from stages.stage import Role
from targets.profile import preference
from targets.record import digest_of

GRAPH_FILE = "model.onnx"


@dataclass(kw_only=True)
class AwayBuild(TargetWork):
    """The work for one target that is not at hand."""

    target: AwayPlan

    def run(self, output: Path, command: str) -> Report:
        """Make everything that can be made here; returns the report, which also lies in the output folder."""
        before = self.begin()
        self.target = leave_spare(self.runner, self.target)
        for step in self.target.steps():
            self.runner.bring(step)
        source = self.target.source_graph
        reference = self.reference(self._file(source), self.runner.contents(source), before)
        choice = self.check("choose by rule", lambda tell: self._choice(reference, tell))
        winner = next(one for one in self.target.candidates if one.name == choice.winner)
        agreements = self.check("compare stages", lambda tell: self.stage_agreements(winner.graph, reference, tell))
        subject = self._subject(winner, before)
        held = str(getattr(winner.graph.options, "precision", "fp32"))
        validation, reused = self.validated(
            "validate graph", self._validation_key(winner), lambda tell: self._validate(subject, held, tell)
        )
        graph = self._graph(winner.graph)
        engine = self.runner.bring(winner.engine) if winner.engine else None
        built = Built(
            plan=self.plan,
            target=self.target,
            winner=winner,
            choice=choice,
            validation=validation,
            before=before,
            after=self.spec_of(winner.graph),
            bytes_before=_graph_bytes(self._graph(self.target.source_graph)),
            bytes_after=engine_bytes(engine) if engine else _graph_bytes(graph),
            steps=[(step.title, self.runner.bring(step)) for step in (winner.engine or winner.graph).line()],
            agreements=agreements,
            engine_facts=engine_facts(engine) if engine else {},
            reused=("validation",) if reused else (),
            versions=versions(),
            command=command,
            recipe_text=self.plan.recipe.text,
        )
        return self.finish(output, built, engine=engine, graph=graph, described=self.described(winner.graph))

    def _choice(self, reference: Reference, tell: Tell) -> Choice:
        """Which candidate stands in the bundle, and what there is of each."""
        agreements = {
            one.name: self.usable_agreement_of(one.graph, reference, prefixed(tell, one.name))
            for one in self.target.candidates
        }
        winner = by_rule(self.target, agreements)
        rows = []
        for one in sorted(self.target.candidates, key=lambda one: one is not winner):
            built = self.runner.bring(one.engine) if one.engine else None
            what = "its engine was built ahead of time" if built else f"the board has to {one.left}"
            rows.append(
                CandidateRow(
                    runtime=one.runtime,
                    precision=one.precision,
                    variant=one.variant,
                    p50_ms=None,
                    agreement=None if math.isnan(agreements[one.name]) else agreements[one.name],
                    bytes=engine_bytes(built) if built else None,
                    chosen=one is winner,
                    reason=f"by rule, nothing was measured: {what}" if one is winner else what,
                )
            )
        return Choice(winner=winner.name, rows=tuple(rows))

    def _subject(self, winner: Prepared, before: Described) -> Subject:
        return Subject(
            engines=Engines(
                baseline={winner.batch: self._file(self.target.source_graph)},
                unpruned={},
                engine={winner.batch: self._file(winner.graph)},
            ),
            batch=winner.batch,
            precision=winner.precision,
            model=self.model_of(winner.graph),
            source_graph=None if self.model_of(winner.graph) else self._file(self.target.source_graph),
            held=str(getattr(winner.graph.options, "precision", "fp32")),
            spec=before,
            preprocess=self.spec_of(winner.graph).preprocess,
            measure=self.plan.recipe.measure,
            budget=self.target.budget,
            threads=None,
            floors={},
            command_bundle=lambda role, folder: self._command_bundle(role, folder, winner),
        )

    def _validate(self, subject: Subject, held: str, tell: Tell) -> Validation:
        evaluate = self.plan.images.get(Role.EVALUATE)
        return validate_graph(
            subject, held=held, select=self.select(), evaluate=evaluate, pixels=self.pixels, tell=tell
        )

    def _validation_key(self, winner: Prepared) -> str:
        recipe = self.plan.recipe
        evaluate = self.plan.images.get(Role.EVALUATE)
        texts = recipe.measure.text_embeddings
        return digest_of(
            {
                "graph": self.runner.contents(winner.graph),
                "baseline": self.runner.contents(self.target.source_graph),
                "select": self.select().fingerprint,
                "evaluate": evaluate.fingerprint if evaluate else None,
                "measure": recipe.measure.model_dump(mode="json"),
                "texts": content_digest(texts) if texts else None,
                "budget": self.target.budget.accuracy_drop_points,
                "code": code_digest(MEASURING_CODE),
            }
        )

    def _command_bundle(self, role: str, folder: Path, winner: Prepared) -> None:
        from pipeline.bundling import write_plain_bundle

        step = winner.graph if role == "engine" else self.target.source_graph
        write_plain_bundle(
            folder,
            engine=None,
            graph=self._graph(step),
            spec_folder=self.described(step),
            planned={"runtime": "onnxruntime", "precision": winner.precision if role == "engine" else "fp32"},
        )

    def _graph(self, step: PlannedStep) -> Artifact:
        return last_of(step, Format.ONNX, self.runner)

    def _file(self, step: PlannedStep) -> Path:
        return self._graph(step).folder / GRAPH_FILE


def by_rule(target: AwayPlan, agreements: Mapping[str, float]) -> Prepared:
    """Choose without a measurement. agreements: with the source, by candidate; NaN: answers that are not finite.

    Engines that could be built here come before those that could not. Among their candidates that agree with the source
    about as well as the best, the one of the profile's preferred precision (`targets.profile.preference`), then the
    first in the profile.
    """
    built = [one for one in target.candidates if one.engine] or list(target.candidates)
    finite = [one for one in built if not math.isnan(agreements[one.name])]
    best = max((agreements[one.name] for one in finite), default=0.0)
    fit = [one for one in finite if agreements[one.name] >= best - slack_of(target.budget)]
    return min(fit or built, key=lambda one: preference(target.profile, one.precision))


def _graph_bytes(graph: Artifact) -> int:
    """Size of a graph with its weights."""
    files = graph.manifest.files
    return sum(file.size_bytes for name, file in files.items() if name.startswith(GRAPH_FILE))
