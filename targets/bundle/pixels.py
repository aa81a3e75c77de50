# SPDX-License-Identifier: Apache-2.0
"""From an image file to a model's input with Pillow and numpy alone: vitrim uses this file and every bundle ships it.

It imports nothing of vitrim and runs on Python 3.9, so that what calibrates and evaluates is what the user runs.
Shapes: N images, H and W of the model's input, three channels.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
MAX_PIXELS = 89_478_485  # Pillow's own limit, where it warns of a decompression bomb
MAX_FILE_BYTES = 512 * 2**20
MAX_ASPECT = 200  # the short side is scaled to the input's size: a line of 1 x 60,000 pixels would fill the memory

_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# Pillow reads the header before we can look at the size, and warns then.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class UnreadableImageError(ValueError):
    """The bytes are not an image that can be used; the message says why in one line."""


class Preprocessing(Protocol):
    """What `preprocessing.json` holds: resize, crop and normalisation in the sense of timm's data config."""

    height: int
    width: int
    crop_share: float
    crop_mode: Literal["center", "squash", "border"]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def decode(data: bytes, *, draft: bool = False) -> Image.Image:
    """Decode an image file to upright RGB; raises UnreadableImageError.

    Transparent parts become white, the first frame stands for an animation, 16-bit grey keeps its high byte (as Pillow
    does with 16-bit colour), EXIF orientation is applied, ICC profiles are not. draft: decode JPEGs at an eighth of
    their size, which finds the same defects in less time.
    """
    if not data:
        raise UnreadableImageError("the file is empty")
    if len(data) > MAX_FILE_BYTES:
        raise UnreadableImageError(f"the file has {len(data):,} bytes, more than {MAX_FILE_BYTES:,}")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image)
            if draft:
                image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            orientation = _orientation(image)
            rgb = _to_rgb(image)
    except UnreadableImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableImageError(f"it has more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise UnreadableImageError(f"not one of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's parsers raise almost anything on damaged files
        raise UnreadableImageError(_one_line(error)) from error
    return rgb.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else rgb


def resize_and_crop(image: Image.Image, preprocess: Preprocessing) -> NDArray[np.uint8]:
    """Resize and crop an RGB image to the model's input: uint8 [H, W, 3], bit for bit as timm's evaluation transform.

    center: the short side becomes floor(size / crop_share), then the centre is cut out; squash: both sides do,
    whatever the aspect; border: the long side does, and the mean colour fills what is missing.
    """
    height, width = preprocess.height, preprocess.width
    scaled_height, scaled_width = (math.floor(side / preprocess.crop_share) for side in (height, width))
    resampling = _RESAMPLING[preprocess.interpolation]
    ratio_height, ratio_width = image.height / scaled_height, image.width / scaled_width
    if preprocess.crop_mode == "squash":
        new_height, new_width = scaled_height, scaled_width
    elif preprocess.crop_mode == "center" and scaled_height == scaled_width:  # torchvision's rule, rounding down
        short = min(image.height, image.width)
        new_height, new_width = (int(scaled_height * side / short) for side in (image.height, image.width))
    else:  # timm's rule, rounding to the nearest
        pick = max if preprocess.crop_mode == "border" else min
        ratio = pick(ratio_height, ratio_width)
        new_height, new_width = (max(1, round(side / ratio)) for side in (image.height, image.width))
    if (new_width, new_height) != image.size:
        image = image.resize((new_width, new_height), resampling)
    if new_width < width or new_height < height:
        fill = tuple(round(255 * value) for value in preprocess.mean)
        canvas = Image.new("RGB", (max(width, new_width), max(height, new_height)), fill)
        canvas.paste(image, (max(0, width - new_width) // 2, max(0, height - new_height) // 2))
        image = canvas
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return np.array(image.crop((left, top, left + width, top + height)), dtype=np.uint8)


def normalise(images: NDArray[np.uint8], preprocess: Preprocessing) -> NDArray[np.float32]:
    """Scale to 0..1, subtract the mean, divide by the deviation: uint8 [N, H, W, 3] to float32 [N, 3, H, W]."""
    mean = np.array(preprocess.mean, dtype=np.float32)[:, None, None]
    std = np.array(preprocess.std, dtype=np.float32)[:, None, None]
    pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)  # [N, 3, H, W]
    pixels /= np.float32(255)
    pixels -= mean
    pixels /= std
    return pixels


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Decode one file; raises UnreadableImageError, also where the file cannot be read."""
    try:
        if os.path.getsize(path) > MAX_FILE_BYTES:
            raise UnreadableImageError(f"the file has more than {MAX_FILE_BYTES:,} bytes")
        with open(path, "rb") as file:
            return decode(file.read())
    except OSError as error:
        raise UnreadableImageError(error.strerror or _one_line(error)) from error


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"{width} x {height} are more than {MAX_PIXELS:,} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UnreadableImageError(f"{width} x {height}: one side is more than {MAX_ASPECT} times the other")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UnreadableImageError("pixels of 32 bits have no known range; convert it to 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
