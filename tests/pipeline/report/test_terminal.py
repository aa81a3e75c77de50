"""The summary reads well in 80 columns, with and without colour, whatever the names are."""

import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from pipeline.report import figures, tables
from pipeline.report.terminal import STYLES, SYMBOLS, summary


def printed(report, *, width=80, colour=False):
    """What a terminal shows; without colour also what a file receives."""
    file = io.StringIO()
    system = "truecolor" if colour else None
    Console(file=file, width=width, color_system=system, force_terminal=colour, legacy_windows=False).print(
        summary(report)
    )
    return file.getvalue()


def test_the_summary_is_this(example, golden):
    text = printed(example)

    golden("summary.txt", "\n".join(line.rstrip() for line in text.splitlines()) + "\n")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_wider_than_the_terminal(any_report, width):
    assert max(cell_len(line) for line in printed(any_report, width=width).splitlines()) <= width


def test_figures_are_never_broken_in_80_columns(any_report):
    lines = printed(any_report).splitlines()

    for row in tables.headlines(any_report):
        for text in (row.before, row.after):
            assert text is None or any(text in line for line in lines), text


def test_a_file_receives_no_escapes_and_a_terminal_does(example):
    assert "\x1b" not in printed(example)
    assert "\x1b[" in printed(example, colour=True)


def test_the_verdict_stands_in_the_second_line_with_its_symbol(any_report):
    target = any_report.target.replace(name="cpu", precision="int8", runtime="openvino")
    lines = printed(any_report.replace(name="short", target=target)).splitlines()
    status = any_report.verdict.status

    assert lines[1].startswith(f"{SYMBOLS[status]} {any_report.verdict.sentence[:7]}")


def test_symbols_and_words_hold_without_colour():
    assert len(set(SYMBOLS.values())) == len(SYMBOLS)
    assert set(STYLES) == set(SYMBOLS)


def test_other_batches_are_shown_and_called_not_judged(example):
    assert "batch 64, not judged: p50 421 → 175 ms, 2.42x [2.37, 2.49]" in printed(example)


def test_what_was_not_measured_says_why(bare):
    text = printed(bare)

    assert text.count(figures.NOT_MEASURED) == 4
    assert tables.NO_LATENCY in text
    assert "no budget was set" in text


@given(st.text(min_size=1, max_size=80))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_is_read_as_markup_or_command(bare, name):
    text = printed(bare.replace(name=f"[red]{name}[/]:smile:"))

    assert text.startswith("[red]")
    assert "\x1b" not in text
    assert "[/]:smile:" in text.replace("\n", "")


def test_no_name_in_a_table_is_read_as_markup(example):
    name = "[red]x[/]"
    text = printed(
        example.replace(
            accuracy=example.accuracy.replace(metric=name),
            stages=(example.stages[0].replace(name=name),),
            target=example.target.replace(runtime=name),
        ),
        width=120,
    )

    assert text.count(name) == 5  # the engine in the title, the metric, unpruned and engine, the stage
