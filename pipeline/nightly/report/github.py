"""What GitHub shows beside a job: one annotation for each thing to look at, in its workflow commands' syntax.

https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands
"""

from collections.abc import Sequence

from pipeline.nightly.report import words
from pipeline.nightly.report.record import NightReport, SeriesReport
from pipeline.report.figures import visible

MOST = 10
"""annotations of one kind that GitHub shows of a step; the last tells of the others"""


def annotations(report: NightReport) -> list[str]:
    """Return the lines to print: errors first, then warnings."""
    errors = [
        _line("error", words.case_title(case), f"{_sentences(case)}; {words.blamed(case[0])}".rstrip("; "))
        for case in report.cases
        if case[0].verdict.kind == "regression"
    ]
    errors += [_line("error", one.cell, f"{one.status}: {one.reason}") for one in report.failed_cells]
    errors += [_line("error", words.title(one), one.verdict.sentence) for one in report.lost_metrics]
    warnings = [
        _line("warning", words.case_title(case), _sentences(case))
        for case in report.cases
        if case[0].verdict.kind != "regression"
    ]
    return [*_few(errors, "error"), *_few(warnings, "warning")]


def _sentences(case: Sequence[SeriesReport]) -> str:
    return "; ".join(one.verdict.sentence for one in case)


def _few(lines: list[str], level: str) -> list[str]:
    if len(lines) <= MOST:
        return lines
    return [*lines[: MOST - 1], _line(level, "more", f"{len(lines) - MOST + 1} more; the report has all")]


def _line(level: str, title: str, message: str) -> str:
    return f"::{level} title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    plain = "\n".join(visible(line) for line in text.split("\n"))
    return plain.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
