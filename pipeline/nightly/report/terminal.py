"""The run in a terminal: what needs a look, in lines that fit."""

from collections.abc import Iterator, Sequence
from textwrap import wrap

from pipeline.nightly.report import words
from pipeline.nightly.report.record import NightReport, SeriesReport
from pipeline.report.figures import visible


def summary(report: NightReport, columns: int) -> str:
    """Write what one has to know in the morning. columns: width of the terminal."""
    lines = [*_wrapped(f"{report.run}: {report.sentence}", columns)]
    if report.ended is None:
        lines.append(f"not over yet: {len(report.waiting)} cells wait")
    for case in report.cases:
        lines += ["", *_alarm(case, columns)]
    for cell in report.failed_cells:
        lines += ["", *_wrapped(f"{cell.status}: {cell.cell}: {visible(cell.reason)}", columns)]
    for one in report.lost_metrics:
        lines += ["", *_wrapped(f"{one.verdict.kind}: {words.title(one)}: {one.verdict.sentence}", columns)]
    for one in report.series:
        if one.verdict.kind in ("improvement", "environment_changed"):
            told = f"{words.KINDS[one.verdict.kind]}: {words.title(one)}: {one.verdict.sentence}"
            lines += _wrapped(visible(told), columns)
    return "\n".join(lines)


def _alarm(case: Sequence[SeriesReport], columns: int) -> Iterator[str]:
    first = case[0]
    yield from _wrapped(f"{first.verdict.kind}: {words.case_title(case)}", columns)
    for one in case:
        yield from _wrapped(visible(one.verdict.sentence), columns, "  ")
    if words.blamed(first):
        yield from _wrapped(words.blamed(first), columns, "  ")
    for hint in words.case_hints(case):
        yield from _wrapped(visible(hint), columns, "  - ")
    if first.verdict.reproduce:
        yield from _wrapped(f"see it again: {visible(first.verdict.reproduce)}", columns, "  ")


def _wrapped(text: str, columns: int, before: str = "") -> list[str]:
    return wrap(
        text, max(columns, 40), initial_indent=before, subsequent_indent=" " * len(before), break_on_hyphens=False
    )
