"""How values, kinds and metrics are written for people."""

from collections.abc import Sequence

from pipeline.nightly.judge import WORDS, scaled
from pipeline.nightly.record import Kind, Metric
from pipeline.nightly.record import short as short  # pages ask it here
from pipeline.nightly.report.record import SeriesReport
from pipeline.report.figures import DASH

CLASSES: dict[Kind, str] = {
    "ok": "within",
    "improvement": "within",
    "accepted": "within",
    "regression": "over",
    "quarantine": "undecided",
    "suspicious": "undecided",
    "failed": "failed",
    "missing": "failed",
    "invalid": "not_measured",
    "insufficient_data": "not_measured",
    "environment_changed": "not_measured",
}
"""how a kind is drawn: classes of the report's style sheet"""
SYMBOLS = {"within": "✓", "over": "✕", "undecided": "?", "not_measured": DASH, "failed": "!"}
KINDS: dict[Kind, str] = {
    "ok": "ok",
    "improvement": "improvement",
    "accepted": "accepted",
    "regression": "regression",
    "quarantine": "quarantine",
    "suspicious": "suspicious",
    "failed": "failed",
    "missing": "missing",
    "invalid": "invalid",
    "insufficient_data": "too few nights",
    "environment_changed": "environment changed",
}


def metric_words(metric: Metric) -> tuple[str, str]:
    """Name and unit, as they are shown."""
    return WORDS[metric]


def number(metric: Metric, value: float | None) -> str:
    """A value with four significant digits, without its unit."""
    if value is None:
        return DASH
    shown = scaled(metric, value)
    if metric in ("top1", "answered"):
        return f"{shown:.2f}"
    return f"{shown:,.0f}" if abs(shown) >= 9999.5 else f"{shown:#.4g}".rstrip(".")


def percent(change: float | None, digits: int = 1) -> str:
    """A relative change, signed."""
    return DASH if change is None else f"{100 * change:+.{digits}f} %"


def change_of(one: SeriesReport) -> str:
    """Change of a series tonight, with its interval; points where answers are counted."""
    verdict = one.verdict
    if verdict.change is None:
        return DASH
    if one.series.metric in ("top1", "answered"):
        text = f"{100 * verdict.change:+.2f} points"
    else:
        text = percent(verdict.change)
    if verdict.change_ci95 is not None:
        low, high = verdict.change_ci95
        digits = 2 if one.series.metric in ("top1", "answered") else 1
        text += f" [{100 * low:+.{digits}f}, {100 * high:+.{digits}f}]"
    return text


def title(one: SeriesReport) -> str:
    """`digits on shelf-1: median latency`."""
    return f"{one.series.recipe} on {one.series.device}: {metric_words(one.series.metric)[0]}"


def case_title(case: Sequence[SeriesReport]) -> str:
    """`digits on shelf-1: median latency +5.1 %, energy per image +5.0 %`."""
    own = case[0].series
    metrics = ", ".join(f"{metric_words(one.series.metric)[0]} {change_of(one)}" for one in case)
    return f"{own.recipe} on {own.device}: {metrics}"


def case_hints(case: Sequence[SeriesReport]) -> list[str]:
    """Hints of all, each once."""
    return list(dict.fromkeys(hint for one in case for hint in one.verdict.hints))


def blamed(one: SeriesReport) -> str:
    """`first bad commit abc (last good def)`; empty where nothing is blamed, or nothing is known."""
    culprit = one.verdict.culprit
    if culprit is None:
        return ""
    good, bad = short(culprit.last_good.commit), short(culprit.first_bad.commit)
    when = f"{culprit.first_bad.at:%Y-%m-%d}"
    if good and bad and good != bad:
        return f"first bad commit {bad} of {when}, last good {good} of {culprit.last_good.at:%Y-%m-%d}"
    return f"since {when}" + (f", same commit {bad}" if bad else "")
