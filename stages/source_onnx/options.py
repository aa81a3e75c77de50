"""What a recipe says under `model` where the model is an ONNX file."""

from pathlib import Path

from pydantic import Field

from targets.preprocess import ImageSize, Interpolation, Positive, Preprocess, height_and_width
from targets.record import Record


class Preparation(Record):
    """How images become the graph's numbers: Preprocess without the size."""

    crop_share: float = Field(default=1.0, gt=0, le=1, description="share of the shorter side that the crop keeps")
    crop_mode: str = Field(default="center", pattern="^(center|squash|border)$")
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = Field(description="subtracted from values of 0..1, by channel")
    std: tuple[Positive, Positive, Positive] = Field(description="divides what is left, by channel")

    def sized(self, height: int, width: int) -> Preprocess:
        """The same for images of a size."""
        return Preprocess.model_validate({"height": height, "width": width, **self.model_dump()})


class OnnxSourceOptions(Record):
    """A vision model as an ONNX graph: float32 [N, 3, H, W] in, one row per image out."""

    onnx: Path = Field(description=".onnx file; weights beside it are found by their names in it")
    preprocess: Preparation = Field(description="how images are prepared: an ONNX file does not say")
    image_size: ImageSize | None = Field(
        default=None, description="side, or height and width, where the graph leaves them open; null: the graph's"
    )
    output: str | None = Field(
        default=None, description="the output that answers; null: the first of one row per image"
    )
    classes: int | None = Field(default=None, ge=0, description="null: every output is a class; 0: they are features")
    labels: Path | None = Field(default=None, description="class names: text, line i is class i; or a JSON list")

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width, where they are given."""
        return None if self.image_size is None else height_and_width(self.image_size)
