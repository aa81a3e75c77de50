"""Stage export: what it is and what it can be told."""

from typing import Literal

from pydantic import Field, PositiveInt

from stages.artifact import Format
from stages.stage import Stage, StageContext, StageResult
from targets.record import Record


class ExportOptions(Record):
    """How a graph is written."""

    opset: int = Field(default=20, ge=17, le=23, description="ONNX operator set, at most the target's onnx_opset_max")
    batch: Literal["dynamic"] | PositiveInt = Field(
        default="dynamic", description="images per query; compile fixes a dynamic one"
    )
    outputs: tuple[str, ...] = Field(
        default=(), description="named outputs of the graph; empty: logits, or features where there is no head"
    )


def export(options: ExportOptions, context: StageContext) -> StageResult:
    """Write `model.onnx` and prove that it computes what torch computes."""
    from stages.export.run import export_model

    return export_model(options, context)


STAGE = Stage(
    name="export",
    summary="write the ONNX graph and compare it with torch",
    consumes=Format.VIT,
    produces=Format.ONNX,
    options=ExportOptions,
    run=export,
    tools=("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime"),
    code=("stages/vit",),
)
