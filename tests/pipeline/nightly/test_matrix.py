"""The matrix: what may be written, and every problem of it in one go."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from pipeline.nightly.matrix import deadline_after, load_matrix, matrix_schema, seconds_of
from targets.errors import InputError

GOOD = {
    "format": "vitrim.matrix/1",
    "name": "lab",
    "recipes": [{"recipe": "digits.yaml"}],
    "devices": ["red", "green"],
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(**changes: object) -> Path:
        path = tmp_path / "matrix.yaml"
        path.write_text(yaml.safe_dump({**GOOD, **changes}))
        return path

    return make


def test_defaults_are_filled_in_beside_the_matrix(write: Write, tmp_path: Path) -> None:
    matrix = load_matrix(write())

    assert matrix.recipes[0].recipe == tmp_path / "digits.yaml"
    assert matrix.history.files == tmp_path / "lab.nights"
    assert matrix.history.url == f"sqlite:///{tmp_path / 'lab.nights' / 'history.sqlite'}"
    assert matrix.level == "full"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "vitrim.matrix/2"}, "format: must be 'vitrim.matrix/1', got 'vitrim.matrix/2'"),
        ({"recipes": []}, "recipes: must be a list of at least 1, got []"),
        ({"recipe": []}, "unknown key; did you mean 'recipes' or 'retries'?"),
        ({"devices": ["red", "red"]}, "devices names 'red' twice"),
        (
            {"recipes": [{"recipe": "a.yaml", "devices": ["blue"]}]},
            "names the device 'blue', which is not among devices",
        ),
        ({"deadline": "soon"}, "deadline: must be a text that matches"),
        ({"policy": {"window": 1}}, "policy.window: must be a whole number at least 3, got 1"),
        ({"policy": {"windw": 14}}, "policy.windw: unknown key; did you mean 'window'?"),
        ({"history": {"url": "mysql://x"}}, "history.url: must be a text that matches"),
        ({"level": "fast"}, "level: must be 'quick' or 'full', got 'fast'"),
        ({"retries": "2"}, "retries: must be a whole number at least 0 and at most 10"),
    ],
)
def test_each_mistake_is_told_with_what_is_allowed(write: Write, changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_matrix(write(**changes))
    assert words in str(caught.value)


def test_all_mistakes_are_told_at_once(write: Write) -> None:
    with pytest.raises(InputError, match="3 problems"):
        load_matrix(write(level="fast", retries=-1, deadline=""))


def test_a_matrix_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read: No such file or directory; docs/nightly.md"):
        load_matrix(tmp_path / "none.yaml")


def test_the_schema_accepts_what_is_loaded_and_nothing_else(write: Write) -> None:
    schema = matrix_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)

    assert validator.is_valid(json.loads(json.dumps(GOOD)))
    for wrong in ({"level": "fast"}, {"devices": []}, {"other": 1}):
        assert not validator.is_valid({**GOOD, **wrong})


def test_the_example_of_the_guide_loads(root: Path, tmp_path: Path) -> None:
    text = (root / "docs" / "nightly.md").read_text()
    example = text.partition("```yaml\n# matrix.yaml\n")[2].partition("```")[0]
    path = tmp_path / "matrix.yaml"
    path.write_text(example)

    assert load_matrix(path).name == "shelf"


def test_every_key_of_the_matrix_and_the_policy_is_in_the_guide(root: Path) -> None:
    from pipeline.nightly.matrix import History, Matrix, MatrixRecipe
    from pipeline.nightly.rules import Policy

    text = (root / "docs" / "nightly.md").read_text()
    keys = [name for model in (Matrix, MatrixRecipe, History, Policy) for name in model.model_fields]

    assert [name for name in keys if f"`{name}`" not in text] == []


@pytest.mark.parametrize(("text", "seconds"), [("6h", 21600), ("90m", 5400), ("1.5h", 5400), ("30s", 30)])
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


def test_a_deadline_is_a_duration_or_the_next_such_time_of_day(monkeypatch: pytest.MonkeyPatch) -> None:
    start = datetime(2026, 1, 1, 22, 0, tzinfo=UTC).astimezone()

    assert (deadline_after("6h", start) - start).total_seconds() == 6 * 3600
    end = deadline_after(start.strftime("%H:%M"), start)
    assert (end - start).days == 1
