"""Result files that are measured in parts: every row says what it was measured with."""

import json
from pathlib import Path

import pytest

from benchmarks import conditions


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another folder of result files."""
    monkeypatch.setattr(conditions, "RESULTS", tmp_path)
    monkeypatch.setattr(conditions, "ROOT", tmp_path.parent)
    return tmp_path


def test_rows_of_an_earlier_part_keep_what_they_were_measured_with(results: Path) -> None:
    path = conditions.write_result("some", {"rows": [{"name": "first"}]})
    written = json.loads(path.read_text())
    written["conditions"] |= {"commit": "before", "cpu": "another"}
    path.write_text(json.dumps(written))

    rows = conditions.read_result("some")["rows"]
    rows.append({"name": "second", **conditions.measured_with()})
    conditions.write_result("some", {"rows": rows})

    first, second = conditions.read_result("some")["rows"]
    assert (first["name"], first["commit"], first["cpu"]) == ("first", "before", "another")
    assert (second["name"], second["cpu"]) == ("second", conditions.conditions()["cpu"])
    assert set(conditions.STAMP) <= first.keys() & second.keys()


def test_nothing_is_kept_of_a_file_that_is_not_there(results: Path) -> None:
    assert conditions.read_result("some") == {}
