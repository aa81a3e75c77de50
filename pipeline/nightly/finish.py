"""What follows the last cell: metrics that went missing, causes, commands, and the engines that are kept."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.nightly.hints import hints
from pipeline.nightly.history import CellRow, HistoryStore
from pipeline.nightly.judging import Judging
from pipeline.nightly.night import Cell
from pipeline.nightly.record import Night, Verdict
from pipeline.nightly.repository import bare
from targets.errors import StoreError


def missing_metrics(store: HistoryStore, cell: Cell, nights: Sequence[Night], at: datetime) -> list[Night]:
    """A night of each series that the cell had when it was last measured and has not now, by an engine alike."""
    earlier = [(run, one) for run, one in store.nights(cell=cell.name) if one.status == "measured"]
    now = {one.series.key for one in nights}
    alike = {(one.series.runtime, one.series.precision) for one in nights}
    missing = []
    for run, one in earlier:
        if run != earlier[-1][0] or one.series.key in now or (one.series.runtime, one.series.precision) not in alike:
            continue
        measured = {night.series.metric for night in nights}
        if one.series.metric in measured:
            continue  # by another procedure, level or batch: another series took its place
        missing.append(
            Night(
                series=one.series,
                at=at,
                status="missing",
                reason=f"{one.series.metric} was not measured tonight",
                commit=cell.commit,
                vitrim=cell.vitrim,
            )
        )
    return missing


def explain(judging: Judging, run: str, *, repository: Path | None) -> dict[str, Verdict]:
    """Judge a run, and add to each change where to look and how to see it again."""
    found = judging.run(run)
    places = _Places(judging.store, judging.matrix)
    rows = {row.cell: row for row in judging.store.cells(run)}
    nights = {night.series.key: night for _, night in judging.store.nights(run=run)}
    for key, verdict in found.items():
        own = nights[key].series
        row = rows[f"{own.recipe}@{own.device}"]
        changes: dict[str, Any] = {}
        if verdict.alarms:
            commit = bare(verdict.culprit.first_bad.commit if verdict.culprit else nights[key].commit)
            changes["reproduce"] = f"git checkout {commit} && {row.command}" if commit else row.command
        if verdict.culprit is not None:
            changes["hints"] = hints(
                verdict.culprit,
                good_layers=places.layers(verdict.culprit.last_good),
                bad_layers=places.layers(verdict.culprit.first_bad),
                repository=repository,
            )
        if changes:
            found[key] = judging.verdicts[(run, key)] = verdict.replace(**changes)
    return found


def shelf_of(store: HistoryStore, matrix: str, cell: str) -> dict[str, str]:
    """Bundles of a cell that are still there: digest of the folder by digest of the engine."""
    found: dict[str, str] = {}
    for run in store.runs(matrix):
        facts = next((row.facts for row in store.cells(run.id) if row.cell == cell), None)
        if facts and store.objects.has(str(facts.get("bundle", ""))):
            found[str(facts["artifact"])] = str(facts["bundle"])
    return found


def remove_old_engines(judging: Judging, *, keep: int) -> int:
    """Remove the bundles of all but the last nights, of pinned runs and of what open regressions are held against.

    Raw samples, reports and answers stay. Returns the bytes that became free.
    """
    store = judging.store
    runs = store.runs(judging.matrix)
    if len(runs) <= keep:
        return 0
    pinned = {one["run"] for one in store.marks("pin", judging.matrix)} | {judging.release}
    needed = {
        verdict.culprit.last_good.artifact
        for (run, _), verdict in judging.verdicts.items()
        if run == runs[-1].id and verdict.culprit is not None
    }
    trees, others = set(), set()
    for position, run in enumerate(runs):
        young = position >= len(runs) - keep or run.id in pinned
        for row in store.cells(run.id):
            facts = row.facts or {}
            others |= {str(facts[name]) for name in ("raw", "report", "answers") if facts.get(name)}
            if facts.get("bundle") and (young or facts.get("artifact") in needed):
                trees.add(str(facts["bundle"]))
    others |= store.raw_of_reruns()
    if not store.only_matrix(judging.matrix):
        return 0  # other matrices keep their files in the same folder
    return store.objects.remove_except(trees, others)


@dataclass
class _Places:
    """Finds what a night left beside its values."""

    store: HistoryStore
    matrix: str

    def layers(self, night: Night) -> list[dict[str, Any]]:
        """Layers of the engine, as the report of its build tells them; empty where it does not."""
        row = self._row(night)
        if row is None or not row.facts or not row.facts.get("report"):
            return []
        try:
            report = json.loads(self.store.objects.get(str(row.facts["report"])))
        except StoreError:
            return []
        return list((report.get("proof") or {}).get("layers") or [])

    def _row(self, night: Night) -> CellRow | None:
        cell = f"{night.series.recipe}@{night.series.device}"
        for run, one in self.store.nights(series=night.series.key):
            if one.at == night.at:
                return next((row for row in self.store.cells(run) if row.cell == cell), None)
        return None
