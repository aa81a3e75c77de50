"""Verdicts of a history: each series by its own nights, answers image by image, p-values over all series of a night.

Everything here is derived: the same history judged again by another policy says what that policy would have said.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.nightly.accuracy import Answers, Change, adjusted, compare_answers, judge_answers, reference_of
from pipeline.nightly.history import HistoryStore
from pipeline.nightly.judge import judge
from pipeline.nightly.night import read_answers
from pipeline.nightly.record import ANSWERS, Culprit, Night, Rerun, Series, Verdict
from pipeline.nightly.rules import Policy, relative
from targets.errors import StoreError

Judged = list[tuple[Night, Verdict]]
ACCEPTABLE = ("regression", "suspicious", "quarantine")
"""what `vitrim nightly accept` takes as it is"""


@dataclass
class Judging:
    """A history as it is judged, oldest night first. One policy, one set of pins and acceptances."""

    store: HistoryStore
    matrix: str
    policy: Policy
    release: str | None = None
    """the matrix' own pin: a run"""
    verdicts: dict[tuple[str, str], Verdict] = field(default_factory=dict)
    """by (run, series); those of earlier judgings, or of this one as it goes on"""
    _pins: list[dict[str, Any]] = field(default_factory=list)
    _accepts: list[dict[str, Any]] = field(default_factory=list)
    _answers: dict[str, Answers] = field(default_factory=dict)
    _kinds: dict[tuple[str, str], str] = field(default_factory=dict)
    _order: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pins = self.store.marks("pin", self.matrix)
        self._accepts = self.store.marks("accept", self.matrix)
        self._order = {run.id: index for index, run in enumerate(self.store.runs(self.matrix))}

    # What was before.

    def history(self, series: Series, run: str) -> Judged:
        """Nights of a series before a run, each as it counts: what was accepted is no regression any more."""
        found = []
        for earlier, night in self.store.nights(series=series.key):
            verdict = self.verdicts.get((earlier, series.key))
            if self._at(earlier) < self._at(run) and verdict is not None:
                found.append((night, self._as_accepted(verdict, earlier, series.key, run)))
        return found

    def pinned(self, series: Series, run: str) -> tuple[str, Night] | None:
        """The night that a creep is held against: of the matrix' own pin, else of the last one before the run."""
        wanted = self.release
        if wanted is None:
            before = [
                one["run"]
                for one in self._pins
                if one["series"] in ("", series.key) and self._at(one["run"]) < self._at(run)
            ]
            wanted = before[-1] if before else None
        if wanted is None or self._at(wanted) >= self._at(run):
            return None
        return next(((id_, night) for id_, night in self.store.nights(series=series.key) if id_ == wanted), None)

    def _as_accepted(self, verdict: Verdict, at: str, series: str, run: str) -> Verdict:
        if verdict.kind not in ACCEPTABLE:
            return verdict
        for one in self._accepts:
            own = one["series"] in ("", series)
            if own and self._at(at) <= self._at(one["run"]) < self._at(run):
                return verdict.replace(kind="accepted")
        return verdict

    def _at(self, run: str) -> int:
        return self._order.get(run, len(self._order))

    # One night.

    def value(
        self, run: str, night: Night, *, rerun: Sequence[Rerun] = (), kept: Iterable[str] | None = None
    ) -> Verdict:
        """Judge a series that is judged by its value.

        rerun: what was measured beside good engines. kept: artifacts that could be measured again; None: none of them,
        so that only what was re-run counts.
        """
        history = self.history(night.series, run)
        if not history and night.status == "measured":
            moved = self._other_engine(run, night)
            if moved is not None:
                return moved
        pinned = self.pinned(night.series, run)
        release = pinned[1] if pinned else None
        available = set(kept or ()) | {one.good_artifact for one in rerun}
        asked: dict[str, Any] = {"policy": self.policy, "release": release}
        verdict = judge(history, night, can_rerun=bool(available), **asked)
        if not verdict.rerun_wanted or verdict.culprit is None:
            return verdict
        good = verdict.culprit.last_good.artifact
        found = next((one for one in reversed(rerun) if one.good_artifact == good), None)
        if found is not None:
            return judge(history, night, rerun=found, **asked)
        if kept is not None and good in available:
            return verdict
        return judge(history, night, can_rerun=False, **asked)

    def change(self, run: str, night: Night) -> "_Answered":
        """What differs of a series that is judged by its answers."""
        history = self.history(night.series, run)
        reference = reference_of(history, night)
        found = _Answered(history=history, reference=reference)
        if not night.valid or not night.answers:
            return found
        tonight = self.answers(night)
        if reference is not None:
            found.change = compare_answers(self.answers(reference), tonight, self.policy)
        pinned = self.pinned(night.series, run)
        if pinned is not None and pinned[1].answers and pinned[1].images == night.images:
            found.released = (pinned[1], compare_answers(self.answers(pinned[1]), tonight, self.policy))
        return found

    def answers(self, night: Night) -> Answers:
        """Answers of a night, read once."""
        if night.answers not in self._answers:
            self._answers[night.answers] = read_answers(self.store.objects, night, self._kind(night))
        return self._answers[night.answers]

    def _kind(self, night: Night) -> str:
        """logits or features: as the cell that gave them says."""
        cell = f"{night.series.recipe}@{night.series.device}"
        key = (cell, night.answers)
        if key not in self._kinds:
            for run, one in self.store.nights(series=night.series.key):
                if one.answers == night.answers:
                    facts = next((row.facts for row in self.store.cells(run) if row.cell == cell), None)
                    self._kinds[key] = str((facts or {}).get("kind", "logits"))
                    break
        return self._kinds.get(key, "logits")

    def _other_engine(self, run: str, night: Night) -> Verdict | None:
        """The first night of a series whose cell was measured before, with another runtime or precision."""
        own = night.series
        cell = f"{own.recipe}@{own.device}"
        for earlier, one in reversed(self.store.nights(cell=cell)):
            theirs = one.series
            same = theirs.metric == own.metric and theirs.key != own.key and theirs.harness == own.harness
            if same and one.valid and self._at(earlier) < self._at(run):
                change = relative(night.value, one.value)
                text = (
                    f"the engine is another one: {theirs.runtime} {theirs.precision} → {own.runtime} {own.precision} "
                    f"({100 * change:+.1f} %); a new series begins"
                )
                culprit = Culprit(last_good=one, first_bad=night)
                return Verdict(
                    kind="environment_changed",
                    rule="segment",
                    sentence=text,
                    value=night.value,
                    baseline=one.value,
                    change=change,
                    culprit=culprit,
                )
        return None

    def run(self, run: str) -> dict[str, Verdict]:
        """Judge all series of a run, by their key; the verdicts join the history."""
        nights = {night.series.key: night for _, night in self.store.nights(run=run)}
        found: dict[str, Verdict] = {}
        asked: dict[str, _Answered] = {}
        for key, night in nights.items():
            if night.series.metric in ANSWERS and night.valid and night.answers:
                try:
                    asked[key] = self.change(run, night)
                except StoreError as error:
                    found[key] = Verdict(kind="failed", rule="status", sentence=f"its answers cannot be read: {error}")
            elif night.series.metric in ANSWERS:
                found[key] = judge([], night, policy=self.policy)
            else:
                found[key] = self.value(run, night, rerun=self.store.reruns(key).get(run, ()))
        p_values = {
            key: one.change.p_value for key, one in asked.items() if one.change and one.change.p_value is not None
        }
        corrected = dict(zip(p_values, adjusted(list(p_values.values())), strict=True))
        for key, one in asked.items():
            found[key] = judge_answers(
                one.history,
                nights[key],
                reference=one.reference,
                change=one.change,
                p_value=corrected.get(key),
                released=one.released,
                policy=self.policy,
            )
        self.verdicts |= {(run, key): verdict for key, verdict in found.items()}
        return found


@dataclass
class _Answered:
    history: Judged
    reference: Night | None
    change: Change | None = None
    released: tuple[Night, Change] | None = None


def judge_run(
    judging: Judging, run: str, told: Mapping[str, Verdict] | None = None, *, why: str = "night"
) -> dict[str, Verdict]:
    """Judge one run and write its verdicts down. told: verdicts with hints, in place of judging."""
    found = dict(told) if told is not None else judging.run(run)
    judging.store.add_verdicts(
        [(run, series, verdict) for series, verdict in found.items()], policy=judging.policy, why=why
    )
    return found


def rejudge(judging: Judging, *, repository: Path | None = None) -> dict[tuple[str, str], Verdict]:
    """Judge every run of a matrix anew, oldest first, and write the verdicts down beside the old ones."""
    from pipeline.nightly.finish import explain

    judging.verdicts.clear()
    for run in judging.store.runs(judging.matrix):
        if run.ended is not None:
            explain(judging, run.id, repository=repository)
    judging.store.add_verdicts(
        [(run, series, verdict) for (run, series), verdict in judging.verdicts.items()],
        policy=judging.policy,
        why="rejudge",
    )
    return dict(judging.verdicts)
