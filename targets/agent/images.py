"""Real images as the feeds of a model, in batches. Shapes: N images, B of one batch, H and W of the model's input."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.errors import InputError
from targets.runtimes.runtime import Array, Feeds, TensorFacts

ROTATION = 16
"""different queries while something is measured, so that caches are honest"""
ROTATION_BYTES = 128 * 2**20
"""limit on their memory, which counts in the peak of the process; two are kept in any case"""


def open_images(path: Path, *, tensor: TensorFacts, preprocess: dict[str, Any] | None) -> Array:
    """Map a .npy file that fits an input: float32 [N, 3, H, W], or uint8 [N, H, W, 3] with a mean and std to apply."""
    try:
        images: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not a readable .npy file: {error}") from error
    raw = images.dtype == np.uint8 and images.ndim == 4
    if raw and preprocess is None:
        raise InputError("uint8 images need a preprocess with mean and std")
    one = (images.shape[3], *images.shape[1:3]) if raw else images.shape[1:]
    fits = len(one) == len(tensor.shape) - 1 and all(
        expected in (None, found) for expected, found in zip(tensor.shape[1:], one, strict=True)
    )
    if not fits or not (raw or images.dtype == np.dtype(tensor.dtype)) or len(images) == 0:
        raise InputError(
            f"images of shape {list(images.shape)} and type {images.dtype} do not fit input {tensor.name!r}: "
            f"{list(tensor.shape)} of {tensor.dtype}, or uint8 [N, H, W, channels]"
        )
    return images


def prepare(images: Array, preprocess: dict[str, Any] | None) -> Array:
    """Give images as the model reads them: uint8 [N, H, W, 3] to float32 [N, 3, H, W], other arrays as they are.

    The same arithmetic, bit for bit, as `targets.bundle.pixels.normalise`, which needs Pillow.
    """
    if images.dtype != np.uint8 or preprocess is None:
        return np.ascontiguousarray(images)
    mean = np.array(preprocess["mean"], dtype=np.float32)[:, None, None]
    std = np.array(preprocess["std"], dtype=np.float32)[:, None, None]
    pixels: NDArray[np.float32] = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)
    pixels /= np.float32(255)
    pixels -= mean
    pixels /= std
    return pixels


def batches(images: Array, preprocess: dict[str, Any] | None, *, batch: int, pad: bool) -> Iterator[tuple[Array, int]]:
    """All images in order, (array, how many are real); pad: repeat the last image where the last batch is not full."""
    for start in range(0, len(images), batch):
        part = prepare(images[start : start + batch], preprocess)
        real = len(part)
        if pad and real < batch:
            part = np.concatenate([part, np.repeat(part[-1:], batch - real, axis=0)])
        yield part, real


def rotation(images: Array, preprocess: dict[str, Any] | None, *, name: str, batch: int) -> list[Feeds]:
    """Different queries for measuring: up to 16 batches that begin at different images."""
    first = prepare(images.take(range(batch), axis=0, mode="wrap"), preprocess)
    count = max(2, min(ROTATION, ROTATION_BYTES // first.nbytes))
    step = max(1, len(images) // count)
    others = (
        prepare(images.take(range(index * step, index * step + batch), axis=0, mode="wrap"), preprocess)
        for index in range(1, count)
    )
    return [{name: one} for one in (first, *others)]
