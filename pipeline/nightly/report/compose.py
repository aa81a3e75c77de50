"""A run's report, out of the history."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pipeline.nightly.history import HistoryStore, Run
from pipeline.nightly.matrix import Matrix
from pipeline.nightly.record import Night, Series, Verdict
from pipeline.nightly.report.record import CellReport, Mark, NightReport, Point, Release, SeriesReport

NIGHTS = 60
"""of each series, that are shown"""
METRICS = (
    "latency_p50_ms",
    "latency_p99_ms",
    "top1",
    "answered",
    "energy_mj",
    "power_w",
    "memory_bytes",
    "engine_bytes",
    "health_ms",
)


def compose(store: HistoryStore, matrix: Matrix, run: Run) -> NightReport:
    """Put together what one run found, with the nights before it."""
    runs = store.runs(matrix.name)
    place = {one.id: index for index, one in enumerate(runs)}
    verdicts = store.verdicts()
    accepts = store.marks("accept", matrix.name)
    rows = store.cells(run.id)
    tonight = [night for _, night in store.nights(run=run.id)]
    series = []
    for night in tonight:
        key = night.series.key
        verdict = verdicts.get((run.id, key))
        if verdict is None:
            continue  # the run is not over
        nights = [(id_, one) for id_, one in store.nights(series=key) if place.get(id_, -1) <= place[run.id]][-NIGHTS:]
        history = [(id_, one, verdicts[(id_, key)]) for id_, one in nights if (id_, key) in verdicts]
        series.append(
            SeriesReport(
                key=key,
                series=night.series,
                verdict=verdict,
                points=tuple(_point(*one) for one in history),
                marks=_marks(history, [one for one in accepts if one["series"] in ("", key)], place),
            )
        )
    pinned = _release(store, matrix, runs, run)
    return NightReport(
        matrix=matrix.name,
        run=run.id,
        started_at=run.started_at,
        ended=run.ended,
        commit=run.commit,
        vitrim=run.vitrim,
        runs=place[run.id] + 1,
        policy=matrix.policy,
        release=pinned,
        cells=tuple(
            CellReport.model_validate(
                {
                    "cell": row.cell,
                    "recipe": row.recipe,
                    "device": row.device,
                    "target": row.target,
                    "status": row.status,
                    "reason": row.reason,
                    "tries": row.tries,
                    "seconds": row.seconds,
                    "command": row.command,
                    **{name: (row.facts or {}).get(name, "") for name in ("budget", "runtime", "precision")},
                }
            )
            for row in rows
            if row.status is not None
        ),
        waiting=tuple(row.cell for row in rows if row.status is None),
        series=tuple(sorted(series, key=lambda one: _order(one.series))),
        environments={night.series.device: dict(night.environment) for night in tonight if night.environment},
    )


def _order(series: Series) -> tuple[str, str, int]:
    return series.device, series.recipe, METRICS.index(series.metric)


def _point(run: str, night: Night, verdict: Verdict) -> Point:
    return Point(
        run=run,
        at=night.at,
        value=night.value if night.values else None,
        low=min(night.values, default=None),
        high=max(night.values, default=None),
        kind=verdict.kind,
        sentence=verdict.sentence,
        commit=night.commit,
        artifact=night.artifact,
    )


def _marks(
    history: Sequence[tuple[str, Night, Verdict]], accepts: Sequence[dict[str, Any]], place: dict[str, int]
) -> tuple[Mark, ...]:
    """Changes of the environment, and the nights on which changes really began, each once."""
    found: dict[tuple[str, datetime], Mark] = {}
    shown = {night.at for _, night, _ in history}
    for _, night, verdict in history:
        if verdict.kind == "environment_changed":
            changes = verdict.culprit.environment_changes if verdict.culprit else ()
            text = "; ".join(changes) or verdict.sentence
            found["environment", night.at] = Mark(what="environment", at=night.at, text=text)
        if verdict.kind in ("regression", "improvement") and verdict.culprit is not None:
            first = verdict.culprit.first_bad
            at = first.at if first.at in shown else night.at
            told = "; ".join(verdict.culprit.changes)
            what = "regression" if verdict.kind == "regression" else "improvement"
            mark = Mark.model_validate({"what": what, "at": at, "text": told or verdict.sentence})
            found.setdefault((what, at), mark)
    for one in accepts:
        after = [night for run, night, _ in history if place.get(run, -1) > place.get(one["run"], -1)]
        if after:
            text = f"accepted by {one['who']}" + (f": {one['note']}" if one["note"] else "")
            found["accepted", after[0].at] = Mark(what="accepted", at=after[0].at, text=text)
    return tuple(sorted(found.values(), key=lambda mark: (mark.at, mark.what)))


def _release(store: HistoryStore, matrix: Matrix, runs: Sequence[Run], run: Run) -> Release | None:
    pins = store.marks("pin", matrix.name)
    wanted, note = (matrix.release, "named in the matrix") if matrix.release else ("", "")
    if not wanted and pins:
        wanted, note = str(pins[-1]["run"]), str(pins[-1]["note"])
    found = next((one for one in runs if one.id == wanted), None)
    return Release(run=found.id, at=found.started_at, commit=found.commit, note=note) if found else None
