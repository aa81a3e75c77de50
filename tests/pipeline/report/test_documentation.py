"""docs/report.md explains everything that a report can show."""

from typing import get_args

import pytest

from pipeline.report import html
from pipeline.report.record import Status
from pipeline.verdict import exit_code
from targets.measure.latency import LEVELS
from targets.profile import Budget


@pytest.fixture(scope="module")
def document(root):
    return (root / "docs" / "report.md").read_text(encoding="utf-8")


def rows(document):
    """Table rows by what their first cell says."""
    found = {}
    for line in document.splitlines():
        if line.startswith("| "):
            first, *rest = (cell.strip().strip("`") for cell in line.strip("|").split("|"))
            found[first] = rest
    return found


def test_every_section_of_the_page_is_explained_in_its_order(document):
    headings = [line.removeprefix("### ") for line in document.splitlines() if line.startswith("### ")]

    assert headings == ["Top", *(title for _, title in html.SECTIONS)]


def test_every_status_has_its_exit_codes(document):
    table = rows(document)

    for status in get_args(Status):
        assert [int(code) for code in table[status][1:]] == [exit_code(status), exit_code(status, strict=True)]


def test_every_key_of_the_budget_is_explained(document):
    assert set(Budget.model_fields) <= set(rows(document))


def test_the_levels_are_those_of_the_procedure(document):
    table = rows(document)

    for name, procedure in LEVELS.items():
        processes, queries, _ = table[name]
        assert processes == str(procedure.processes)
        assert queries.split()[0] == str(procedure.queries)
