"""Measurement: raw samples with the conditions they were taken in; percentiles are functions of it."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from targets.measure.procedure import Level as Level
from targets.record import Record

Arrivals = Literal["poisson", "fixed"]


class Spread(Record):
    """Of many samples."""

    min: float
    median: float
    max: float


class Watched(Record):
    """Conditions while something was measured, sampled ten times a second."""

    sources: dict[str, str]
    """by source: empty where it was read, else why it tells nothing"""
    facts: dict[str, Any]
    """power mode, GPU, what the power of the board is the sum of, ..."""
    samples: int = Field(ge=0)
    figures: dict[str, Spread | None]
    """clocks, temperatures, power; None where the machine does not tell"""
    reasons: dict[str, int] = {}
    """clocks event reasons of the GPU: in how many samples"""
    void_runs: tuple[str, ...] = ()
    """of each process run that was thrown away: why"""
    idle_power_w: dict[str, float] = {}
    """by scope, before anything ran; empty where no energy was measured"""


class Energy(Record):
    """Energy of one engine from one place; nothing is subtracted."""

    scope: Literal["board", "gpu", "cpu"]
    covers: str
    mean_power_w: float
    """while the engine was at work"""
    joules_per_image: float
    seconds: float
    """over which power was integrated"""


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
    peak_gpu_memory_bytes: int | None = None
    """most that the process held on the GPU in any sample; None where NVML does not tell"""
    throttled: tuple[str, ...] = ()
    """why the machine slowed itself down in this run, though it was repeated; empty: it did not, or does not tell"""


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
    energy: tuple[Energy, ...] = ()
    energy_note: str = ""
    """why no energy was measured"""
    floor_ms: float | None = None
    """no query can be faster on this hardware (roofline); None: not known"""


class Comparison(Record):
    """Several engines, measured interleaved in the same minutes: the only latencies that may be divided."""

    format: Literal["vitrim.comparison/1"] = "vitrim.comparison/1"
    measurements: dict[str, Measurement]
    """by role: baseline, unpruned, engine"""
    conditions_before: dict[str, Any]
    conditions_after: dict[str, Any]
    started_at: datetime
    seconds: float
    watched: Watched | None = None
    """None in records from before there was such a thing"""
