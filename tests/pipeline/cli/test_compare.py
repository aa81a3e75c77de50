"""compare as a user types it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Command = Callable[..., Any]


def test_it_prints_a_table_that_fits_80_columns(command: Command, root: Path, tmp_path: Path) -> None:
    report = root / "tests" / "golden" / "report" / "report.json"
    answer = command("compare", report, report.with_name("version_1.json"), "-o", tmp_path / "c.html")
    told = json.loads(command("compare", report, report, "--json").out)

    assert answer.code == 0, answer.err
    assert max(map(len, answer.out.splitlines())) <= 80
    for words in ("vit-tiny-", "openvino", "tie: ", "lie apart"):
        assert words in answer.out
    assert (tmp_path / "c.html").is_file()
    assert [one["letter"] for one in told["results"]] == ["A", "B"]
    assert {one["outcome"] for one in told["comparisons"]} == {"tie"}


def test_bad_input_is_one_line(command: Command, root: Path, tmp_path: Path) -> None:
    report = root / "tests" / "golden" / "report"
    for words, part in (
        ((report,), "got 1"),
        ((report, tmp_path / "none.json"), "No such file"),
        ((report, report, "-o", tmp_path / "c.txt"), ".md or .html"),
    ):
        answer = command("compare", *words)
        assert answer.code == 2
        assert part in answer.err
        assert len(answer.err.strip().splitlines()) == 1
