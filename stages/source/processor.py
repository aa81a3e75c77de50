"""How images enter a model, from the configs that transformers and open_clip save."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stages.source.folders import PROCESSORS, read_json
from targets.errors import InputError
from targets.preprocess import Preprocess

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, which transformers writes"""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""open_clip's defaults, https://github.com/openai/CLIP"""


def read_processor(folder: Path, *, size: tuple[int, int] | None) -> Preprocess:
    """Read preprocessor_config.json of transformers. size: height and width that the user wants instead.

    Raises InputError for what it lacks and for what vitrim does not do to images.
    """
    path = next((folder / name for name in PROCESSORS if (folder / name).is_file()), None)
    if path is None:
        raise InputError(
            f"folder {str(folder)!r} has no {PROCESSORS[0]}, which says how images are resized and normalised; "
            "save the image processor there too"
        )
    config = read_json(path)
    config = config.get("image_processor", config)
    try:
        return _from_processor(config, size)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{str(path)!r}: {where}: {first['msg']}") from error
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"{str(path)!r}: {error}") from error


def read_open_clip_preprocess(config: Mapping[str, Any], size: tuple[int, int]) -> Preprocess:
    """Read `preprocess_cfg` of an open_clip config; raises InputError."""
    modes = {"shortest": "center", "squash": "squash"}
    mode = config.get("resize_mode") or "shortest"
    if mode not in modes:
        raise InputError(f"open_clip resize_mode {mode!r} is not known; known: {', '.join(modes)}")
    try:
        return Preprocess.model_validate(
            {
                "height": size[0],
                "width": size[1],
                "crop_mode": modes[mode],
                "interpolation": config.get("interpolation") or "bicubic",
                "mean": config.get("mean") or CLIP_MEAN,
                "std": config.get("std") or CLIP_STD,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"open_clip preprocess_cfg: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def pair(value: Any) -> tuple[int, int]:
    """(height, width) of a number, a pair, or a mapping with these names. Raises ValueError."""
    if isinstance(value, Mapping):
        value = [value.get("height"), value.get("width")]
    sides = [value, value] if isinstance(value, int) else value
    if (
        not isinstance(sides, list | tuple)
        or len(sides) != 2
        or not all(type(side) is int and side > 0 for side in sides)
    ):
        raise ValueError(f"a size must be a number or height and width, got {value!r}")
    return sides[0], sides[1]


def _from_processor(config: Mapping[str, Any], size: tuple[int, int] | None) -> Preprocess:
    if not config.get("do_resize", True):
        raise ValueError("do_resize is false; vitrim always resizes images")
    if not config.get("do_rescale", True) or not math.isclose(
        config.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6
    ):
        raise ValueError("pixels are not rescaled by 1/255; vitrim always does that")
    resampling = config.get("resample", 2)
    if resampling not in RESAMPLING:
        raise ValueError(f"resample {resampling!r} is not known; known: {', '.join(map(str, RESAMPLING))}")
    scaled, mode = _resize(config)
    crops = config.get("do_center_crop", "crop_size" in config and "do_center_crop" not in config)
    cropped = pair(config["crop_size"]) if crops and config.get("crop_size") else scaled
    if mode == "center" and not crops:
        raise ValueError(
            "the shorter side is resized and nothing is cropped; vitrim needs a fixed size: set do_center_crop"
        )
    share = cropped[0] / scaled[0]
    if cropped[0] > scaled[0] or not math.isclose(share, cropped[1] / scaled[1]):
        raise ValueError(
            f"it crops {cropped[0]}x{cropped[1]} out of {scaled[0]}x{scaled[1]}, which is not one share of both sides"
        )
    while math.floor(cropped[0] / share) < scaled[0]:  # rounding: 224 / (224 / 257) is below 257
        share = math.nextafter(share, 0)
    height, width = size or cropped
    normalised = config.get("do_normalize", True)
    return Preprocess(
        height=height,
        width=width,
        crop_share=share,
        crop_mode=mode,  # type: ignore[arg-type]  # of the two that _resize returns
        interpolation=RESAMPLING[resampling],  # type: ignore[arg-type]  # its values are among them
        mean=config["image_mean"] if normalised else (0.0, 0.0, 0.0),
        std=config["image_std"] if normalised else (1.0, 1.0, 1.0),
    )


def _resize(config: Mapping[str, Any]) -> tuple[tuple[int, int], str]:
    """(height, width) before the crop, and timm's name for how it is reached."""
    size = config.get("size")
    if isinstance(size, Mapping) and set(size) - {"shortest_edge"} == set() and size:
        return pair(size["shortest_edge"]), "center"
    kind = str(config.get("image_processor_type", config.get("feature_extractor_type", "")))
    if isinstance(size, int) and kind.startswith(("CLIP", "Bit")):  # before 2023, a number was the shorter side there
        return pair(size), "center"
    return pair(size), "squash"
