"""Random changes of a training image, as pure functions of (seed, image, epoch).

Operations are torchvision's (transforms.v2.functional) on PIL images, which need one thread and no lock. Only the
drawing is ours: torchvision draws from torch's global generator, so there a picture would depend on what others drew.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL.Image import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as v2


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How far a training image may differ from the stored one; the defaults leave a square one as it is."""

    crop_scale: tuple[float, float] = (1.0, 1.0)
    """share of the area that a random crop keeps"""
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    """width over height of the crop; drawn evenly on a logarithmic scale"""
    shift: float = 0.0
    """at most this share of the side, both ways; what enters from outside is black"""
    degrees: float = 0.0
    """at most this rotation, both ways"""
    flip: bool = False
    """mirror left and right every other time"""

    def __call__(
        self, picture: Image, *, size: tuple[int, int], interpolation: str, seed: int, image: int, epoch: int
    ) -> Image:
        """The picture as this epoch sees it; size is (height, width)."""
        draw = np.random.default_rng([seed, image, epoch])
        left, top, width, height = self._crop(picture.size, draw)
        mode = InterpolationMode(interpolation)
        changed: Image = v2.resized_crop(picture, top, left, height, width, list(size), mode)
        if self.shift or self.degrees:
            across, down, turn = draw.uniform(-1, 1, size=3)
            moved = [round(across * self.shift * size[1]), round(down * self.shift * size[0])]
            bilinear = InterpolationMode.BILINEAR
            changed = v2.affine(
                changed, turn * self.degrees, moved, scale=1.0, shear=[0.0, 0.0], interpolation=bilinear
            )
        if self.flip and draw.random() < 0.5:
            changed = v2.horizontal_flip(changed)
        return changed

    def _crop(self, size: tuple[int, int], draw: np.random.Generator) -> tuple[int, int, int, int]:
        """(left, top, width, height) of a random crop inside a picture of size (width, height).

        A crop that would not fit is cut to the side it exceeds, where torchvision tries ten times and then takes the
        centre: the same for usual pictures, and no loop.
        """
        width, height = size
        area = width * height * draw.uniform(*self.crop_scale)
        ratio = math.exp(draw.uniform(math.log(self.crop_ratio[0]), math.log(self.crop_ratio[1])))
        crop_width = min(max(1, round(math.sqrt(area * ratio))), width)
        crop_height = min(max(1, round(math.sqrt(area / ratio))), height)
        left = int(draw.integers(width - crop_width + 1))
        top = int(draw.integers(height - crop_height + 1))
        return left, top, crop_width, crop_height
