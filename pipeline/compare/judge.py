"""Two results against each other: better, worse, a tie, or not comparable, each with its reason.

Two reports are two runs: nothing in them is paired, so a difference counts only where both 95 % intervals lie apart.
That errs on the side of a tie; a build of both as candidates of one recipe measures them interleaved and decides more.
What was measured under other conditions is named and not ranked.
"""

from dataclasses import dataclass
from typing import Literal

from pipeline.compare.entry import Entry, Figure
from pipeline.report import figures

Outcome = Literal["better", "worse", "tie", "not compared"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One figure of one result against the first one's."""

    first: str
    second: str
    what: str
    outcome: Outcome
    """of the second against the first"""
    words: str


def compare(entries: list[Entry]) -> list[Comparison]:
    """Each result against the first."""
    first, *others = entries
    return [one for other in others for one in _pair(first, other)]


def _pair(a: Entry, b: Entry) -> list[Comparison]:
    if a.engine_sha256 and a.engine_sha256 == b.engine_sha256:
        found = [_told(a, b, "engine", "tie", "it is the same engine, bit for bit")]
    else:
        found = [_accuracy(a, b)]
    return [*found, _latency(a, b), _speedup(a, b), _size(a, b)]


def _accuracy(a: Entry, b: Entry) -> Comparison:
    what = "accuracy"
    if a.accuracy is None or b.accuracy is None:
        return _told(a, b, what, "not compared", f"{_lacking(a, b, 'accuracy')} has none")
    if a.metric != b.metric:
        return _told(a, b, what, "not compared", f"other metrics: {_names(a.metric, b.metric)}")
    if a.proxy or b.proxy:
        return _told(a, b, what, "not compared", "a proxy answered in an engine's place")
    if not set(a.same_images) & set(b.same_images):
        known = "other images" if a.same_images and b.same_images else "it is not told whether the images are the same"
        return _told(a, b, what, "not compared", f"{known}: {a.images:,} and {b.images:,}")
    if a.drop_points and b.drop_points and a.baseline_accuracy == b.baseline_accuracy:
        words = f"drop {_points(a.drop_points)} and {_points(b.drop_points)} from the same baseline"
        return _ranked(a, b, "accuracy drop", a.drop_points, b.drop_points, words)
    words = f"{_share(a.accuracy)} and {_share(b.accuracy)}"
    return _ranked(a, b, what, a.accuracy, b.accuracy, words, more_is_better=True)


def _latency(a: Entry, b: Entry) -> Comparison:
    what = "latency p50"
    if a.p50_ms is None or b.p50_ms is None:
        return _told(a, b, what, "not compared", f"{_lacking(a, b, 'p50_ms')} was not timed")
    reason = _other_conditions(a, b)
    if reason is None and a.baseline and a.baseline == b.baseline:
        before, after = a.baseline_p50_ms, b.baseline_p50_ms
        if before and after and _apart(before, after):
            reason = (
                f"the machine was not the same in both runs: the same baseline took {_ms(before)} and {_ms(after)}; "
                "the speed-ups hold"
            )
    if reason is not None:
        return _told(a, b, what, "not compared", reason)
    return _ranked(a, b, what, a.p50_ms, b.p50_ms, f"{_ms(a.p50_ms)} and {_ms(b.p50_ms)}")


def _speedup(a: Entry, b: Entry) -> Comparison:
    what = "speed-up"
    if a.speedup is None or b.speedup is None:
        return _told(a, b, what, "not compared", f"{_lacking(a, b, 'speedup')} has none")
    reason = _other_conditions(a, b)
    if reason is None and a.baseline != b.baseline:
        reason = f"over other baselines: {_names(a.baseline, b.baseline)}"
    if reason is not None:
        return _told(a, b, what, "not compared", reason)
    words = f"{_times(a.speedup)} and {_times(b.speedup)} the speed of the baseline, paired in each run"
    return _ranked(a, b, what, a.speedup, b.speedup, words, more_is_better=True)


def _size(a: Entry, b: Entry) -> Comparison:
    if a.size_bytes is None or b.size_bytes is None:
        return _told(a, b, "engine size", "not compared", f"{_lacking(a, b, 'size_bytes')} does not tell it")
    words = f"{figures.size(a.size_bytes)} and {figures.size(b.size_bytes)}"
    if a.size_bytes == b.size_bytes:
        return _told(a, b, "engine size", "tie", words)
    outcome: Outcome = "better" if b.size_bytes < a.size_bytes else "worse"
    return _told(a, b, "engine size", outcome, f"{words} ({figures.relative_change(a.size_bytes, b.size_bytes)})")


def _other_conditions(a: Entry, b: Entry) -> str | None:
    """Why times of the two say nothing of each other; None where they do."""
    for one in (a, b):
        if one.doubts:
            return f"{one.letter}: {' and '.join(one.doubts)}"
    if not a.machine or not b.machine:
        return "it is not told which machine it was"
    if a.machine != b.machine:
        return f"other machines: {_names(a.machine, b.machine)}"
    if a.batch != b.batch:
        return f"other batch sizes: {a.batch} and {b.batch}"
    return None


def _ranked(
    a: Entry, b: Entry, what: str, old: Figure, new: Figure, words: str, *, more_is_better: bool = False
) -> Comparison:
    if old.interval is None or new.interval is None:
        return _told(a, b, what, "not compared", f"{words}, without an interval")
    if not _apart(old, new):
        return _told(a, b, what, "tie", f"{words}: the intervals overlap")
    better = (new.value > old.value) == more_is_better
    return _told(a, b, what, "better" if better else "worse", words)


def _apart(a: Figure, b: Figure) -> bool:
    if a.interval is None or b.interval is None:
        return False
    return a.interval[1] < b.interval[0] or b.interval[1] < a.interval[0]


def _told(a: Entry, b: Entry, what: str, outcome: Outcome, words: str) -> Comparison:
    return Comparison(first=a.letter, second=b.letter, what=what, outcome=outcome, words=words)


def _lacking(a: Entry, b: Entry, field: str) -> str:
    return " and ".join(one.letter for one in (a, b) if getattr(one, field) is None)


def _names(a: str, b: str) -> str:
    return f"{a or 'not told'!r} and {b or 'not told'!r}"


def _points(figure: Figure) -> str:
    interval = f" {figures.bracket(figure.interval, 1)}" if figure.interval else ""
    return f"{figures.points(figure.value)}{interval}"


def _share(figure: Figure) -> str:
    if figure.interval is None:
        return figures.percent(figure.value)
    low, high = figure.interval
    return f"{figures.percent(figure.value)} {figures.bracket((100 * low, 100 * high), 1)}"


def _ms(figure: Figure) -> str:
    decimals = figures.decimals_of(figure.value, 3)
    interval = f" {figures.bracket(figure.interval, decimals)}" if figure.interval else ""
    return f"{figures.number(figure.value, decimals)}{interval} ms"


def _times(figure: Figure) -> str:
    interval = f" {figures.bracket(figure.interval, 2)}" if figure.interval else ""
    return f"{figure.value:.2f}x{interval}"
