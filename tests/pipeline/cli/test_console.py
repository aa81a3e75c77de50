"""What a build prints while it runs, where nobody watches a terminal."""

import io

import pytest
from rich.console import Console

from pipeline.cli.console import LiveDisplay, PlainLines
from pipeline.events import Event


@pytest.mark.parametrize("columns", [40, 80])
def test_progress_stays_within_the_line(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    message = "process 2 of 2: warming up " + "whole " * 20

    PlainLines()(Event(kind="progress", step="choose shapes", index=8, total=10, message=message, share=0.5))

    line = capsys.readouterr().out.rstrip("\n")
    assert len(line) == columns
    assert line.startswith("[ 8/10] choose shapes 50% process")
    assert line.endswith("…")


LOST = (
    "candidate openvino_gpu int8 is out: openvino lists no GPU, only CPU: no /dev/dri/renderD* is Intel's; the kernel "
    "needs the driver i915 or xe for an Intel GPU; start a container with --device /dev/dri"
)


@pytest.mark.parametrize("columns", [40, 80, 400])
def test_a_warning_wraps_between_words_and_keeps_every_one(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))

    PlainLines()(Event(kind="warning", step="openvino_gpu int8", message=LOST))

    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[0].startswith("warning: candidate openvino_gpu int8")
    assert all(line.startswith("  ") for line in lines[1:])
    assert " ".join(line.strip() for line in lines) == f"warning: {LOST}"


def test_a_path_longer_than_the_line_stays_in_one_piece(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = "/somewhere/" + "deep-down/" * 8 + "model.onnx"

    PlainLines()(Event(kind="note", message=f"the graph is at {path}"))

    assert capsys.readouterr().out.splitlines() == ["the graph is at", f"  {path}"]


def test_a_terminal_shows_the_same_lines() -> None:
    written = io.StringIO()
    console = Console(file=written, width=60, force_terminal=True, color_system=None)
    with LiveDisplay(console) as show:
        show(Event(kind="warning", step="openvino_gpu int8", message=LOST))

    lines = written.getvalue().split("\n")
    assert lines[0].endswith(
        "warning: candidate openvino_gpu int8 is out: openvino lists"
    )  # behind what moves the cursor
    assert lines[1].startswith("  no GPU, only CPU: ")
    assert max(map(len, lines[1:-1])) <= 60
