"""From a plan that leaves shapes open, and a decision, to the plan of one target that runs."""

from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from typing import Any

from pipeline.plan import Plan, TargetPlan, make_plan
from pipeline.planner import PlannedStep, is_auto
from pipeline.recipe.model import Step
from pipeline.search.record import Decision
from stages.artifact import Format
from stages.catalog import get_stage
from stages.vit.spec import ViTSpec


def searched_step(plan: Plan) -> PlannedStep | None:
    """Return the step that leaves its shapes to a search."""
    return next((step for step in plan.compressed if is_auto(step.stage, step.options)), None)


def reshaping_after(plan: Plan, step: PlannedStep) -> Callable[[ViTSpec], ViTSpec]:
    """Return what the steps after this one make of a spec."""
    return _reshaping(plan.compressed[plan.compressed.index(step) + 1 :])


def reshaping_before(plan: Plan, step: PlannedStep) -> Callable[[ViTSpec], ViTSpec]:
    """Return what the steps before this one make of the source's spec; where images decide, the most that is left."""
    return _reshaping(plan.compressed[: plan.compressed.index(step)])


def _reshaping(steps: Sequence[PlannedStep]) -> Callable[[ViTSpec], ViTSpec]:
    changing = [(get_stage(one.stage), one.options) for one in steps]
    changing = [(stage, options) for stage, options in changing if stage.produces == Format.VIT and stage.reshape]

    def reshaping(spec: ViTSpec) -> ViTSpec:
        for stage, options in changing:
            assert stage.reshape is not None
            spec = stage.reshape(options, spec)
        return spec

    return reshaping


def replan(plan: Plan, target: TargetPlan, decision: Decision, names: Container[str]) -> tuple[Plan, TargetPlan]:
    """Plan one target with the shapes decided. names: of the candidates that go on."""
    searched = searched_step(plan)
    assert searched is not None
    steps: list[Step] = []
    for step in plan.recipe.steps:
        if not is_auto(step.stage, step.options):
            steps.append(step)
            continue
        if decision.size is not None:
            steps.append(_step("resize_input", size=decision.size))
        if decision.width is not None:
            steps.append(_step("prune_width", width=decision.width, method=decision.width_method))
        steps.append(step.model_copy(update={"options": step.options.replace(blocks=decision.shapes)}))
        if decision.merge:
            steps.append(_step("merge_tokens", counts=decision.merge))
    recipe = plan.recipe.model_copy(update={"steps": tuple(steps)})
    made = make_plan(recipe, plan.images, [target.profile])
    (planned,) = made.targets
    assert isinstance(planned, TargetPlan)  # a search measures, so its target is at hand
    return made, replace(
        planned,
        candidates=tuple(one for one in planned.candidates if one.name in names),
        passed_over=tuple(dict([*planned.passed_over, *target.passed_over]).items()),
        other_batches={
            batch: tuple(one for one in others if one.name in names) for batch, others in planned.other_batches.items()
        },
    )


def _step(stage: str, **options: Any) -> Step:
    return Step(stage=stage, options=get_stage(stage).options(**options), title=stage)
