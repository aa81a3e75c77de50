"""Stage quantize: what it is and what it can be told."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from stages.artifact import Format
from stages.stage import Role, Stage, StageContext, StageResult
from targets.record import Record

Alpha = Annotated[float, Field(ge=0, le=1)] | Literal["off"]


class QuantizeOptions(Record):
    """How a graph is quantized."""

    precision: Literal["int8"] = "int8"
    alphas: tuple[Alpha, ...] = Field(
        default=("off", 0.5, 0.95),
        min_length=1,
        description="SmoothQuant strengths to try, 0..1 or 'off'; the one that agrees best with fp32 stays",
    )
    symmetric: bool = Field(default=False, description="zero points at 0 for activations too, as TensorRT demands")
    images: int = Field(default=300, gt=0, description="images of `fit` that set the ranges")
    select_images: int | None = Field(
        default=256, gt=0, description="images of `select` that choose alpha; null: all of them"
    )
    keep_float: tuple[str, ...] = Field(
        default=(), description="patterns of node names that stay fp32, such as 'blocks.0.*' or 'head/*'"
    )
    bias_correction: bool = Field(default=True, description="correct the mean error of each layer in its bias")

    @field_validator("alphas")
    @classmethod
    def _each_once(cls, alphas: tuple[Alpha, ...]) -> tuple[Alpha, ...]:
        if len(set(alphas)) < len(alphas):
            raise ValueError("an alpha is named twice; name each once")
        return alphas


def quantize(options: QuantizeOptions, context: StageContext) -> StageResult:
    """Write the quantized `model.onnx` whose answers on `select` are nearest to those of the graph it came from."""
    from stages.quantize.run import quantize_graph

    return quantize_graph(options, context)


STAGE = Stage(
    name="quantize",
    summary="make an int8 graph and choose its SmoothQuant alpha by agreement with fp32",
    consumes=Format.ONNX,
    produces=Format.ONNX,
    options=QuantizeOptions,
    run=quantize,
    roles=lambda options: (Role.FIT, Role.SELECT),
    tools=("nncf", "numpy", "onnx", "onnxruntime", "pillow"),
    code=("stages/vit", "stages/data", "targets/bundle/pixels.py"),
)
