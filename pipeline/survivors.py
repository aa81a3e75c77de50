"""Candidates that can be made: one that fails loses with its reason, as long as another one does not fail."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from pipeline.events import Event
from pipeline.plan import Candidate, TargetPlan
from pipeline.planner import PlannedStep
from pipeline.runner import Runner
from targets.errors import InputError, StageError, WorkerError


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
    broken: dict[str, Exception] = {}
    for name, steps in needs.items():
        try:
            for step in steps:
                if step.key in broken:  # another candidate needed it: what took minutes to fail is not tried again
                    raise broken[step.key]
                runner.bring(step)
        except (InputError, StageError, WorkerError) as error:
            failed[name] = broken[step.key] = error
            if len(failed) == len(needs):
                raise next(iter(failed.values())) from None
            told = f"candidate {name} is out: {error}"
            runner.watch(Event(kind="warning", target=runner.target, step=name, message=told))
    if not failed:
        return target
    return replace(
        target,
        candidates=tuple(one for one in target.candidates if one.name not in failed),
        other_batches={
            batch: tuple(one for one in others if one.name not in failed)
            for batch, others in target.other_batches.items()
        },
        passed_over=(*target.passed_over, *((name, f"failed: {error}") for name, error in failed.items())),
    )
