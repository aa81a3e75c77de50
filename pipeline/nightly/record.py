"""What a night leaves: one measurement per series, never changed afterwards; verdicts are derived from them."""

from collections.abc import Mapping
from datetime import datetime
from statistics import median
from typing import Literal

from pydantic import Field

from targets.record import Record, digest_of

Metric = Literal[
    "latency_p50_ms",
    "latency_p99_ms",
    "energy_mj",
    "power_w",
    "memory_bytes",
    "engine_bytes",
    "health_ms",
    "top1",
    "answered",
]
"""All but the last two are better when smaller. health_ms: of the board's reference graph, whatever is deployed.
top1: percent, where images have labels; answered: percent of images with finite answers, where they have none."""
ANSWERS: tuple[Metric, ...] = ("top1", "answered")
"""judged image by image, not by their value"""
Status = Literal["measured", "failed", "missing", "device_lost"]
"""failed: something was tried and did not work; missing: planned and not run; device_lost: the board went away"""
Kind = Literal[
    "ok",
    "suspicious",
    "regression",
    "improvement",
    "accepted",
    "insufficient_data",
    "environment_changed",
    "quarantine",
    "invalid",
    "failed",
    "missing",
]


class Series(Record):
    """What is compared with itself from night to night. Another recipe, board or harness is another series."""

    recipe: str
    target: str
    device: str
    """the very board, not its kind"""
    runtime: str
    precision: str
    batch: int = Field(gt=0)
    metric: Metric
    harness: str
    """version of the procedure that measures"""

    @property
    def key(self) -> str:
        """Digest under which a history keeps it."""
        return digest_of(self.model_dump(mode="json"))


class Night(Record):
    """One series in one night."""

    format: str = "vitrim.night/1"
    series: Series
    at: datetime
    """when it was measured, with its time zone"""
    status: Status = "measured"
    values: tuple[float, ...] = ()
    """of each run the median, in the metric's unit"""
    artifact: str = ""
    """sha256 of the engine"""
    environment: Mapping[str, str] = {}
    """power mode, clocks, driver, runtime: what makes a new segment when it changes"""
    commit: str = ""
    """of the repository that holds the matrix"""
    vitrim: str = ""
    """version of this program, with its commit where it has one"""
    answers: str = ""
    """digest of what the engine answered to every image, where it was asked"""
    images: str = ""
    """fingerprint of the images that it answered"""
    flags: tuple[str, ...] = ()
    """why the values count for nothing: throttled, unstable, board busy"""
    reason: str = ""
    """of a status other than measured, in words"""

    @property
    def value(self) -> float:
        """Median of the runs' medians."""
        return median(self.values)

    @property
    def valid(self) -> bool:
        """Whether the values may be compared."""
        return self.status == "measured" and bool(self.values) and not self.flags


class Rerun(Record):
    """Tonight's artifact and the last good one, on the same board right away, interleaved."""

    ratio: float
    """tonight's over the last good one's"""
    ratio_ci95: tuple[float, float]
    good_artifact: str
    """sha256 of the last good engine"""


def short(commit: str) -> str:
    """A commit as people write it."""
    head, _, changes = commit.partition("+")
    return f"{head[:12]}{'+changes' if changes else ''}"


class Culprit(Record):
    """Between which two nights something changed."""

    last_good: Night
    first_bad: Night

    @property
    def changes(self) -> tuple[str, ...]:
        """What differs between the two, in words: the first place to look."""
        good, bad = self.last_good, self.first_bad
        found = list(self.environment_changes)
        if good.commit != bad.commit:
            found.append(f"commit {short(good.commit) or 'unknown'} → {short(bad.commit) or 'unknown'}")
        if good.vitrim != bad.vitrim:
            found.append(f"vitrim {good.vitrim or 'unknown'} → {bad.vitrim or 'unknown'}")
        if good.artifact != bad.artifact:
            found.append("the engine")
        return tuple(found)

    @property
    def environment_changes(self) -> tuple[str, ...]:
        """What differs between their environments: `driver 560 → 570`."""
        good, bad = self.last_good.environment, self.first_bad.environment
        return tuple(
            f"{name} {good.get(name, 'unknown')} → {bad.get(name, 'unknown')}"
            for name in sorted({*good, *bad})
            if good.get(name) != bad.get(name)
        )


class Verdict(Record):
    """What one night says of one series."""

    kind: Kind
    rule: (
        Literal["fast", "slow", "creep", "segment", "status", "accuracy", "classes", "flips", "determinism"] | None
    ) = None
    sentence: str
    value: float | None = None
    baseline: float | None = None
    """what the value was compared with"""
    change: float | None = None
    """relative: 0.05 is 5 % more"""
    change_ci95: tuple[float, float] | None = None
    """where a re-run gave one"""
    noise: float | None = None
    """relative standard deviation from night to night, robust; None with too few nights"""
    culprit: Culprit | None = None
    rerun_wanted: bool = False
    """measure tonight's engine and the culprit's last good one again, interleaved, before this says anything"""
    warnings: tuple[str, ...] = ()
    p_value: float | None = None
    """exact McNemar, adjusted for all series of the night"""
    hints: tuple[str, ...] = ()
    """where to look for the cause"""
    reproduce: str = ""
    """command that shows it again"""

    @property
    def alarms(self) -> bool:
        """Whether somebody has to look."""
        return self.kind in ("regression", "quarantine", "failed", "missing", "suspicious")
