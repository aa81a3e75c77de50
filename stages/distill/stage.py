"""The distill stage: its options and how to run it. Light: torch loads when it runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.artifact import Format
from stages.stage import Role, Stage, StageContext, StageResult
from stages.training.options import (
    ASIDE,
    Count,
    CropRatio,
    CropScale,
    EmaDecay,
    LogKind,
    Positive,
    PrecisionWish,
    ShareBelowOne,
    Weight,
    check_log,
)
from stages.vit.fold import folded_spec
from stages.vit.spec import WEIGHTS_FILE, ViTSpec
from targets.errors import InputError
from targets.record import Record


class TeacherOptions(Record):
    """A stronger teacher than the source: a folder that vitrim saved, or a timm model."""

    folder: Path | None = Field(default=None, description="folder with vit.json and model.safetensors")
    timm: str | None = Field(default=None, description="timm name; other than a ViT, it teaches its answers alone")
    checkpoint: Path | None = Field(default=None, description="weights in timm's names instead of the hub's")

    @model_validator(mode="after")
    def _is_one_model(self) -> "TeacherOptions":
        if (self.folder is None) == (self.timm is None):
            raise ValueError("give folder (a model that vitrim saved) or timm (a model's name), one of both")
        if self.folder is not None and self.checkpoint is not None:
            raise ValueError("checkpoint goes with timm only: a folder has its weights")
        return self

    @property
    def weights(self) -> Path | None:
        """The file that holds the weights, None where the hub does."""
        return self.checkpoint if self.folder is None else self.folder / WEIGHTS_FILE


class DistillOptions(Record):
    """How to distil; needs no labels."""

    images_seen: Count = Field(default=20_000, description="length of the training; images repeat as augmented crops")
    batch_size: Count = 32
    lr: Positive = Field(default=3e-4, description="peak learning rate of AdamW")
    weight_decay: Weight = 0.0
    weight_decay_end: Positive | None = Field(
        default=None, description="the decay moves there from weight_decay on half a cosine; null: it stays"
    )
    betas: tuple[ShareBelowOne, ShareBelowOne] = Field(
        default=(0.9, 0.999), description="of AdamW: how long gradients and their squares are remembered"
    )
    warmup_share: ShareBelowOne = Field(default=0.05, description="share of the steps in which the learning rate rises")
    clip: Positive | None = Field(default=1.0, description="limit of the gradient's norm; null: none")
    accumulate: Count = Field(default=1, description="cut each batch into so many parts, to save memory")
    ema_decay: EmaDecay | None = Field(default=None, description="result is a moving average of the weights")
    feature_weight: Weight = Field(default=1.0, description="of the error of class token and patch tokens")
    logits_weight: Weight = Field(default=1.0, description="of the divergence of the answers, where there is a head")
    temperature: Positive = Field(default=1.0, description="of both answers in that divergence")
    labels_weight: Weight = Field(default=0.0, description="of the cross-entropy on labels; needs labelled images")
    crop_scale: CropScale = Field(default=(0.25, 1.0), description="share of the area that a random crop keeps")
    crop_ratio: CropRatio = Field(default=(0.75, 4 / 3), description="width over height of a random crop")
    flip: bool = Field(default=True, description="mirror left and right; false where sides matter (digits, text)")
    precision: PrecisionWish = "auto"
    recompute: bool = Field(
        default=False, description="save memory: compute the inside of each block again for the gradient"
    )
    sharded: bool = Field(
        default=False, description="several processes keep a part of each weight, for models too large for one GPU"
    )
    stop_when_flat: Literal["auto"] | bool = Field(
        default="auto",
        description="look at images held out, stop when they no longer gain, keep the best weights; auto: where there "
        "are images for select and no labels are learnt",
    )
    held_out: Literal["train", "select"] = Field(
        default="train",
        description="of stop_when_flat: true: the loss on 5 % of train, or how the answers differ on select",
    )
    block_features: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="blocks behind which the residual streams are compared, too, counted from 0"
    )
    block_weight: Weight = Field(default=1.0, description="of the mean error behind these blocks")
    teacher: TeacherOptions | None = Field(default=None, description="a stronger teacher; null: the source model")
    dilution: Literal["linear", "cosine"] = Field(
        default="linear", description="how the attentions fade out that drop_attention set to dilute"
    )
    dilution_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.75, description="share of the steps after which they are gone"
    )
    log: LogKind = Field(default="none", description="write losses as they come, for TensorBoard or MLflow")
    log_folder: Path | None = Field(default=None, description="where; MLflow without it: to MLFLOW_TRACKING_URI")

    @property
    def judged_on(self) -> Literal["train", "select"] | None:
        """Images that say when it is enough; those of select only where there are any, if `auto` asks for them."""
        if self.stop_when_flat == "auto":
            return None if self.labels_weight else "select"
        return self.held_out if self.stop_when_flat else None

    @model_validator(mode="after")
    def _can_log(self) -> Self:
        check_log(self.log, self.log_folder)
        return self

    @model_validator(mode="after")
    def _decays_from_somewhere(self) -> Self:
        if self.weight_decay_end is not None and not self.weight_decay:
            raise ValueError("weight_decay_end goes with a weight_decay above 0, from which the decay moves there")
        return self


def distill(options: DistillOptions, context: StageContext) -> StageResult:
    """Train the input model to answer as the source model does."""
    from stages.distill.distillation import distill_model

    facts = distill_model(
        options,
        student_folder=context.input,
        teacher_folder=context.source,
        output=context.output,
        scratch=context.scratch,
        images=context.images[Role.TRAIN],
        select=context.images.get(Role.SELECT),
        seed=context.seed,
        tell=context.tell,
    )
    return StageResult(facts=facts)


def reshaped(options: DistillOptions, spec: ViTSpec) -> ViTSpec:
    """Return the spec after the stage: attentions that were diluting are gone; raises InputError."""
    return folded_spec(spec)


def roles_read(options: DistillOptions) -> tuple[Role, ...]:
    """Return train, and select where it is asked to say when to stop."""
    return (Role.TRAIN, *((Role.SELECT,) if options.stop_when_flat is True and options.held_out == "select" else ()))


def roles_read_if_there(options: DistillOptions) -> tuple[Role, ...]:
    """Return select where it says when to stop if there is any."""
    return (Role.SELECT,) if options.stop_when_flat == "auto" and options.judged_on else ()


def files_read(options: DistillOptions) -> Mapping[str, Path]:
    """Return what holds a teacher's weights; raises InputError where it is not there."""
    if options.teacher is None or (path := options.teacher.folder or options.teacher.checkpoint) is None:
        return {}
    if not path.exists():
        raise InputError(f"teacher {str(path)!r} is not there")
    return {"teacher": path}


STAGE = Stage(
    name="distill",
    summary="train the pruned model to answer as the source model does",
    consumes=Format.VIT,
    produces=Format.VIT,
    options=DistillOptions,
    run=distill,
    reshape=reshaped,
    roles=roles_read,
    also_reads=roles_read_if_there,
    reads=files_read,
    distributed=True,
    aside=ASIDE,
    tools=("torch", "torchvision", "timm", "numpy", "pillow"),
    code=("stages/vit", "stages/data", "stages/training", "targets/bundle/pixels.py"),
)
