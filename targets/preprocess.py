"""From an image to the numbers a model reads, without torch: the same code calibrates, evaluates and ships.

The arithmetic is in `targets/bundle/pixels.py`, which every bundle carries. Light: Pillow and numpy load at use.
Shapes: N images, H and W of the model's input, three channels.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from targets.record import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

Positive = Annotated[float, Field(gt=0)]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


def _is_positive(size: int | tuple[int, int]) -> int | tuple[int, int]:
    if any(side < 1 for side in height_and_width(size)):
        raise ValueError("a side must be above 0")
    return size


ImageSize = Annotated[int | tuple[int, int], AfterValidator(_is_positive)]
"""side of a square, or height and width, in pixels"""


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """Both sides."""
    return size if isinstance(size, tuple) else (size, size)


class Preprocess(Record):
    """Resize, crop and normalisation, in the sense of timm's data config."""

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    crop_share: float = Field(default=1.0, gt=0, le=1, description="timm's crop_pct")
    crop_mode: Literal["center", "squash", "border"] = "center"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[Positive, Positive, Positive] = (0.5, 0.5, 0.5)


def resize_and_crop(image: "Image", preprocess: Preprocess) -> "NDArray[np.uint8]":
    """Resize and crop an RGB image: uint8 [H, W, 3], bit for bit as timm's evaluation transform."""
    from targets.bundle import pixels

    return pixels.resize_and_crop(image, preprocess)


def normalise(images: "NDArray[np.uint8]", preprocess: Preprocess) -> "NDArray[np.float32]":
    """Scale to 0..1, subtract the mean, divide by the standard deviation: [N, H, W, 3] to [N, 3, H, W]."""
    from targets.bundle import pixels

    return pixels.normalise(images, preprocess)
