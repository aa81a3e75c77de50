"""The distill stage: its options and how to run it. Light: torch loads when it runs."""

from pydantic import Field

from stages.artifact import Format
from stages.stage import Role, Stage, StageContext, StageResult
from stages.training.options import (
    Count,
    CropRatio,
    CropScale,
    EmaDecay,
    Positive,
    PrecisionWish,
    ShareBelowOne,
    Weight,
)
from targets.record import Record


class DistillOptions(Record):
    """How to distil; needs no labels."""

    images_seen: Count = Field(default=20_000, description="length of the training; images repeat as augmented crops")
    batch_size: Count = 32
    lr: Positive = Field(default=3e-4, description="peak learning rate of AdamW")
    weight_decay: Weight = 0.0
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
    stop_when_flat: bool = Field(
        default=False, description="hold out 5 % of the images, stop when they no longer gain, keep the best weights"
    )


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
        seed=context.seed,
        tell=context.tell,
    )
    return StageResult(facts=facts)


STAGE = Stage(
    name="distill",
    summary="train the pruned model to answer as the source model does",
    consumes=Format.VIT,
    produces=Format.VIT,
    options=DistillOptions,
    run=distill,
    roles=lambda options: (Role.TRAIN,),
    tools=("torch", "torchvision", "numpy", "pillow"),
    code=("stages/vit", "stages/data", "stages/training", "targets/bundle/pixels.py"),
)
