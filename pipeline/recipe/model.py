"""The types of a recipe."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, SerializeAsAny, Tag, field_validator, model_validator

from stages.catalog import CATALOG
from stages.data.source import DataSource
from stages.source.options import SourceOptions
from stages.source_onnx.options import OnnxSourceOptions
from stages.stage import Role
from targets.board import RuntimeOptions
from targets.errors import InputError, UnknownNameError
from targets.measure.measurement import Level
from targets.profile import Budget, RuntimeChoice, TargetProfile
from targets.record import Record, digest_of
from targets.runtimes.catalog import CATALOG as RUNTIMES
from targets.runtimes.own import BATCHES, options_obstacle

IMPLIED = ("source", "source_onnx", "compile", "offers", "random_weights")
"""stages that are never written: `model` is what source is told, compile comes last, a search runs the others"""


def known_stages() -> tuple[str, ...]:
    """Stages that may stand under `steps`, in the usual order."""
    return tuple(name for name in CATALOG if name not in IMPLIED)


class Step(Record):
    """A stage with its options in a recipe."""

    stage: str
    options: SerializeAsAny[Record]
    title: str
    """the stage's name; `distill#2` for the second of one kind"""


class Data(Record):
    """Images by role."""

    fit: DataSource | None = Field(default=None, description="statistics, repair, quantization ranges")
    train: DataSource | None = Field(default=None, description="distillation, fine-tuning")
    select: DataSource | None = Field(default=None, description="every choice; shares no image with another role")
    evaluate: DataSource | None = Field(default=None, description="read once per engine; shares no image either")


class Measure(Record):
    """How an engine is measured."""

    level: Level = Field(default="quick", description="quick: 64 queries, two processes, no p99; full: all of it")
    batches: tuple[PositiveInt, ...] = Field(default=(), description="batch sizes shown besides the target's own")
    metric: Literal["auto", "top1", "zero_shot", "knn", "command"] = Field(
        default="auto", description="auto: top-1 where there is a head, else nearest neighbours"
    )
    text_embeddings: Path | None = Field(
        default=None, description="for zero_shot: .npy or .safetensors, [classes, width]"
    )
    command: str | None = Field(default=None, description="for command: a program that is given {bundle}")
    known_accuracy: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="the source's metric as it is known from elsewhere, 0 to 1: where the baseline is further from it "
        "than 5 points, images or labels are read in another way, and the build fails",
    )

    @model_validator(mode="after")
    def _has_what_its_metric_needs(self) -> "Measure":
        if self.metric == "zero_shot" and self.text_embeddings is None:
            raise ValueError("metric zero_shot needs text_embeddings: FILE.npy")
        if self.metric == "command" and "{bundle}" not in (self.command or ""):
            raise ValueError("metric command needs a command with {bundle} in it, e.g. python metric.py {bundle}")
        return self


def _kind_of_model(given: Any) -> str:
    """Which of the two a `model` is: it names an ONNX file, or something that torch reads."""
    named = "onnx" in given if isinstance(given, dict) else isinstance(given, OnnxSourceOptions)
    return "graph" if named else "torch"


Model = Annotated[
    Annotated[SourceOptions, Tag("torch")] | Annotated[OnnxSourceOptions, Tag("graph")], Discriminator(_kind_of_model)
]


class Recipe(Record):
    """What a user asks for: paths are absolute, every step has its options, `export` stands where it is needed."""

    vitrim: Literal[1] = Field(description="version of this format")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="what reports call it")
    model: Model
    data: Data = Data()
    steps: tuple[Step, ...] = ()
    targets: tuple[str, ...] = Field(
        default=("cpu",), min_length=1, description="names, or paths of your own YAML files"
    )
    runtimes: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="only these of a target's runtimes"
    )
    runtime_options: dict[str, RuntimeOptions] = Field(
        default={}, description="by runtime: options of its own (docs/runtimes); each replaces that of the target"
    )
    budget: Budget = Field(default=Budget(), description="each key replaces that of the target")
    measure: Measure = Measure()
    seed: int = Field(default=0, ge=0, lt=2**32)
    text: str = Field(default="", exclude=True)
    """the YAML it was read from"""

    @field_validator("vitrim", mode="before")
    @classmethod
    def _is_a_number(cls, version: Any) -> Any:
        if version is True:  # equals 1 in Python, and so for Literal
            raise ValueError("must be 1")
        return version

    @field_validator("runtime_options")
    @classmethod
    def _are_of_their_runtimes(cls, given: dict[str, RuntimeOptions]) -> dict[str, RuntimeOptions]:
        for runtime, options in given.items():
            if runtime not in RUNTIMES:
                raise ValueError(str(UnknownNameError("runtime", runtime, RUNTIMES)))
            # those of batches are held against a target's batch
            reason = options_obstacle(runtime, {name: one for name, one in options.items() if name not in BATCHES})
            if reason is not None:
                raise ValueError(reason)
        return given

    def with_options(self, choice: RuntimeChoice, *, batch: int) -> RuntimeChoice:
        """The choice of a target with this recipe's options in place of its own; raises InputError for a wrong one."""
        own = self.runtime_options.get(choice.name)
        if not own:
            return choice
        options = {**choice.options, **own}
        reason = options_obstacle(choice.name, options, batch=batch)
        if reason is not None:
            raise InputError(f"runtime_options of the recipe: {reason}")
        return choice.replace(options=options)

    def images(self) -> dict[Role, DataSource]:
        """Where the images of each role come from."""
        return {role: source for role in Role if (source := getattr(self.data, role.value)) is not None}

    def budget_for(self, profile: TargetProfile) -> Budget:
        """The target's budget with this recipe's keys in place of its own; an explicit null takes a key away."""
        own = {name: getattr(self.budget, name) for name in self.budget.model_fields_set}
        return profile.budget.replace(**own)

    def canonical(self) -> dict[str, Any]:
        """What decides the outcome, in one spelling: no name, defaults filled in, lists of images sorted."""
        plain = self.model_dump(mode="json", exclude={"name", "text", "budget"})
        plain["budget"] = self.budget.model_dump(mode="json", exclude_unset=True)
        for role, source in self.images().items():
            plain["data"][role.value]["images"] = sorted(str(path) for path in source.paths)
        return plain

    def digest(self) -> str:
        """SHA-256 of the canonical form: two recipes with one digest ask for the same."""
        return digest_of(self.canonical())
