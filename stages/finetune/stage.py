"""The finetune stage: its options and how to run it. Light: torch loads when it runs."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from stages.artifact import Format
from stages.stage import Role, Stage, StageContext, StageResult
from stages.training.options import (
    ASIDE,
    Count,
    CropRatio,
    CropScale,
    Degrees,
    EmaDecay,
    LayerDecay,
    LogKind,
    Positive,
    PrecisionWish,
    ShareBelowOne,
    Weight,
    check_log,
)
from targets.record import Record


class FinetuneOptions(Record):
    """How to fine-tune; the defaults suit pretrained weights."""

    epochs: Count = Field(default=10, description="how often every training image is shown")
    from_scratch: bool = Field(default=False, description="the weights are random: start the position embedding wide")
    batch_size: Count = 64
    lr: Positive = Field(default=2e-4, description="peak learning rate of AdamW")
    weight_decay: Weight = 0.05
    layer_decay: LayerDecay = Field(default=1.0, description="factor on the learning rate per layer away from the head")
    warmup_share: ShareBelowOne = Field(default=0.1, description="share of the steps in which the learning rate rises")
    clip: Positive | None = Field(default=1.0, description="limit of the gradient's norm; null: none")
    accumulate: Count = Field(default=1, description="cut each batch into so many parts, to save memory")
    ema_decay: EmaDecay | None = Field(default=None, description="result is a moving average of the weights")
    label_smoothing: ShareBelowOne = 0.1
    mixup: Weight = Field(default=0.0, description="alpha of the Beta distribution that mixes pairs; 0: no mixing")
    crop_scale: CropScale = Field(default=(0.35, 1.0), description="share of the area that a random crop keeps")
    crop_ratio: CropRatio = Field(default=(0.75, 4 / 3), description="width over height of a random crop")
    flip: bool = Field(default=True, description="mirror left and right; false where sides matter (digits, text)")
    shift: ShareBelowOne = Field(default=0.0, description="move by at most this share of the side; black enters")
    degrees: Degrees = Field(default=0.0, description="rotate by at most so much")
    precision: PrecisionWish = "auto"
    sharded: bool = Field(
        default=False, description="several processes keep a part of each weight, for models too large for one GPU"
    )
    stop_when_flat: bool = Field(
        default=False, description="hold out 5 % of the images, stop when they no longer gain, keep the best weights"
    )
    log: LogKind = Field(default="none", description="write losses as they come, for TensorBoard or MLflow")
    log_folder: Path | None = Field(default=None, description="where; MLflow without it: to MLFLOW_TRACKING_URI")

    @model_validator(mode="after")
    def _can_log(self) -> Self:
        check_log(self.log, self.log_folder)
        return self


def finetune(options: FinetuneOptions, context: StageContext) -> StageResult:
    """Train the input model on the labelled images of `train`."""
    from stages.finetune.supervised import finetune_model

    facts = finetune_model(
        options,
        model_folder=context.input,
        output=context.output,
        scratch=context.scratch,
        images=context.images[Role.TRAIN],
        seed=context.seed,
        tell=context.tell,
    )
    return StageResult(facts=facts)


STAGE = Stage(
    name="finetune",
    summary="train the source model on labelled images",
    consumes=Format.VIT,
    produces=Format.VIT,
    options=FinetuneOptions,
    run=finetune,
    roles=lambda options: (Role.TRAIN,),
    distributed=True,
    aside=ASIDE,
    tools=("torch", "torchvision", "numpy", "pillow"),
    code=("stages/vit", "stages/data", "stages/training", "targets/bundle/pixels.py"),
)
