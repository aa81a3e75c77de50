"""The comparison as a table and sentences: terminal, Markdown and HTML show the same."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.compare.entry import Entry
from pipeline.compare.judge import Comparison
from pipeline.report import figures
from targets.atomic import write_atomic
from targets.errors import InputError

HEADS = ("", "result", "engine", "accuracy", "drop, points", "p50, ms", "speed-up", "size")
NOTE = (
    "Every figure against A. Two results are two runs, which are not paired: a difference counts only where both 95 % "
    "intervals lie apart, everything else is a tie. Candidates of one recipe are measured interleaved and decide more."
)
FORMATS = (".md", ".html")


def rows(entries: Sequence[Entry]) -> list[tuple[tuple[str, str], ...]]:
    """One row for each result: (figure, what to know of it) by column of HEADS."""
    return [
        (
            (one.letter, ""),
            (one.name, one.where),
            (one.engine, f"batch {one.batch}" if one.batch is not None else ""),
            (
                figures.percent(one.accuracy.value) if one.accuracy else figures.DASH,
                f"{figures.metric_name(one.metric)}, {one.images:,}" if one.accuracy and one.images else "",
            ),
            _figure(one.drop_points, lambda value: figures.number(value, 1), 1),
            _figure(one.p50_ms, figures.significant, _decimals(one)),
            _figure(one.speedup, lambda value: f"{value:.2f}x", 2),
            (
                figures.size(one.size_bytes) if one.size_bytes is not None else figures.DASH,
                f"{figures.count(one.params)} params" if one.params is not None else "",
            ),
        )
        for one in entries
    ]


def sentences(comparisons: Sequence[Comparison]) -> list[tuple[str, str]]:
    """(`B: latency p50`, `better: 4.2 and 3.1 ms`) for each figure."""
    return [(f"{one.second}: {one.what}", f"{one.outcome}: {figures.visible(one.words)}") for one in comparisons]


def as_json(entries: Sequence[Entry], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Everything as plain data."""
    return {"results": [asdict(one) for one in entries], "comparisons": [asdict(one) for one in comparisons]}


def to_markdown(entries: Sequence[Entry], comparisons: Sequence[Comparison]) -> str:
    """The page for a pull request or a wiki."""
    lines = ["# Comparison", "", f"| {' | '.join(HEADS)} |", "|" + "---|" * len(HEADS)]
    for row in rows(entries):
        cells = [" ".join(filter(None, (value, f"({note})" if note else ""))) for value, note in row]
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    lines += ["", NOTE, "", "| figure | outcome |", "|---|---|"]
    lines += [f"| {_cell(name)} | {_cell(words)} |" for name, words in sentences(comparisons)]
    return "\n".join(lines) + "\n"


def to_html(entries: Sequence[Entry], comparisons: Sequence[Comparison]) -> str:
    """One file that loads nothing and runs no script."""
    from pipeline.report.html import page

    return page(
        "compare.html.jinja",
        heads=HEADS,
        rows=rows(entries),
        comparisons=[(one.second, one.what, one.outcome, one.words) for one in comparisons],
        note=NOTE,
    )


def write_page(path: Path, entries: Sequence[Entry], comparisons: Sequence[Comparison]) -> None:
    """Write the page that the name's ending asks for; raises InputError."""
    if path.suffix not in FORMATS:
        raise InputError(f"--output ends with {' or '.join(FORMATS)}, got {path.name!r}")
    text = (to_html if path.suffix == ".html" else to_markdown)(entries, comparisons)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}; choose another output") from error


def _figure(figure: Any, write: Any, decimals: int) -> tuple[str, str]:
    if figure is None:
        return figures.DASH, ""
    return write(figure.value), figures.bracket(figure.interval, decimals) if figure.interval else "no interval"


def _decimals(entry: Entry) -> int:
    return figures.decimals_of(entry.p50_ms.value, 3) if entry.p50_ms else 0


def _cell(text: str) -> str:
    line = " ".join(figures.visible(text).split())
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|#~" else sign for sign in line)
