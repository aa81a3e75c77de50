"""Energy of an engine: power integrated over the blocks in which that engine alone was at work.

Nothing is subtracted: what the machine draws at rest is in it, and stands beside it. Only the inside of a block counts:
its beginning is left to sensors that lag behind, so a short block says nothing, and that is said.
Standard library only, in Python 3.10.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from targets.measure.sampler import Sample

Window = tuple[int, int]
"""begin and end of a block in nanoseconds of the machine's monotonic clock"""
LEAST_SAMPLES = 5
"""samples in a window that is to count"""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What a power figure covers, and where it comes from."""

    name: Literal["board", "gpu", "cpu"]
    covers: str
    counter: str | None
    """name of an energy counter in joules, where there is one"""
    power: str | None
    """name of a power in watts"""
    settle_seconds: float
    """how long the counter lags behind"""
    power_settle_seconds: float = 0.0
    """how long the power does: NVML's is a mean over a second on many GPUs"""


SCOPES = (
    Scope(
        name="board",
        covers="module rails",
        counter=None,
        power="board_power_w",
        settle_seconds=0.0,
        power_settle_seconds=0.2,
    ),
    Scope(
        name="gpu",
        covers="GPU board",
        counter="gpu_energy_j",
        power="gpu_power_w",
        settle_seconds=0.2,
        power_settle_seconds=1.0,
    ),
    Scope(name="cpu", covers="processor packages", counter="cpu_energy_j", power=None, settle_seconds=0.2),
)


def measures_power(samples: Sequence[Sample]) -> bool:
    """Whether anything tells power or energy here."""
    return any(_curve(samples, scope) is not None for scope in SCOPES)


def energy_of(samples: Sequence[Sample], windows: Sequence[Window], *, images: Sequence[int]) -> list[dict[str, Any]]:
    """Mean power and energy per image of one engine, for each scope that is measured; empty where none is.

    Plain JSON, as `measurement.Energy` says.

    windows: its blocks. images: answered in each. Energy per image is mean power times the time of an image.
    """
    found = []
    for scope in SCOPES:
        curve = _curve(samples, scope)
        if curve is None:
            continue
        lag_ns = int((scope.settle_seconds if curve.counted else scope.power_settle_seconds) * 1e9)
        joules = seconds = 0.0
        whole_seconds, answered = 0.0, 0
        for (begin, end), count in zip(windows, images, strict=True):
            inside = curve.between(begin + lag_ns, end)
            if inside is None:
                continue
            joules += inside[0]
            seconds += inside[1]
            whole_seconds += (end - begin) / 1e9
            answered += count
        if answered:
            watts = joules / seconds
            found.append(
                {
                    "scope": scope.name,
                    "covers": scope.covers,
                    "mean_power_w": watts,
                    "joules_per_image": watts * whole_seconds / answered,
                    "seconds": seconds,
                }
            )
    return found


def mean_power_w(samples: Sequence[Sample]) -> dict[str, float]:
    """Mean power of the whole time by scope."""
    found: dict[str, float] = {}
    for scope in SCOPES:
        curve = _curve(samples, scope)
        if curve is not None and curve.times[-1] > curve.times[0]:
            found[scope.name] = (curve.joules[-1] - curve.joules[0]) / (curve.times[-1] - curve.times[0]) * 1e9
    return found


@dataclass(frozen=True)
class _Curve:
    """Energy that was used until each moment, in joules."""

    times: list[int]
    joules: list[float]
    counted: bool
    """by the hardware, not summed up from its power"""

    def between(self, begin: int, end: int) -> tuple[float, float] | None:
        """Joules and seconds from the first sample of a window to its last; None where it holds too few.

        Between a sample inside and one outside another engine may have been at work.
        """
        first, last = bisect_left(self.times, begin), bisect_right(self.times, end) - 1
        if last - first + 1 < LEAST_SAMPLES:
            return None
        return self.joules[last] - self.joules[first], (self.times[last] - self.times[first]) / 1e9


def _curve(samples: Sequence[Sample], scope: Scope) -> _Curve | None:
    """The energy of a scope over time; None where fewer than two samples tell of it."""
    for name in filter(None, (scope.counter, scope.power)):
        points = sorted({sample["time_ns"]: float(sample[name]) for sample in samples if name in sample}.items())
        if len(points) < 2:
            continue
        times, values = [point[0] for point in points], [point[1] for point in points]
        if name == scope.counter:
            return _Curve(times, values, counted=True)
        joules = [0.0]
        for (start, low), (end, high) in pairwise(points):
            joules.append(joules[-1] + (low + high) / 2 * (end - start) / 1e9)
        return _Curve(times, joules, counted=False)
    return None
