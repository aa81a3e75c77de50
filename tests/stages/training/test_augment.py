"""Random changes of training images."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.training.augment import Augmentation

WILD = Augmentation(crop_scale=(0.1, 1.0), crop_ratio=(0.5, 2.0), shift=0.2, degrees=30, flip=True)


def picture(width: int = 24, height: int = 24, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def changed(augmentation: Augmentation, picture: Image.Image, /, **keys: int) -> np.ndarray:
    named = {"seed": 0, "image": 0, "epoch": 0, **keys}
    return np.asarray(augmentation(picture, size=(16, 12), interpolation="bilinear", **named))


@given(width=st.integers(1, 60), height=st.integers(1, 60), seed=st.integers(0, 2**32), epoch=st.integers(0, 99))
def test_every_picture_becomes_one_of_the_models_size(width: int, height: int, seed: int, epoch: int) -> None:
    result = changed(WILD, picture(width, height), seed=seed, epoch=epoch)

    assert result.shape == (16, 12, 3)
    assert result.dtype == np.uint8


def test_threads_do_not_change_what_is_drawn() -> None:
    alone = [changed(WILD, picture(), image=i) for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: changed(WILD, picture(), image=i), range(64)))

    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("key", ["seed", "image", "epoch"])
def test_each_key_changes_what_is_drawn(key: str) -> None:
    results = {changed(WILD, picture(), **{key: value}).tobytes() for value in range(20)}

    assert len(results) == 20


def test_the_defaults_only_resize_a_square() -> None:
    result = changed(Augmentation(), picture(), epoch=3)

    assert np.array_equal(result, np.asarray(picture().resize((12, 16), Image.Resampling.BILINEAR)))


def test_flip_mirrors_about_half_of_the_time() -> None:
    plain = changed(Augmentation(), picture())
    results = [changed(Augmentation(flip=True), picture(), epoch=epoch) for epoch in range(200)]
    mirrored = sum(np.array_equal(result, plain[:, ::-1]) for result in results)

    assert 60 < mirrored < 140
    assert all(np.array_equal(r, plain) or np.array_equal(r, plain[:, ::-1]) for r in results)


def test_what_a_shift_moves_in_is_black() -> None:
    white = Image.new("RGB", (24, 24), "white")
    shares = [changed(Augmentation(shift=0.25), white, epoch=epoch).mean() / 255 for epoch in range(50)]

    assert min(shares) >= 0.75**2 - 0.02
    assert min(shares) < 0.8
    assert changed(Augmentation(), white).mean() == 255


@given(scale=st.floats(0.2, 1.0), epoch=st.integers(0, 1000))
def test_a_crop_keeps_the_share_of_the_area_that_was_asked_for(scale: float, epoch: int) -> None:
    crop = Augmentation(crop_scale=(scale, scale))
    _, _, width, height = crop._crop((400, 400), np.random.default_rng(epoch))

    assert width * height / 400**2 == pytest.approx(scale, rel=0.02)
