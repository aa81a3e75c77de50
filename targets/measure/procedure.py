"""What is measured and how much of it: an engine with its inputs, and the two levels. In Python 3.10."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

Array = NDArray[Any]
Level = Literal["quick", "full"]


@dataclass(frozen=True, kw_only=True)
class EngineUnderTest:
    """One engine of a comparison."""

    folder: Path
    batch: int
    threads: int | None = None
    """None: all cores that this process may use"""
    inputs: Array | None = None
    """its own images, float32 [N, 3, H, W], where its input has another size than the others'; None: those of all"""
    floor_ms: float | None = None
    """no query can be faster, see `floor`; None: not known"""


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """How much is measured, of each engine in each process."""

    processes: int
    queries: int
    seconds: float
    blocks: int
    warmup_queries: int
    warmup_seconds: float
    warmup_limit_seconds: float
    energy_seconds: float = 0
    """for which each engine works alone in each process where power is measured; 0: no energy is measured"""
    idle_seconds: float = 2
    """over which the power of rest is read before"""
    throttle_pause_seconds: float = 5
    """to cool down before a void run is repeated"""


LEVELS: Mapping[Level, Procedure] = {
    "quick": Procedure(
        processes=2,
        queries=64,
        seconds=0,
        blocks=16,
        warmup_queries=15,
        warmup_seconds=0.5,
        warmup_limit_seconds=5,
    ),
    "full": Procedure(
        processes=5,
        queries=662,  # p99 with 99 % confidence
        seconds=10,
        blocks=50,
        warmup_queries=50,
        warmup_seconds=2,
        warmup_limit_seconds=30,
        energy_seconds=4,
        throttle_pause_seconds=30,
    ),
}
