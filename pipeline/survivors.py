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

FAILURES = (InputError, StageError, WorkerError)


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
    bring = Bringing(runner)
    rungs = Rungs(bring)
    for one, (name, steps) in zip(target.candidates, needs.items(), strict=True):
        try:
            reason = next((why for end in ends(one) if (why := rungs.spare(one, end.previous)) is not None), None)
            if reason is not None:
                spare[name] = reason
                continue
            for step in steps:
                bring(step)
        except FAILURES as error:
            failed[name] = error
            rungs.forget(one)
            if len(failed) + len(spare) == len(needs):
                raise next(iter(failed.values())) from None
            warn_of_failure(runner, name, error)
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
    """Make what the candidates of a target need that is not at hand; returns it with those that could be made.

    Without the rungs that need no engine. The failure of the last candidate ends the build with the first one's error.
    """
    bring = Bringing(runner)
    rungs = Rungs(bring)
    out: dict[str, str] = {}
    for one in target.candidates:
        try:
            reason = rungs.spare(one, one.graph)
            if reason is None:
                for step in (one.engine or one.graph).line():
                    bring(step)
            else:
                out[one.name] = reason
        except FAILURES as error:
            out[one.name] = f"failed: {error}"
            if len(out) == len(target.candidates):
                raise next(iter(bring.broken.values())) from None
            rungs.forget(one)
            warn_of_failure(runner, one.name, error)
    return replace(
        target,
        candidates=tuple(one for one in target.candidates if one.name not in out),
        passed_over=(*target.passed_over, *out.items()),
    )


class Bringing:
    """Brings steps; what took minutes to fail is not tried again for another candidate."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.broken: dict[str, Exception] = {}
        """by the key of a step, the first first"""

    def __call__(self, step: PlannedStep) -> Artifact:
        """Bring a step, or raise what it failed with before."""
        if step.key in self.broken:
            raise self.broken[step.key]
        try:
            return self._runner.bring(step)
        except FAILURES as error:
            self.broken[step.key] = error
            raise


def warn_of_failure(runner: Runner, name: str, error: Exception) -> None:
    """Tell that a candidate is out."""
    told = f"candidate {name} is out: {error}"
    runner.watch(Event(kind="warning", target=runner.target, step=name, message=told))


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

    def forget(self, candidate: Candidate | Prepared) -> None:
        """A rung whose engine failed stands for no other one."""
        self._agreements.get((candidate.runtime, candidate.precision), {}).pop(candidate.name, None)
        self._graphs = {key: name for key, name in self._graphs.items() if name != candidate.name}
