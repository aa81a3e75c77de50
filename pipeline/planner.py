"""Planned steps: a stage with its options, the steps before it, and the key of what it makes. Nothing runs."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.keys import roles_of, step_key
from stages.artifact import Format
from stages.catalog import get_stage
from stages.quantize.stage import QuantizeOptions
from stages.source_onnx.options import OnnxSourceOptions
from stages.stage import Role
from targets.errors import InputError
from targets.profile import TargetProfile
from targets.record import Record

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from pipeline.recipe.model import Step
    from stages.data.images import ImageSet

SOURCE_STAGES = ("source", "source_onnx", "finetune")
"""stages before the model that everything is compared with"""
QUANTIZERS = ("quantize", "quantize_aware")
"""stages whose precision is that of the engine"""


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
        roles = roles_of(stage, options, self.images)
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

    @property
    def leaves_precision_open(self) -> bool:
        """Whether every precision that a target runs is a candidate."""
        return any(leaves_precision_open(step.stage, step.options) for step in self.recipe.steps)

    def variants(self, precision: str, *, symmetric: bool) -> tuple[str, ...]:
        """Rungs of a precision that the recipe leaves open; symmetric: of int8 for TensorRT."""
        step = next(step for step in self.recipe.steps if leaves_precision_open(step.stage, step.options))
        assert isinstance(step.options, QuantizeOptions)
        return step.options.variants(precision, symmetric=symmetric)

    @property
    def precision(self) -> str:
        """What the recipe's graph holds: the precision of the step that quantizes, else fp32."""
        steps = [step for step in self.recipe.steps if step.stage in QUANTIZERS]
        return str(getattr(steps[-1].options, "precision", "int8")) if steps else "fp32"

    def source(self) -> PlannedStep:
        """The source line: the model as the user gave it, fine-tuned if the recipe says so."""
        first = "source_onnx" if isinstance(self.recipe.model, OnnxSourceOptions) else "source"
        last = self.step(first, self.recipe.model, after=None)
        for step in self.recipe.steps:
            if step.stage in SOURCE_STAGES:
                last = self.step(step.stage, step.options, after=last, title=step.title)
        return last

    def continue_with(
        self,
        start: PlannedStep,
        *,
        only: Format | None = None,
        needs: Mapping[str, Mapping[str, Any]] | None = None,
        precision: str | None = None,
        variant: str = "",
        agreement: float | None = None,
    ) -> PlannedStep:
        """Apply the recipe's steps to a model.

        only: keeps those that consume this format, and the export; what trains a graph becomes what makes the same one
        untrained. needs: by precision, options of the step that makes it which the target demands, whatever the recipe
        says; `rest` only where it says nothing. precision: what the graph holds; a quantize step with precision `auto`
        becomes that and its variant, fp32 leaves every one out, None one with `auto`. agreement: that the target's
        budget asks for.
        """
        last = start
        for step in untrained(self.recipe.steps) if only else self.recipe.steps:
            stage = get_stage(step.stage)
            if step.stage in SOURCE_STAGES:
                continue
            if only and stage.consumes != only and step.stage != "export":
                continue
            options, title = step.options, step.title
            if precision == "fp32" and step.stage == "quantize":
                continue
            if leaves_precision_open(step.stage, options):
                if precision is None:
                    continue
                options = options.of(precision).as_variant(variant)  # type: ignore[attr-defined]
                title = f"quantize {precision} {variant}".rstrip()
            if isinstance(options, QuantizeOptions) and agreement is not None:
                options = options.within(agreement)
            if step.stage in QUANTIZERS:
                wanted = (needs or {}).get(str(getattr(options, "precision", "")), {})
                said = getattr(options, "rest", None) is not None
                options = options.replace(**{name: one for name, one in wanted.items() if name != "rest" or not said})
            last = self.step(step.stage, options, after=last, title=title)
        return last

    def export_of(self, start: PlannedStep) -> PlannedStep:
        """The fp32 graph of a model, with the recipe's export options; a model that came as a graph is its own."""
        step = next((step for step in untrained(self.recipe.steps) if step.stage == "export"), None)
        if step is None:
            return start
        return self.step("export", step.options, after=start)


def untrained(steps: "Iterable[Step]") -> "Iterator[Step]":
    """Yield the steps, one that trains a graph as those that make the same graph of a model as it is."""
    for step in steps:
        if step.stage != "quantize_aware":
            yield step
            continue
        told = step.options.model_dump()
        export = get_stage("export").options(**{name: told[name] for name in ("opset", "batch", "outputs")})
        same = ("precision", "symmetric", "half_range", "rest", "images", "select_images")
        quantize = get_stage("quantize").options(alphas=(told["alpha"],), **{name: told[name] for name in same})
        yield step.model_copy(update={"stage": "export", "options": export, "title": "export"})
        yield step.model_copy(update={"stage": "quantize", "options": quantize, "title": "quantize"})


def is_auto(stage: str, options: Record) -> bool:
    """Whether a step leaves its shapes to a search."""
    return stage == "prune" and getattr(options, "blocks", None) == "auto"


def leaves_precision_open(stage: str, options: Record) -> bool:
    """Whether a step stands for several precisions."""
    return stage == "quantize" and getattr(options, "precision", None) == "auto"
