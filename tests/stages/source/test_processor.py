"""Image processors of transformers become the same resize, crop and normalisation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.source.processor import _from_processor, read_processor
from targets.preprocess import normalise, resize_and_crop

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
BASE = {"image_mean": MEAN, "image_std": STD}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "resample": 2}),
        (
            "DeiTImageProcessor",
            {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}, "resample": 3},
        ),
        ("BitImageProcessor", {"size": {"shortest_edge": 38}, "crop_size": {"height": 32, "width": 32}, "resample": 3}),
        (
            "CLIPImageProcessor",
            {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 3},
        ),
        (
            "CLIPImageProcessor",
            {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_normalize": False},
        ),
    ],
    ids=["vit", "deit", "dinov2", "clip", "unnormalised"],
)
@pytest.mark.parametrize("size", [(64, 90), (90, 64), (50, 50)])
def test_pixels_are_those_of_the_library(
    kind: str, config: dict[str, Any], size: tuple[int, int], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra dev)")
    processor_class = getattr(transformers, f"{kind}Pil", None) or getattr(transformers, kind)
    processor = processor_class(**BASE, **config)
    processor.save_pretrained(tmp_path)
    preprocess = read_processor(tmp_path, size=None)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BOX)
    expected = np.asarray(processor(image, return_tensors="np")["pixel_values"])
    found = normalise(resize_and_crop(image, preprocess)[None], preprocess)

    np.testing.assert_allclose(found, expected, atol=1e-4)


@given(crop=st.integers(1, 1024), more=st.integers(0, 300))
def test_the_side_before_the_crop_survives_the_share(crop: int, more: int) -> None:
    config = {**BASE, "size": {"shortest_edge": crop + more}, "crop_size": crop, "do_center_crop": True}
    preprocess = _from_processor(config, None)

    assert int(preprocess.height / preprocess.crop_share) == crop + more
    assert preprocess.height == crop


def test_a_nested_processor_of_transformers_5_is_read(tmp_path: Path) -> None:
    nested = {"image_processor": {**BASE, "size": {"height": 32, "width": 48}}, "processor_class": "CLIPProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    preprocess = read_processor(tmp_path, size=None)

    assert (preprocess.height, preprocess.width, preprocess.crop_mode) == (32, 48, "squash")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2}, (224, 1.0, "squash")),
        (
            {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "do_center_crop": True},
            (224, 1.0, "center"),
        ),
        (
            {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224, "do_center_crop": True},
            (224, 0.875, "squash"),
        ),
    ],
    ids=["vit", "clip", "deit"],
)
def test_configs_of_older_versions_are_read(config: dict[str, Any], expected: tuple[int, float, str]) -> None:
    found = _from_processor({**BASE, **config}, None)
    assert (found.height, found.crop_share, found.crop_mode) == expected
