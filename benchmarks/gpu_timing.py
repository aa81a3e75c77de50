"""Interleaved rounds, paired ratios and the state of the GPU around them. Imports no torch: numpy and nvidia-smi."""

import importlib.util
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Timer = Callable[[int], list[float]]
"""so many queries, one after the other -> milliseconds of each"""

RESAMPLES = 2000
SEED = 20261120
LEAST_QUERIES, MOST_QUERIES = 3, 200
"""of one model in one round"""
STATE = (
    *("name", "pstate", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit", "temperature.gpu"),
    *("utilization.gpu", "memory.used", "memory.total", "driver_version"),
)
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""the same bit mask under its new and its old name"""


class SkipError(Exception):
    """Why something was not measured, in one line."""


@dataclass
class Budget:
    """Minutes that a run may take; what does not fit is skipped and says so."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    _start: float = field(init=False)

    def __post_init__(self) -> None:
        self._start = self.clock()

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (self.clock() - self._start)

    def need(self, seconds: float) -> None:
        """Raise SkipError where less is left."""
        if self.left < seconds:
            raise SkipError(f"{max(self.left, 0):.0f} s of the budget are left, about {seconds:.0f} s are needed")


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int
    block_s: float
    """seconds that each model runs for in each round"""
    warm_up: int = 5
    """queries before"""


def need_packages(*names: str) -> None:
    """Raise SkipError with the packages that are not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise SkipError(f"not installed: {', '.join(missing)}")


def interleave(timers: Mapping[str, Timer], effort: Effort) -> dict[str, list[list[float]]]:
    """Milliseconds by model and round. In each round every model runs once; which one begins changes."""
    names = list(timers)
    queries = {}
    for name in names:
        typical = float(np.median(timers[name](effort.warm_up)[-3:]))
        queries[name] = int(np.clip(round(1e3 * effort.block_s / max(typical, 1e-3)), LEAST_QUERIES, MOST_QUERIES))
    samples: dict[str, list[list[float]]] = {name: [] for name in names}
    for number in range(effort.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(timers[name](queries[name]))
    return samples


def summarise(samples: Mapping[str, Sequence[Sequence[float]]], *, reference: str, batch: int) -> dict[str, Any]:
    """By model: median of the rounds' medians, and how many times faster than the reference of the same round.

    Intervals: 95 %, percentile bootstrap over the rounds of this one process; how processes differ is not in them.
    """
    medians = {name: np.array([np.median(block) for block in rounds]) for name, rounds in samples.items()}
    rows = {}
    for name, own in medians.items():
        ratios = medians[reference] / own  # round by round
        p50 = float(np.median(own))
        rows[name] = {
            "p50_ms": round(p50, 4),
            "p50_ci95": _interval(own),
            "images_per_s": round(1e3 * batch / p50, 1),
            "times_faster": round(float(np.median(ratios)), 4),
            "times_faster_ci95": _interval(ratios),
            "queries": sum(len(block) for block in samples[name]),
            "rounds_ms": [round(float(one), 5) for one in own],
        }
    return rows


def _interval(values: "np.ndarray[Any, np.dtype[np.float64]]") -> list[float]:
    draws = np.random.default_rng(SEED).integers(len(values), size=(RESAMPLES, len(values)))
    return [round(float(edge), 4) for edge in np.percentile(np.median(values[draws], axis=1), [2.5, 97.5])]


def gpu_state() -> list[dict[str, str]] | None:
    """Clocks, power, temperature and reasons for throttling of each GPU; None without nvidia-smi."""
    for reason in (*REASONS, None):
        names = STATE if reason is None else (*STATE, reason)
        try:
            done = subprocess.run(
                ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"],
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            )
        except subprocess.CalledProcessError:
            continue
        except (OSError, subprocess.SubprocessError):
            return None
        lines = [line.split(",") for line in done.stdout.splitlines() if line.strip()]
        return [dict(zip(names, (cell.strip() for cell in line), strict=False)) for line in lines]
    return None
