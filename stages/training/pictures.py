"""Batches of training images: decoded once where memory allows, augmented in threads, a few steps ahead of the model.

Shapes: B images of a batch, H and W of the model's input.
"""

import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stages.data.images import ImageSet
from stages.training.augment import Augmentation
from stages.training.ranks import ALONE, Ranks
from stages.training.sampler import batch_at, held_out
from targets.errors import InputError
from targets.preprocess import Preprocess, normalise

DECODED_LIMIT_BYTES = 2**30
"""decoded images are kept until they fill this: all of a small set, the first ones seen of a large one"""

HELD_OUT_SHARE = 0.05
HELD_OUT_NEEDS = 200
"""images: ten held out are the least whose mean loss says something"""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the model sees in a step, or a part of it."""

    step: int
    images: Tensor
    """[B, 3, H, W] float32, normalised"""
    labels: Tensor | None = None
    """[B] int64; None unless all images have one"""
    whole: int = 0
    """images of this step in all processes; 0: these are all"""

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        images = self.images.to(device, non_blocking=True)
        return Batch(step=self.step, images=images, labels=labels, whole=self.whole)

    def split(self, parts: int) -> list["Batch"]:
        """At most so many parts, as equal as can be."""
        images = self.images.tensor_split(min(parts, len(self)))
        labels = [None] * len(images) if self.labels is None else self.labels.tensor_split(len(images))
        whole = self.whole or len(self)
        return [Batch(step=self.step, images=i, labels=j, whole=whole) for i, j in zip(images, labels, strict=True)]


class TrainingImages:
    """Augmented batches, each a pure function of (seed, step), or one process's share of them."""

    def __init__(
        self,
        images: ImageSet,
        preprocess: Preprocess,
        *,
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        among: Ranks = ALONE,
    ) -> None:
        self._images = images
        self._preprocess = preprocess
        self._augmentation = augmentation
        self._batch_size = batch_size
        self._seed = seed
        self._places = among.share(batch_size)
        self._labels = images.labels
        self._decoded: dict[int, Image.Image] = {}
        self._decoded_bytes = 0

    def __call__(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """The batches of the steps start..stop-1, in order."""
        workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        waiting: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="training-images") as pool:
            try:
                for step in range(start, min(start + workers + 1, stop)):
                    waiting.append(pool.submit(self.batch, step))
                for step in range(start, stop):
                    batch = waiting.popleft().result()
                    if step + workers + 1 < stop:
                        waiting.append(pool.submit(self.batch, step + workers + 1))
                    yield batch
            finally:
                for future in waiting:
                    future.cancel()

    def batch(self, step: int) -> Batch:
        """This process's share of the batch of one step."""
        everything = batch_at(step, count=len(self._images), batch_size=self._batch_size, seed=self._seed)
        drawn = [everything[place] for place in self._places]
        pixels = np.stack([self._augmented(image, epoch) for image, epoch in drawn])  # [B, H, W, 3]
        labels = None if self._labels is None else torch.from_numpy(self._labels[[image for image, _ in drawn]])
        images = torch.from_numpy(normalise(pixels, self._preprocess))
        return Batch(step=step, images=images, labels=labels, whole=self._batch_size)

    def _augmented(self, image: int, epoch: int) -> np.ndarray:
        size = (self._preprocess.height, self._preprocess.width)
        mode = self._preprocess.interpolation
        picture = self._picture(image)
        return np.asarray(
            self._augmentation(picture, size=size, interpolation=mode, seed=self._seed, image=image, epoch=epoch)
        )

    def _picture(self, image: int) -> Image.Image:
        """The decoded image; no larger than crops of a quarter of its area need."""
        kept = self._decoded.get(image)
        if kept is not None:
            return kept
        picture = self._images.decode_for_training(image)
        shrink = min(picture.height // (2 * self._preprocess.height), picture.width // (2 * self._preprocess.width))
        if shrink >= 2:
            picture = picture.reduce(shrink)
        size = 4 * picture.width * picture.height  # Pillow keeps RGB in four bytes
        if self._decoded_bytes + size <= DECODED_LIMIT_BYTES:
            self._decoded_bytes += size
            self._decoded[image] = picture
        return picture


def without_held_out(images: ImageSet, *, seed: int) -> tuple[ImageSet, ImageSet]:
    """Images to train on, and a twentieth of them held out to see when training no longer helps.

    Raises InputError where there are too few to say.
    """
    if len(images) < HELD_OUT_NEEDS:
        raise InputError(
            f"stop_when_flat holds out a twentieth of the images, and {len(images)} are too few for that; "
            f"give at least {HELD_OUT_NEEDS}, or set stop_when_flat to false"
        )
    kept, held = held_out(len(images), share=HELD_OUT_SHARE, seed=seed)
    return images.subset(kept), images.subset(held)


@dataclass(frozen=True)
class PlainBatches:
    """The images in order, as they are evaluated: no augmentation. A batch's `step` is its number."""

    images: ImageSet
    preprocess: Preprocess
    batch_size: int

    def __call__(self) -> Iterator[Batch]:
        """One pass over all images."""
        labels = self.images.labels
        for index, pixels in enumerate(self.images.batches(self.preprocess, self.batch_size)):
            start = index * self.batch_size
            picked = None if labels is None else torch.from_numpy(labels[start : start + len(pixels)])
            yield Batch(step=index, images=torch.from_numpy(pixels), labels=picked)
