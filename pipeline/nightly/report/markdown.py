"""The run in Markdown: for a job's summary, a mail, an issue."""

import re
from collections.abc import Sequence

from pipeline.nightly.report import words
from pipeline.nightly.report.record import NightReport, SeriesReport
from pipeline.report.figures import visible

SHOWN = 20
"""cases that are written out"""


def to_markdown(report: NightReport) -> str:
    """Write the summary. The same report gives the same text."""
    lines = [
        f"# {'✕' if report.exit_code else '✓'} {_text(report.run)}: {report.sentence}",
        "",
        f"Matrix {_text(report.matrix)}, {report.started_at:%Y-%m-%d %H:%M %Z}, "
        + (f"commit `{words.short(report.commit)}`, " if report.commit else "")
        + f"vitrim {_text(report.vitrim)}, {report.ended or 'not over yet'}.",
        "",
    ]
    for case in report.cases[:SHOWN]:
        lines += _alarm(case)
    if len(report.cases) > SHOWN:
        lines += [f"{len(report.cases) - SHOWN} more are on the dashboard.", ""]
    if report.failed_cells:
        lines += ["## Cells without values", "", "| cell | what | why |", "|---|---|---|"]
        lines += [f"| {_text(one.cell)} | {one.status} | {_text(one.reason)} |" for one in report.failed_cells]
        lines.append("")
    if report.lost_metrics:
        lines += ["## Metrics without values", ""]
        lines += [f"- {_text(words.title(one))}: {_text(one.verdict.sentence)}" for one in report.lost_metrics] + [""]
    told = [one for one in report.series if one.verdict.kind in ("improvement", "environment_changed", "invalid")]
    if told:
        lines += ["## What else changed", ""]
        lines += [
            f"- {words.KINDS[one.verdict.kind]}: {_text(words.title(one))}: {_text(one.verdict.sentence)}"
            for one in told
        ]
        lines.append("")
    lines += _table(report)
    return "\n".join(lines).rstrip() + "\n"


def _alarm(case: Sequence[SeriesReport]) -> list[str]:
    first = case[0]
    lines = [f"## {words.KINDS[first.verdict.kind].capitalize()}: {_text(words.case_title(case))}", ""]
    lines += [f"{_text(one.verdict.sentence)}.  " for one in case] + [""]
    blamed = words.blamed(first)
    lines += [f"**{blamed[0].upper()}{blamed[1:]}.**", ""] if blamed else []
    if words.case_hints(case):
        lines += ["Where to look for the cause:", ""]
        lines += [f"- {_text(hint)}" for hint in words.case_hints(case)] + [""]
    if first.verdict.reproduce:
        fence = "`" * (3 + max((len(run) for run in re.findall("`+", first.verdict.reproduce)), default=0))
        lines += [f"{fence}sh", visible(first.verdict.reproduce), fence, ""]
    return lines


def _table(report: NightReport) -> list[str]:
    """Every series in a line."""
    lines = ["## All series", "", "| device | recipe | engine | metric | tonight | change | verdict |"]
    lines.append("|---|---|---|---|---:|---:|---|")
    for one in report.series:
        own = one.series
        name, unit = words.metric_words(own.metric)
        value = words.number(own.metric, one.verdict.value)
        lines.append(
            f"| {_text(own.device)} | {_text(own.recipe)} | {_text(own.runtime)} {_text(own.precision)} | {name} "
            f"| {value} {unit if one.verdict.value is not None else ''} | {words.change_of(one)} "
            f"| {words.KINDS[one.verdict.kind]} |"
        )
    return lines


def _text(text: str) -> str:
    """Text from outside: no Markdown and no HTML of its own, in one line."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", visible(text.replace("\n", " ")))
