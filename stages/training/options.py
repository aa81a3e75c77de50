"""Types of options that finetune and distill have in common. Light: imports pydantic only."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

PrecisionWish = Literal["auto", "fp32", "bf16"]


def _is_range(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError(f"must be [from, to] with 0 < from <= to, got [{pair[0]:g}, {pair[1]:g}]")
    return pair


def _is_share(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[1] > 1:
        raise ValueError(f"must not exceed 1, the whole picture, got {pair[1]:g}")
    return pair


CropRatio = Annotated[tuple[float, float], AfterValidator(_is_range)]
CropScale = Annotated[tuple[float, float], AfterValidator(_is_range), AfterValidator(_is_share)]
Count = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
EmaDecay = Annotated[float, Field(gt=0, lt=1)]
LayerDecay = Annotated[float, Field(gt=0, le=1)]
Degrees = Annotated[float, Field(ge=0, le=180)]
