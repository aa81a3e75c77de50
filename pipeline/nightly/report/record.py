"""NightReport: what one run found, and the nights before it. Every page is a function of it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from pydantic import Field

from pipeline.nightly.record import Kind, Series, Status, Verdict
from pipeline.nightly.rules import Policy
from targets.record import Record


class Point(Record):
    """One night of a series."""

    run: str
    at: datetime
    value: float | None
    """median of its runs; null where there is none"""
    low: float | None = None
    high: float | None = None
    """least and most of its runs"""
    kind: Kind
    sentence: str
    commit: str = ""
    artifact: str = ""


class Mark(Record):
    """Something that happened between two nights of a series."""

    what: Literal["environment", "regression", "improvement", "accepted", "release"]
    at: datetime
    """of the first night after it"""
    text: str


class SeriesReport(Record):
    """One series tonight."""

    key: str
    series: Series
    verdict: Verdict
    points: tuple[Point, ...]
    """oldest first, the last is tonight"""
    marks: tuple[Mark, ...] = ()


class CellReport(Record):
    """A planned cell and what became of it."""

    cell: str
    recipe: str
    device: str
    target: str
    status: Status
    reason: str = ""
    tries: tuple[str, ...] = ()
    seconds: float
    budget: str = ""
    """the verdict of its build, where that is over budget"""
    runtime: str = ""
    precision: str = ""
    command: str = ""


class Release(Record):
    """The pinned run."""

    run: str
    at: datetime
    commit: str
    note: str = ""


class NightReport(Record):
    """One run."""

    format: Literal["vitrim.night_report/1"] = "vitrim.night_report/1"
    matrix: str
    run: str
    started_at: datetime
    ended: Literal["finished", "deadline", "abandoned"] | None = Field(
        description="null: the run is not over; what it has not measured yet is no failure"
    )
    commit: str
    vitrim: str
    runs: int
    """of this matrix, up to this one"""
    policy: Policy
    release: Release | None
    cells: tuple[CellReport, ...]
    waiting: tuple[str, ...] = ()
    """cells of a run that is not over"""
    series: tuple[SeriesReport, ...]
    environments: Mapping[str, Mapping[str, str]] = {}
    """by device"""

    @property
    def alarms(self) -> list[SeriesReport]:
        """Series that somebody has to look at; regressions first."""
        order = ("regression", "quarantine", "suspicious", "failed", "missing")
        found = [one for one in self.series if one.verdict.alarms]
        return sorted(found, key=lambda one: (order.index(one.verdict.kind), one.series.recipe, one.series.device))

    @property
    def cases(self) -> list[list[SeriesReport]]:
        """Alarms with values, those of one cell and one kind that began in one night together."""
        found: dict[tuple[str, str, str, str], list[SeriesReport]] = {}
        for one in self.alarms:
            if one.verdict.kind not in ("failed", "missing"):
                since = one.verdict.culprit.first_bad.at.isoformat() if one.verdict.culprit else ""
                own = one.series
                found.setdefault((own.recipe, own.device, one.verdict.kind, since), []).append(one)
        return list(found.values())

    @property
    def lost_metrics(self) -> list[SeriesReport]:
        """Series without a value tonight whose cell has others."""
        cells = {one.cell for one in self.failed_cells}
        gone = [one for one in self.alarms if one.verdict.kind in ("failed", "missing")]
        return [one for one in gone if f"{one.series.recipe}@{one.series.device}" not in cells]

    @property
    def failed_cells(self) -> list[CellReport]:
        """Cells without values."""
        return [one for one in self.cells if one.status != "measured"]

    @property
    def exit_code(self) -> int:
        """1 where somebody has to look, else 0."""
        return int(bool(self.alarms or self.failed_cells))

    @property
    def sentence(self) -> str:
        """The whole night in one sentence."""
        counts: dict[str, set[str]] = {}
        for case in self.cases:
            counts.setdefault(case[0].verdict.kind, set()).add(f"{case[0].series.recipe} on {case[0].series.device}")
        words = [f"{kind}: {', '.join(sorted(cells))}" for kind, cells in counts.items()]
        lost = len(self.failed_cells)
        if lost:
            words.append(f"{lost} of {len(self.cells)} cells without values")
        if self.lost_metrics:
            words.append(f"{len(self.lost_metrics)} metrics missing")
        if words:
            return "; ".join(words)
        return f"nothing to look at: {len(self.cells)} cells, {len(self.series)} series"
