"""Batches of training images."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from stages.data.images import ImageSet
from stages.training import pictures
from stages.training.augment import Augmentation
from stages.training.pictures import Batch, PlainBatches, TrainingImages, without_held_out
from stages.training.sampler import batch_at
from targets.errors import InputError
from targets.preprocess import Preprocess, normalise, resize_and_crop

PREPROCESS = Preprocess(height=16, width=16, interpolation="bilinear")
WILD = Augmentation(crop_scale=(0.2, 1.0), flip=True)


def training_images(images: ImageSet, augmentation: Augmentation = WILD, batch_size: int = 7) -> TrainingImages:
    return TrainingImages(images, PREPROCESS, augmentation=augmentation, batch_size=batch_size, seed=3)


def same(one: Batch, other: Batch) -> bool:
    assert one.labels is not None
    assert other.labels is not None
    return one.step == other.step and torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_a_step_has_the_same_batch_wherever_training_began(colours: Callable[..., ImageSet]) -> None:
    images = colours(20)
    whole = list(training_images(images)(0, 12))
    resumed = list(training_images(images)(5, 12))

    assert [batch.step for batch in whole] == list(range(12))
    assert all(same(one, other) for one, other in zip(whole[5:], resumed, strict=True))


def test_images_that_are_not_kept_decoded_give_the_same_batches(
    colours: Callable[..., ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = list(training_images(colours(20))(0, 6))
    monkeypatch.setattr(pictures, "DECODED_LIMIT_BYTES", 3000)
    data = training_images(colours(20))

    assert all(same(one, other) for one, other in zip(kept, data(0, 6), strict=True))
    assert len(data._decoded) == 1


def test_without_augmentation_pixels_and_labels_are_those_of_the_images(colours: Callable[..., ImageSet]) -> None:
    images = colours(20, side=16)
    batch = training_images(images, Augmentation()).batch(2)
    drawn = [image for image, _ in batch_at(2, count=20, batch_size=7, seed=3)]
    pixels = np.stack([resize_and_crop(images.image(image), PREPROCESS) for image in drawn])

    assert torch.equal(batch.images, torch.from_numpy(normalise(pixels, PREPROCESS)))
    assert batch.labels is not None
    assert batch.labels.tolist() == [images.items[image].label for image in drawn]


def test_unlabelled_images_have_batches_without_labels(colours: Callable[..., ImageSet]) -> None:
    assert training_images(colours(8, labelled=False)).batch(0).labels is None


def test_large_images_are_kept_small(colours: Callable[..., ImageSet]) -> None:
    data = training_images(colours(1, side=200))
    data.batch(0)

    assert data._decoded[0].size == (34, 34)  # 200 / 6: no smaller than twice the model's input


def test_an_unreadable_image_ends_training_with_its_own_error() -> None:
    class Broken:
        labels = None

        def __len__(self) -> int:
            return 4

        def decode_for_training(self, index: int) -> None:
            raise InputError("cannot read the image 'x'")

    with pytest.raises(InputError, match="cannot read the image"):
        list(training_images(Broken())(0, 5))  # type: ignore[arg-type]


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 50])
def test_parts_of_a_batch_hold_it_all(parts: int, colours: Callable[..., ImageSet]) -> None:
    batch = training_images(colours(20)).batch(1)
    split = batch.split(parts)

    assert len(split) == min(parts, 7)
    assert torch.equal(torch.cat([part.images for part in split]), batch.images)
    assert torch.equal(torch.cat([part.labels for part in split]), batch.labels)


def test_plain_batches_hold_every_image_once_in_order(colours: Callable[..., ImageSet]) -> None:
    images = colours(20)
    batches = PlainBatches(images, PREPROCESS, 8)
    labels = torch.cat([batch.labels for batch in batches()])

    assert [len(batch) for batch in batches()] == [8, 8, 4]
    assert labels.tolist() == images.labels.tolist()


def test_held_out_images_and_the_rest_are_all_images(colours: Callable[..., ImageSet]) -> None:
    images = colours(400)
    shown, held = without_held_out(images, seed=1)

    assert len(held) == 20
    assert sorted(item.id for item in (*shown.items, *held.items)) == [item.id for item in images.items]


def test_too_few_images_to_hold_some_out_are_refused(colours: Callable[..., ImageSet]) -> None:
    with pytest.raises(InputError, match="199 are too few"):
        without_held_out(colours(199), seed=1)
