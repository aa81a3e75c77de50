"""Decoded images of a role as one model reads them: models of another input size read other pixels."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.preprocess import Preprocess, normalise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.data.images import ImageSet

INPUTS = 16
"""different real inputs that latency measuring rotates through"""


@dataclass(frozen=True)
class Pixels:
    """A .npy file of uint8 [N, H, W, 3], and how its pixels become a model's input."""

    file: Path
    preprocess: Preprocess

    @classmethod
    def of(cls, images: "ImageSet", preprocess: Preprocess, folder: Path) -> "Pixels":
        """Decode the images into the folder, or find them there."""
        return cls(images.pixels_file(preprocess, folder), preprocess)

    def inputs(self, count: int) -> "NDArray[Any]":
        """Return so many inputs, float32 [count, 3, H, W]; the images again from the first where there are fewer."""
        import numpy as np

        some = np.take(np.load(self.file, mmap_mode="r"), range(count), axis=0, mode="wrap")
        return normalise(some, self.preprocess)
