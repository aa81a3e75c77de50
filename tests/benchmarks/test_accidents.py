"""Deliberate accidents: those that take seconds are staged here, and the table tells what goes unnoticed."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import accidents, results_page
from benchmarks.accident import Accident, Said, Workshop
from benchmarks.accidents_numbers import OURS

QUICK = [one for one in accidents.ACCIDENTS if one.quick]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("accidents"))


@pytest.mark.slow
@pytest.mark.parametrize("accident", QUICK, ids=lambda one: one.name)
def test_quick_accidents_are_caught_in_vitrim_s_own_words(accident: Accident, shop: Workshop) -> None:
    if accident.needs and importlib.util.find_spec(accident.needs) is None:
        pytest.skip(f"{accident.needs} is not installed: pip install 'vitrim[rtx]'")

    row = accidents.staged(accident, shop)

    assert row["caught"], row
    assert row["said"]
    assert str(shop.place) not in json.dumps(row)


def accident(name: str, *, caught: bool, hole: str = "") -> Accident:
    found = Said(caught=caught, said="so it is" if caught else "")
    return Accident(name=name, done="done", by="somebody", stage=lambda shop: found, tests=(), hole=hole)


@pytest.mark.parametrize(
    ("staged", "code"),
    [
        (accident("caught", caught=True), None),
        (accident("missed", caught=False), "missed"),
        (accident("a known hole", caught=False, hole="nobody can know"), None),
        (accident("a hole that is closed", caught=True, hole="nobody can know"), "a hole that is closed"),
    ],
    ids=lambda one: one.name if isinstance(one, Accident) else "",
)
def test_the_script_fails_where_one_goes_unnoticed_that_should_be_caught(
    monkeypatch: pytest.MonkeyPatch, staged: Accident, code: str | None
) -> None:
    monkeypatch.setattr(accidents, "ACCIDENTS", (accident("another", caught=True), staged))

    if code is None:
        accidents.main(["--only", staged.name])
        return
    with pytest.raises(SystemExit, match=f"not as it should be: {code}"):
        accidents.main(["--only", staged.name])


def test_what_passes_for_caught_is_vitrim_s_refusal_with_the_words_that_matter() -> None:
    from benchmarks.accident import Answer, said_by, said_by_command
    from targets.errors import InputError

    def refuse() -> None:
        raise InputError("version '1', here '2'")

    assert said_by(refuse, "'1'", "'2'") == Said(caught=True, said="version '1', here '2'")
    assert not said_by(refuse, "'3'").caught
    assert not said_by(lambda: None).caught
    with pytest.raises(ZeroDivisionError):  # a defect is no refusal
        said_by(lambda: 1 / 0)
    assert said_by_command(Answer(2, "", "vitrim: no such file\n"), 2, "no such file").caught
    assert not said_by_command(Answer(0, "", "vitrim: no such file\n"), 2, "no such file").caught
    assert not said_by_command(Answer(2, "", "Traceback\nno such file\n"), 2, "no such file").caught


def test_every_test_that_the_table_names_is_there(root: Path) -> None:
    named = {one for row in accidents.ACCIDENTS for one in row.tests}
    missing = [
        one
        for one in named
        if not re.search(rf"^def {one.partition('::')[2]}\(", (root / one.partition("::")[0]).read_text(), re.MULTILINE)
    ]

    assert missing == []


def test_quick_accidents_name_the_test_that_stages_them() -> None:
    assert [one.name for one in accidents.ACCIDENTS if (OURS in one.tests) != one.quick] == []


def test_the_committed_table_has_every_accident_and_nothing_missed(root: Path) -> None:
    rows = json.loads((root / "benchmarks/results/accidents.json").read_text())["rows"]

    assert [row["accident"] for row in rows] == [one.name for one in accidents.ACCIDENTS]
    assert accidents.missed(rows) == []


def test_the_page_says_what_was_caught_and_what_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = {"measured_at": "2026-11-27T10:00:00+00:00", "cores": 2, "cpu": "some CPU", "versions": {}}
    row: dict[str, Any] = {"accident": "one", "done": "a", "noticed_by": "b", "exit_code": 2, "found": "", "hole": ""}
    rows = [
        {**row, "caught": True, "said": "no | never"},
        {**row, "caught": False, "said": "", "hole": "nobody can know", "exit_code": None},
        {"accident": "two", "skipped": "c is not installed"},
    ]
    (tmp_path / "accidents.json").write_text(json.dumps({"conditions": conditions, "rows": rows}))
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)

    page = results_page.page()

    assert "1 of 2 caught" in page
    assert r"| **one**: a | by b | 2 | no \| never | - |" in page
    assert "| **one**: a | **not caught**: nobody can know | - | - | - |" in page
    assert "| two | not staged: c is not installed | - | - | - |" in page
