"""Every method has its page, pages are alike, and their figures are those of the result files."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from blocks import inline_code, pages, section

ROOT = Path(__file__).resolve().parents[2]
METHODS = sorted(set((ROOT / "docs" / "methods").glob("*.md")) - {ROOT / "docs" / "methods" / "index.md"})
CHOICES = [
    ("prune_mlp", "method"),
    ("prune_mlp", "repair"),
    ("prune_attention", "method"),
    ("prune_width", "method"),
    ("prune", "mlp_method"),
    ("prune", "attention_method"),
    ("drop_attention", "by"),
    ("merge_tokens", "metric"),
    ("quantize", "precision"),
    ("quantize_aware", "precision"),
    ("distill", "dilution"),
    ("distill", "held_out"),
]
"""Options that choose a method."""
HEADINGS = ["What ours does differently", "When to use it", "Figures"]
UNITS = (1.0, 100.0, 1e-6, 1e-9)
"""as it stands, a share in percent, bytes or counts in millions and billions"""


def literals(annotation: Any) -> set[str]:
    """The words that a type allows."""
    if get_origin(annotation) is Literal:
        return {one for one in get_args(annotation) if isinstance(one, str)}
    return {word for inner in get_args(annotation) for word in literals(inner)}


@pytest.mark.parametrize(("stage", "option"), CHOICES)
def test_every_choice_of_a_method_stands_on_a_page_of_its_own(stage: str, option: str) -> None:
    from stages.catalog import get_stage

    wanted = {
        f"{stage}: {{{option}: {word}}}" for word in literals(get_stage(stage).options.model_fields[option].annotation)
    }
    named = [code for page in METHODS for code in inline_code(page.read_text().split("\n## ")[0])]
    homeless = sorted(code for code in wanted if code not in named)

    assert wanted
    assert homeless == []
    assert sorted(code for code in set(named) if code.startswith(f"{stage}: {{{option}: ") and code not in wanted) == []


def test_every_option_named_method_is_among_the_choices() -> None:
    from stages.catalog import CATALOG, get_stage

    named = [
        (stage, option)
        for stage in CATALOG
        for option, field in get_stage(stage).options.model_fields.items()
        if option.endswith("method") and literals(field.annotation)
    ]

    assert [one for one in named if one not in CHOICES] == []


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_pages_of_methods_have_the_same_headings(page: Path) -> None:
    found = re.findall(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)

    assert found[0] in ("The method", "The formulas")
    assert [one for one in found if one in HEADINGS or one.startswith("When to use")][-3:] == [
        HEADINGS[0],
        *[one for one in found if one.startswith("When to use")],
        HEADINGS[2],
    ]


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_the_code_that_a_page_names_is_there(page: Path) -> None:
    files = [code for code in inline_code(page.read_text()) if re.match(r"(stages|pipeline|benchmarks|recipes)/", code)]

    assert files
    assert [file for file in files if not (ROOT / file).exists() and not file.startswith("benchmarks/results/")] == []


def figures(text: str) -> list[str]:
    """Numbers with a point, outside code and links, and but for rules of thumb (±2.5)."""
    plain = re.sub(r"`[^`]*`|\]\([^)]*\)|arXiv [0-9.]+", " ", text)
    plain = re.sub(r"(?:[^.]|\.(?=\d))*\(a try, no result file\)", " ", plain)
    return re.findall(r"(?<![\w.,±])\d+\.\d+(?![\w.]*\d)", plain)


def results(text: str) -> list[Path]:
    """The result files that a text names."""
    return [ROOT / name for name in dict.fromkeys(re.findall(r"benchmarks/results/\w+\.json", text))]


def numbers(value: Any) -> Iterator[float]:
    """All numbers of a JSON document, those in its texts too."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        yield float(value)
    elif isinstance(value, str):
        yield from map(float, re.findall(r"\d+\.\d+", value))
    else:
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)


def foreign(text: str) -> list[str]:
    """Figures of a text that are in none of its result files, rounded as they are written."""
    known = [one for file in results(text) for one in numbers(json.loads(file.read_text()))]
    return [
        figure
        for figure in figures(text)
        if not any(
            abs(one * unit - float(figure)) <= 0.5 * 10.0 ** -len(figure.partition(".")[2]) + 1e-9
            for one in known
            for unit in UNITS
        )
    ]


def measured() -> list[tuple[str, str]]:
    """Pages with the text of theirs that holds figures."""
    found = [(page.relative_to(ROOT).as_posix(), section(page.read_text(), "Figures")) for page in pages(ROOT)]
    readme = (ROOT / "README.md").read_text()
    start = readme.index("Real results")
    return [("README.md", readme[start : readme.index("\n## ", start)]), *(one for one in found if results(one[1]))]


@pytest.mark.parametrize(("page", "text"), measured(), ids=lambda value: value if value.endswith(".md") else "")
def test_figures_are_those_of_the_result_files_that_a_page_names(page: str, text: str) -> None:
    assert figures(text), page
    assert [file.name for file in results(text) if not file.is_file()] == []
    assert foreign(text) == []


def test_a_figure_that_was_never_measured_is_noticed() -> None:
    text = section((ROOT / "docs" / "methods" / "ols.md").read_text(), "Figures")

    assert foreign(text.replace("61.5", "62.9")) == ["62.9"]
    assert foreign(text.replace("| 74.9 |", "| 78.3 |")) == ["78.3"]


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_a_page_without_a_result_file_says_that_nothing_was_measured(page: Path) -> None:
    text = section(page.read_text(), "Figures")

    assert results(text) or re.search(r"[Nn]ot yet measured|None yet", text)
