"""What a build prints while it runs, where nobody watches a terminal."""

import pytest

from pipeline.cli.console import PlainLines
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
