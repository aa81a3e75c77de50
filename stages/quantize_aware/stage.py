"""The quantize_aware stage: its options and how to run it. Light: torch and NNCF load when it runs."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from stages.artifact import Format
from stages.stage import Role, Stage, StageContext, StageResult
from stages.training.options import (
    ASIDE,
    Count,
    CropRatio,
    CropScale,
    LogKind,
    Positive,
    ShareBelowOne,
    Weight,
    check_log,
)
from targets.record import Record


class QuantizeAwareOptions(Record):
    """How to train a model for int8, and how its graph is written; needs no labels."""

    precision: Literal["int8"] = Field(default="int8", description="of the graph")
    alpha: Annotated[float, Field(ge=0, le=1)] | Literal["off"] = Field(
        default=0.95, description="SmoothQuant strength, 0..1, or 'off'"
    )
    symmetric: bool = Field(default=False, description="zero points at 0 for activations too, as TensorRT demands")
    half_range: bool = Field(
        default=False,
        description="weights of 7 bits: on x86 without VNNI two products of 8 bits are added in 16, which overflows",
    )
    rest: Literal["float32", "float16", "bfloat16"] | None = Field(
        default=None, description="type of all that is not quantized; null: float16 for the TensorRTs, else float32"
    )
    images: Count = Field(default=300, description="images of `fit` that set the ranges before the training")
    select_images: Count | None = Field(
        default=256, description="images of `select` on which the trained graph must beat the untrained; null: all"
    )
    train_ranges: bool = Field(default=True, description="train the scales, too, not the weights alone")
    images_seen: Count = Field(default=10_000, description="length of the training; images repeat as augmented crops")
    batch_size: Count = 32
    lr: Positive = Field(default=1e-5, description="peak learning rate of AdamW")
    warmup_share: ShareBelowOne = Field(default=0.05, description="share of the steps in which the learning rate rises")
    clip: Positive | None = Field(default=1.0, description="limit of the gradient's norm; null: none")
    accumulate: Count = Field(default=1, description="cut each batch into so many parts, to save memory")
    feature_weight: Weight = Field(default=1.0, description="of the error of class token and patch tokens")
    logits_weight: Weight = Field(default=1.0, description="of the divergence of the answers, where there is a head")
    temperature: Positive = Field(default=1.0, description="of both answers in that divergence")
    crop_scale: CropScale = Field(default=(0.25, 1.0), description="share of the area that a random crop keeps")
    crop_ratio: CropRatio = Field(default=(0.75, 4 / 3), description="width over height of a random crop")
    flip: bool = Field(default=True, description="mirror left and right; false where sides matter (digits, text)")
    opset: int = Field(default=20, ge=17, le=23, description="ONNX operator set, at most the target's onnx_opset_max")
    batch: Literal["dynamic"] | PositiveInt = Field(
        default="dynamic", description="images per query; compile fixes a dynamic one"
    )
    outputs: tuple[str, ...] = Field(
        default=(), description="named outputs of the graph; empty: logits, or features where there is no head"
    )
    log: LogKind = Field(default="none", description="write losses as they come, for TensorBoard or MLflow")
    log_folder: Path | None = Field(default=None, description="where; MLflow without it: to MLFLOW_TRACKING_URI")

    @model_validator(mode="after")
    def _learns_something(self) -> Self:
        if not self.feature_weight and not self.logits_weight:
            raise ValueError(
                "feature_weight and logits_weight are both 0: there is nothing to learn; give one a weight"
            )
        check_log(self.log, self.log_folder)
        return self


def quantize_aware(options: QuantizeAwareOptions, context: StageContext) -> StageResult:
    """Write the int8 `model.onnx` of a model that was trained to answer, rounded, as it does in float."""
    from stages.quantize_aware.run import train_and_quantize

    return train_and_quantize(options, context)


STAGE = Stage(
    name="quantize_aware",
    summary="train the model with its rounding to int8 in place, and write the int8 graph",
    consumes=Format.VIT,
    produces=Format.ONNX,
    options=QuantizeAwareOptions,
    run=quantize_aware,
    roles=lambda options: (Role.FIT, Role.TRAIN, Role.SELECT),
    aside=ASIDE,
    tools=("torch", "torchvision", "nncf", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy", "pillow"),
    code=(
        "stages/vit",
        "stages/data",
        "stages/graph",
        "stages/training",
        "stages/distill",
        "stages/export",
        "stages/quantize",
        "targets/bundle/pixels.py",
    ),
)
