"""Measurement: raw samples with the conditions they were taken in; percentiles are functions of it."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from targets.record import Record

Level = Literal["quick", "full"]


class Run(Record):
    """What one fresh process measured."""

    samples: tuple[float, ...]
    """raw, in the measurement's unit, in the order taken"""
    blocks: tuple[int, ...] = ()
    """length of each interleaved block of samples; sums to len(samples)"""
    load_seconds: float = Field(ge=0)
    first_ms: float = Field(ge=0)
    """first inference after loading"""
    warmup_queries: int = Field(ge=0)
    warmup_seconds: float = Field(ge=0)
    stable: bool
    """the last three warm-up windows agreed within 5 %"""
    peak_memory_bytes: int | None = None
    """peak resident memory of the process"""


class Measurement(Record):
    """Samples of one quantity of one engine."""

    metric: Literal["latency"] = "latency"
    unit: Literal["ms"] = "ms"
    method: str = "latency/2"
    """version of the procedure; results of different methods are never compared"""
    level: Level
    engine_sha256: str
    batch: int = Field(gt=0)
    runs: tuple[Run, ...] = Field(min_length=1)
    flags: tuple[str, ...] = ()
    """unstable_warmup, throttled, ..."""


class Comparison(Record):
    """Several engines, measured interleaved in the same minutes: the only latencies that may be divided."""

    format: Literal["vitrim.comparison/1"] = "vitrim.comparison/1"
    measurements: dict[str, Measurement]
    """by role: baseline, unpruned, engine"""
    conditions_before: dict[str, Any]
    conditions_after: dict[str, Any]
    started_at: datetime
    seconds: float
