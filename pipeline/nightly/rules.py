"""Rules for a row of nightly values. Pure; what they are worth is simulated (benchmarks/nightly_simulation.py).

Medians and the median absolute deviation, because some nights are outliers: a rule on one night alone would raise
several false alarms in a hundred. The scale of a row is 1.4826 MAD (Rousseeuw and Croux 1993); of the median of n
values it is about 1.25 sigma / sqrt(n).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pydantic import Field

from targets.record import Record


class Policy(Record):
    """When a change counts. Shares of the value: 0.02 is 2 %."""

    window: int = Field(default=14, ge=3, description="nights that tonight is compared with, at most")
    least_nights: int = Field(default=5, ge=3, description="nights of the same environment before anything is said")
    recent: int = Field(default=3, ge=2, description="nights whose median the slow rule looks at")
    fast_change: float = Field(default=0.03, gt=0, description="one night: less than this is never suspicious")
    fast_deviations: float = Field(default=3.0, gt=0, description="one night: so many deviations of the window")
    slow_change: float = Field(default=0.02, gt=0, description="recent nights: less than this is no change")
    slow_deviations: float = Field(default=4.0, gt=0, description="recent nights: so many deviations of their median")
    slow_trigger: float = Field(default=2.5, gt=0, description="the same where a re-run can decide")
    confirmed_change: float = Field(
        default=0.02, gt=0, description="a re-run has to tell so much, its interval without 0; half for the slow rule"
    )
    creep_nights: int = Field(default=7, ge=3, description="nights whose median is compared with the release")
    creep_change: float = Field(default=0.03, gt=0, description="beyond the release by this: creep")
    noisy: float = Field(
        default=0.015, gt=0, description="deviation from night to night above which a board is too noisy"
    )
    drifts: int = Field(default=3, ge=2, description="nights in a row on which the board itself was slow: quarantine")
    accuracy_points: float = Field(
        default=1.0, gt=0, description="points of top-1 that may be lost: the 95 % interval has to lie below (margin)"
    )
    flips: float = Field(
        default=0.05, gt=0, le=1, description="share of images answered otherwise than by the last good engine"
    )
    class_points: float = Field(default=10.0, gt=0, description="points that one class may lose")
    false_discoveries: float = Field(
        default=0.05, gt=0, lt=1, description="share of false alarms among those of p-values (Benjamini-Hochberg)"
    )


@dataclass(frozen=True)
class Window:
    """Good nights of one segment, oldest first."""

    values: tuple[float, ...]

    @property
    def level(self) -> float:
        """Median."""
        return median(self.values)

    @property
    def noise(self) -> float:
        """Relative standard deviation from night to night, robust: 1.4826 MAD over the median."""
        level = self.level
        return 1.4826 * median(abs(one - level) for one in self.values) / level


def relative(value: float, level: float) -> float:
    """Change of a value, as a share of the level."""
    return value / level - 1


def fast(policy: Policy, window: Sequence[float], tonight: float) -> bool:
    """One night beyond what the nights before allow, in either direction."""
    before = Window(tuple(window[-policy.window :]))
    return abs(relative(tonight, before.level)) > max(policy.fast_change, policy.fast_deviations * before.noise)


def slow(policy: Policy, values: Sequence[float], deviations: float | None = None) -> float | None:
    """Change of the median of the recent nights against the window before them; None within what noise does.

    deviations: in place of the policy's `slow_deviations`.
    """
    recent, before = values[-policy.recent :], values[: -policy.recent][-policy.window :]
    if len(recent) < policy.recent or len(before) < policy.least_nights:
        return None
    window = Window(tuple(before))
    change = relative(median(recent), window.level)
    allowed = (deviations or policy.slow_deviations) * 1.25 * window.noise / math.sqrt(policy.recent)
    return change if abs(change) > max(policy.slow_change, allowed) else None


def creep(policy: Policy, values: Sequence[float], release: float) -> float | None:
    """Change of the last nights against a pinned release: what a moving window forgets. None within the allowed."""
    recent = values[-policy.creep_nights :]
    if len(recent) < policy.creep_nights:
        return None
    change = relative(median(recent), release)
    noise = Window(tuple(values[-policy.window :])).noise
    allowed = policy.slow_deviations * 1.25 * noise / math.sqrt(policy.creep_nights)
    return change if change > max(policy.creep_change, allowed) else None


def change_point(values: Sequence[float], *, least: int = 1) -> int:
    """Index of the first value of the later part, where two medians fit best by absolute deviations.

    least: values on either side. Raises ValueError for too few.
    """
    if len(values) < 2 * least or len(values) < 2:
        raise ValueError(f"{len(values)} values cannot be parted into two of {least} or more")

    def cost(part: Sequence[float]) -> float:
        level = median(part)
        return sum(abs(one - level) for one in part)

    places = range(least, len(values) - least + 1)
    return min(places, key=lambda at: (cost(values[:at]) + cost(values[at:]), at))
