"""`vitrim nightly` as it is typed: boards are fake devices, builds are made up where they would take long."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "nightly"))  # for fake_boards.py

from fake_boards import FakeBoard, FakeBuilder

Command = Callable[..., Any]
MATRIX = """\
format: vitrim.matrix/1
name: lab
recipes: [{recipe: recipe.yaml}]
devices: [red, green]
level: quick
"""
DEVICES = """\
format: vitrim.devices/1
devices:
  red: {kind: fake, target: cpu, script: script.yaml}
  green: {kind: fake, target: cpu, script: script.yaml}
"""


@pytest.fixture
def matrix(tmp_path: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A matrix with its devices file beside it."""
    monkeypatch.delenv("VITRIM_DEVICES", raising=False)
    write_recipe()
    (tmp_path / "devices.yaml").write_text(DEVICES)
    (tmp_path / "script.yaml").write_text("milliseconds: 1\n")
    path = tmp_path / "matrix.yaml"
    path.write_text(MATRIX)
    return path


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> FakeBuilder:
    """Boards and builds that are made up, behind the real commands."""
    builder = FakeBuilder()
    boards = {name: FakeBoard(name) for name in ("red", "green")}
    monkeypatch.setattr("pipeline.nightly.boards.open_boards", lambda *_: boards)
    monkeypatch.setattr("pipeline.nightly.builder.ProcessBuilder", lambda **_: builder)
    return builder


def test_the_cells_are_shown_and_nothing_runs(command: Command, matrix: Path) -> None:
    answer = command("nightly", "run", matrix, "--dry-run")

    assert answer.code == 0, answer.err
    assert "tried@red\n  vitrim build recipe.yaml --target cpu --output out/tried" in answer.out
    assert not (matrix.parent / "lab.nights").exists()


def test_a_night_is_told_kept_and_drawn(command: Command, matrix: Path, pretended: FakeBuilder) -> None:
    answer = command("nightly", "run", matrix)

    assert answer.code == 0, answer.err
    assert "nothing to look at: 2 cells" in answer.out
    (page,) = (matrix.parent / "lab.nights" / "reports").glob("*/index.html")
    assert page.stat().st_size > 10_000
    assert command("nightly", "report", matrix).code == 0
    listed = command("nightly", "list", matrix, "--json")
    assert [(row["ended"], row["alarms"]) for row in json.loads(listed.out)] == [("finished", 0)]


def test_a_failed_cell_is_exit_1_with_an_annotation(command: Command, matrix: Path, pretended: FakeBuilder) -> None:
    pretended.trouble = lambda unit: "parity failed"

    answer = command("nightly", "run", matrix, "--github")

    assert answer.code == 1
    assert "::error title=tried@red::failed: parity failed" in answer.out
    report = command("nightly", "report", matrix, "--json")
    assert report.code == 1
    assert {cell["status"] for cell in json.loads(report.out)["cells"]} == {"failed"}


def test_a_regression_is_accepted_and_a_run_pinned(command: Command, matrix: Path, pretended: FakeBuilder) -> None:
    for _ in range(6):
        assert command("nightly", "run", matrix).code == 0
    pretended.speed = lambda unit: 1.08
    assert command("nightly", "run", matrix).code == 1

    accepted = command("nightly", "accept", matrix, "--cell", "tried@red", "--note", "wanted")
    assert accepted.code == 0, accepted.err
    assert accepted.out.count("accepted: tried@red") == 2  # latency and energy
    assert command("nightly", "pin", matrix).code == 0
    after = command("nightly", "run", matrix)
    assert after.code == 1
    assert "tried on red" not in after.out
    assert "tried on green" in after.out
    again = command("nightly", "rejudge", matrix)
    assert again.code == 0, again.err
    assert " 0 others than before" in again.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "none.yaml"), "cannot be read: No such file or directory"),
        (("report", "{matrix}"), "has no run yet"),
        (("accept", "{matrix}"), "has no run yet"),
        (("bisect", "{matrix}"), "has no run yet"),
        (("bisect", "{matrix}", "--good", "a", "--bad", "b"), "--good and --bad need --cell RECIPE@DEVICE"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(command: Command, matrix: Path, words: tuple[str, ...], said: str) -> None:
    answer = command("nightly", *(word.format(matrix=matrix) for word in words))

    assert answer.code == 2
    assert said in answer.err
    assert answer.err.count("\n") == 1


def test_a_device_that_is_not_listed_is_named_with_those_that_are(command: Command, matrix: Path) -> None:
    matrix.write_text(MATRIX.replace("green", "gren"))

    answer = command("nightly", "run", matrix)

    assert answer.code == 2
    assert "unknown device 'gren'; did you mean 'green'?" in answer.err


def test_a_wrong_recipe_of_a_matrix_is_told_before_anything_runs(command: Command, matrix: Path) -> None:
    (matrix.parent / "recipe.yaml").write_text("vitrim: 2\n")

    answer = command("nightly", "run", matrix)

    assert answer.code == 2
    assert "recipe.yaml" in answer.err
    assert "Traceback" not in answer.err


def test_two_recipes_of_one_name_are_refused(command: Command, matrix: Path) -> None:
    matrix.write_text(MATRIX.replace("[{recipe: recipe.yaml}]", "[{recipe: recipe.yaml}, {recipe: recipe.yaml}]"))

    answer = command("nightly", "run", matrix)

    assert answer.code == 2
    assert "two recipes are called 'tried'" in answer.err


def test_what_there_is_not_to_accept_is_said(command: Command, matrix: Path, pretended: FakeBuilder) -> None:
    command("nightly", "run", matrix)

    assert "has no regression to accept" in command("nightly", "accept", matrix).err
    unknown = command("nightly", "accept", matrix, "--cell", "tried@rot")
    assert "unknown cell 'tried@rot'; did you mean 'tried@red'" in unknown.err
    assert "has no regression to bisect" in command("nightly", "bisect", matrix).err
