"""The run in a terminal: what needs a look, in lines that fit."""

from collections.abc import Iterator
from textwrap import wrap

from pipeline.nightly.report import words
from pipeline.nightly.report.record import NightReport, SeriesReport
from pipeline.report.figures import visible


def summary(report: NightReport, columns: int) -> str:
    """Write what one has to know in the morning. columns: width of the terminal."""
    lines = [*_wrapped(f"{report.run}: {report.sentence}", columns)]
    if report.ended is None:
        lines.append(f"not over yet: {len(report.waiting)} cells wait")
    for one in report.alarms:
        if one.verdict.kind not in ("failed", "missing"):
            lines += ["", *_alarm(one, columns)]
    for cell in report.failed_cells:
        lines += ["", *_wrapped(f"{cell.status}: {cell.cell}: {visible(cell.reason)}", columns)]
    lost = {one.cell for one in report.failed_cells}
    for one in report.alarms:
        own = f"{one.series.recipe}@{one.series.device}"
        if one.verdict.kind in ("failed", "missing") and own not in lost:
            lines += ["", *_wrapped(f"{one.verdict.kind}: {words.title(one)}: {one.verdict.sentence}", columns)]
    for one in report.series:
        if one.verdict.kind in ("improvement", "environment_changed"):
            told = f"{words.KINDS[one.verdict.kind]}: {words.title(one)}: {one.verdict.sentence}"
            lines += _wrapped(visible(told), columns)
    return "\n".join(lines)


def _alarm(one: SeriesReport, columns: int) -> Iterator[str]:
    yield from _wrapped(f"{one.verdict.kind}: {words.title(one)} {words.change_of(one)}", columns)
    yield from _wrapped(visible(one.verdict.sentence), columns, "  ")
    if words.blamed(one):
        yield from _wrapped(words.blamed(one), columns, "  ")
    for hint in one.verdict.hints:
        yield from _wrapped(visible(hint), columns, "  - ")
    if one.verdict.reproduce:
        yield from _wrapped(f"see it again: {visible(one.verdict.reproduce)}", columns, "  ")


def _wrapped(text: str, columns: int, before: str = "") -> list[str]:
    return wrap(
        text, max(columns, 40), initial_indent=before, subsequent_indent=" " * len(before), break_on_hyphens=False
    )
