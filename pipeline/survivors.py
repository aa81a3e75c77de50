"""Candidates that can be made: one that fails loses with its reason, as long as another one does not fail.

Of several rungs of a precision those go on that make a graph of their own.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from pipeline.events import Event
from pipeline.plan import AwayPlan, Candidate, Prepared, TargetPlan
from pipeline.planner import PlannedStep
from pipeline.runner import Runner
from stages.artifact import Artifact
from stages.quantize.stage import MIXED_RUNG, QuantizeOptions
from targets.errors import InputError, StageError, WorkerError
from targets.record import digest_of


def bring_candidates(
    runner: Runner, target: TargetPlan, ends: Callable[[Candidate], Iterable[PlannedStep]]
) -> TargetPlan:
    """Bring what the candidates of a target need; returns the target with those that could be made.

    ends: the last steps of a candidate. What all of them build on is nobody's failure and ends the build, as does the
    failure of the last candidate; then the first one's error is raised.
    """
    needs = {one.name: [step for end in ends(one) for step in end.line()] for one in target.candidates}
    shared = set.intersection(*({step.key for step in steps} for steps in needs.values()))
    for step in next(iter(needs.values())):
        if step.key in shared:
            runner.bring(step)
    failed: dict[str, Exception] = {}
    spare: dict[str, str] = {}
    broken: dict[str, Exception] = {}

    def bring(step: PlannedStep) -> Artifact:
        if step.key in broken:  # another candidate needed it: what took minutes to fail is not tried again
            raise broken[step.key]
        try:
            return runner.bring(step)
        except (InputError, StageError, WorkerError) as error:
            broken[step.key] = error
            raise

    rungs = Rungs(bring)
    for one, (name, steps) in zip(target.candidates, needs.items(), strict=True):
        try:
            reason = next((why for end in ends(one) if (why := rungs.spare(one, end.previous)) is not None), None)
            if reason is not None:
                spare[name] = reason
                continue
            for step in steps:
                bring(step)
        except (InputError, StageError, WorkerError) as error:
            failed[name] = error
            if len(failed) == len(needs):  # a spare rung has another one that is not
                raise next(iter(failed.values())) from None
            told = f"candidate {name} is out: {error}"
            runner.watch(Event(kind="warning", target=runner.target, step=name, message=told))
    out = {**spare, **{name: f"failed: {error}" for name, error in failed.items()}}
    if not out:
        return target
    return replace(
        target,
        candidates=tuple(one for one in target.candidates if one.name not in out),
        other_batches={
            batch: tuple(one for one in others if one.name not in out) for batch, others in target.other_batches.items()
        },
        passed_over=(*target.passed_over, *out.items()),
    )


def leave_spare(runner: Runner, target: AwayPlan) -> AwayPlan:
    """Make the graphs of a target that is not at hand; returns it without the rungs that need no engine."""
    rungs = Rungs(runner.bring)
    spare = {one.name: why for one in target.candidates if (why := rungs.spare(one, one.graph)) is not None}
    return replace(
        target,
        candidates=tuple(one for one in target.candidates if one.name not in spare),
        passed_over=(*target.passed_over, *spare.items()),
    )


class Rungs:
    """What was made of a precision, by runtime, to tell which of its other rungs are still worth an engine."""

    def __init__(self, bring: Callable[[PlannedStep], Artifact]) -> None:
        self._bring = bring
        self._graphs: dict[tuple[str, str, str], str] = {}
        self._agreements: dict[tuple[str, str], dict[str, float]] = {}

    def spare(self, candidate: Candidate | Prepared, graph: PlannedStep | None) -> str | None:
        """Why a candidate need not be built; None where it must, and then its graph was made. graph: its last step.

        Layers go back to float only where no other rung of the precision holds the budget's agreement.
        """
        if not candidate.variant or graph is None or not isinstance(graph.options, QuantizeOptions):
            return None
        made = self._agreements.setdefault((candidate.runtime, candidate.precision), {})
        wanted = graph.options.least_agreement
        if candidate.variant == MIXED_RUNG and wanted is not None:
            for name, agreement in made.items():
                if agreement >= wanted:
                    return (
                        f"not needed: {name} agrees with its fp32 graph on {agreement:.1%}, "
                        f"the budget asks for {wanted:.1%}"
                    )
        manifest = self._bring(graph).manifest
        held = digest_of({name: one.sha256 for name, one in manifest.files.items() if name.startswith("model.onnx")})
        same = self._graphs.setdefault((candidate.runtime, candidate.precision, held), candidate.name)
        if same != candidate.name:
            return f"makes the same graph as {same}"
        made[candidate.name] = float(manifest.facts.get("agreement", 0.0))
        return None
