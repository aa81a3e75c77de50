"""What a stage is: a value with a name, an options type and a function. Light: nothing heavy is imported here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from stages.artifact import Format
from targets.record import Record

if TYPE_CHECKING:
    from stages.data.images import ImageSet
    from stages.vit.spec import ViTSpec
    from targets.profile import TargetProfile


OptionsT = TypeVar("OptionsT", bound=Record)


class Role(StrEnum):
    """What images are used for; `select` and `evaluate` share no image with another role."""

    FIT = "fit"  # statistics, repair, quantization ranges
    TRAIN = "train"  # distillation, fine-tuning
    SELECT = "select"  # every choice
    EVALUATE = "evaluate"  # read once per finished engine


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage found out; the files are what it left in `context.output`."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    bound_to: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """A stage's only door to the outside."""

    input: Path
    """folder of the artifact it works on"""
    source: Path
    """folder of the unpruned source model (format vit): teacher and reference"""
    output: Path
    """empty folder for its files"""
    scratch: Path
    """folder that survives an interruption of this very step, for resuming; removed when the step is finished"""
    images: Mapping[Role, "ImageSet"]
    """the roles that the stage declares"""
    seed: int = 0
    profile: "TargetProfile | None" = None
    """set only for a target-bound stage: use `target`"""
    tell: Callable[[str, float | None], None] = lambda message, share: None
    """tell(message, share done 0..1 or None): progress for whoever watches"""

    @property
    def target(self) -> "TargetProfile":
        """The target; a stage that is not target-bound must not ask, because its result is shared by all targets."""
        if self.profile is None:
            raise RuntimeError(
                "this stage is not target_bound: its result is shared by all targets, so it cannot read one"
            )
        return self.profile


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[OptionsT]):
    """One kind of work on a model. Each folder of `stages/` has one, called STAGE, in its light `stage.py`."""

    name: str
    summary: str
    """one line for `vitrim stages`"""
    consumes: Format
    produces: Format
    options: type[OptionsT]
    run: Callable[[OptionsT, StageContext], StageResult]
    roles: Callable[[OptionsT], tuple[Role, ...]] = lambda options: ()
    """the images it reads, given its options"""
    also_reads: Callable[[OptionsT], tuple[Role, ...]] = lambda options: ()
    """images it reads besides, where the recipe names some"""
    reads: Callable[[OptionsT], Mapping[str, Path]] = lambda options: {}
    """files named by the options, whose content decides the result: {purpose: path}"""
    reshape: "Callable[[OptionsT, ViTSpec], ViTSpec] | None" = None
    """the spec after it, without weights or images, for plans; None: unchanged"""
    tools: tuple[str, ...] = ()
    """distributions whose versions decide the result"""
    code: tuple[str, ...] = ()
    """shared folders whose source decides the result, besides its own (`stages/vit`)"""
    reshapes_at_most: Callable[[OptionsT], bool] = lambda options: False
    """whether images decide on the shapes, so that `reshape` only gives what they cannot exceed"""
    aside: tuple[str, ...] = ()
    """options that do not decide the result and are no part of its key"""
    distributed: bool = False
    """trains: where a launcher started several processes, all of them run it together"""
    target_bound: bool = False
    isolated: bool = False
    """run in a process of its own: it loads an inference runtime, which must not share a process with torch"""
