"""Types of options that finetune and distill have in common. Light: imports no torch."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

PrecisionWish = Literal["auto", "fp32", "bf16"]
LogKind = Literal["none", "tensorboard", "mlflow"]

ASIDE = ("log", "log_folder", "sharded")
"""options that do not decide the weights, but for rounding: a change of them trains nothing anew"""


def _is_range(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError(f"must be [from, to] with 0 < from <= to, got [{pair[0]:g}, {pair[1]:g}]")
    return pair


def _is_share(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[1] > 1:
        raise ValueError(f"must not exceed 1, the whole picture, got {pair[1]:g}")
    return pair


def check_log(log: LogKind, folder: Path | None) -> None:
    """Raise ValueError where a log has nowhere to go, or nothing to write it with."""
    if log == "none":
        if folder is not None:
            raise ValueError("log_folder goes with log: tensorboard or mlflow")
        return
    if find_spec(log) is None:
        package = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny"}[log]
        raise ValueError(f"log: {log} needs the package {log}, which is not installed; pip install {package}")
    if folder is None and not (log == "mlflow" and os.environ.get("MLFLOW_TRACKING_URI")):
        server = " or set MLFLOW_TRACKING_URI" if log == "mlflow" else ""
        raise ValueError(f"log: {log} needs log_folder, where it is written{server}")


CropRatio = Annotated[tuple[float, float], AfterValidator(_is_range)]
CropScale = Annotated[tuple[float, float], AfterValidator(_is_range), AfterValidator(_is_share)]
Count = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
EmaDecay = Annotated[float, Field(gt=0, lt=1)]
LayerDecay = Annotated[float, Field(gt=0, le=1)]
Degrees = Annotated[float, Field(ge=0, le=180)]
