"""compare: a difference counts where intervals lie apart, and nothing is ranked across other images or machines."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.compare.entry import Entry, Figure, read_entries
from pipeline.compare.judge import compare
from pipeline.compare.pages import HEADS, rows, to_html, to_markdown, write_page
from pipeline.report.files import read_report, to_json
from pipeline.report.record import Report
from targets.errors import InputError

Write = Callable[..., Path]
VALIDATED = {
    "bundle": "out/cpu/bundle",
    "runtime": "openvino",
    "precision": "int8",
    "engine_sha256": "ab" * 32,
    "machine": "a processor",
    "batch": 1,
    "latency_p50_ms": 3.1,
    "latency_p50_ms_ci95": [3.0, 3.2],
    "stable": True,
    "throttled": [],
    "images": 100,
    "images_digest": "d1",
    "top1": 0.9,
}


@pytest.fixture
def example(root: Path) -> Report:
    report = read_report(root / "tests" / "golden" / "report")
    assert report.accuracy is not None
    return report.replace(
        accuracy=report.accuracy.replace(images_digest="d1"), reproduce={"recipe": "a: b", "engine_sha256": "ab" * 32}
    )


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(content: Report | dict[str, Any], name: str = "") -> Path:
        path = tmp_path / (name or f"{len(list(tmp_path.glob('*.json')))}.json")
        path.write_text(to_json(content) if isinstance(content, Report) else json.dumps(content))
        return path

    return make


def entry(letter: str, **changes: Any) -> Entry:
    made = Entry(
        letter=letter,
        name="m",
        where="cpu",
        engine="openvino int8",
        engine_sha256=letter,
        model="vit",
        batch=1,
        machine="a processor",
        metric="top1",
        accuracy=Figure(value=0.78, interval=(0.76, 0.80)),
        baseline_accuracy=0.8,
        drop_points=Figure(value=2.0, interval=(1.0, 3.0)),
        images=1000,
        same_images=("d1",),
        p50_ms=Figure(value=4.0, interval=(3.9, 4.1)),
        baseline="vit in fp32 on onnxruntime",
        baseline_p50_ms=Figure(value=8.0, interval=(7.9, 8.1)),
        speedup=Figure(value=2.0, interval=(1.9, 2.1)),
        size_bytes=1000,
    )
    return replace(made, **changes)


def outcome(what: str, **changes: Any) -> tuple[str, str]:
    found = next(one for one in compare([entry("A"), entry("B", **changes)]) if what in one.what)
    return found.outcome, found.words


@pytest.mark.parametrize(
    ("what", "changes", "expected"),
    [
        ("latency", {"p50_ms": Figure(value=3.0, interval=(2.9, 3.1))}, "better"),
        ("latency", {"p50_ms": Figure(value=5.0, interval=(4.9, 5.1))}, "worse"),
        ("latency", {"p50_ms": Figure(value=3.8, interval=(3.7, 3.95))}, "tie"),
        ("latency", {"p50_ms": Figure(value=3.8, interval=(3.7, 3.9))}, "tie"),
        ("speed-up", {"speedup": Figure(value=2.5, interval=(2.4, 2.6))}, "better"),
        ("speed-up", {"speedup": Figure(value=1.5, interval=(1.4, 1.6))}, "worse"),
        ("accuracy", {"drop_points": Figure(value=5.0, interval=(4.0, 6.0))}, "worse"),
        ("accuracy", {"drop_points": Figure(value=0.0, interval=(-0.5, 0.5))}, "better"),
        ("accuracy", {"drop_points": Figure(value=1.0, interval=(0.0, 2.0))}, "tie"),
        ("size", {"size_bytes": 900}, "better"),
        ("size", {"size_bytes": 1100}, "worse"),
        ("size", {}, "tie"),
    ],
)
def test_a_difference_counts_where_the_intervals_lie_apart(what, changes, expected) -> None:
    assert outcome(what, **changes)[0] == expected


def test_another_baseline_leaves_the_shares_themselves() -> None:
    wide = Figure(value=0.9, interval=(0.88, 0.92))

    assert outcome("accuracy", baseline_accuracy=0.9, accuracy=wide) == (
        "better",
        "78.0 % [76.0, 80.0] and 90.0 % [88.0, 92.0]",
    )


@pytest.mark.parametrize(
    ("what", "changes", "words"),
    [
        ("accuracy", {"same_images": ("d2",)}, "other images: 1,000 and 1,000"),
        ("accuracy", {"same_images": ()}, "it is not told whether the images are the same"),
        ("accuracy", {"metric": "knn_top1"}, "other metrics: 'top1' and 'knn_top1'"),
        ("accuracy", {"proxy": "its graph in ONNX Runtime"}, "a proxy answered"),
        ("accuracy", {"accuracy": None}, "B has none"),
        ("accuracy", {"drop_points": Figure(value=9.0, interval=None)}, "without an interval"),
        ("latency", {"machine": "another"}, "other machines: 'a processor' and 'another'"),
        ("latency", {"machine": ""}, "not told which machine"),
        ("latency", {"batch": 8}, "other batch sizes: 1 and 8"),
        ("latency", {"doubts": ("the machine throttled (heat)",)}, "B: the machine throttled (heat)"),
        ("latency", {"p50_ms": None}, "B was not timed"),
        (
            "latency",
            {"baseline_p50_ms": Figure(value=9.0, interval=(8.9, 9.1))},
            "the machine was not the same in both runs: the same baseline took 8.00 [7.90, 8.10] ms and 9.00",
        ),
        ("speed-up", {"machine": "another"}, "other machines"),
        ("speed-up", {"baseline": "vit in fp32 on openvino"}, "over other baselines"),
        ("speed-up", {"speedup": None}, "B has none"),
        ("size", {"size_bytes": None}, "B does not tell it"),
    ],
)
def test_other_conditions_are_named_and_not_ranked(what, changes, words) -> None:
    found, told = outcome(what, **changes)

    assert found == "not compared"
    assert words in told


def test_a_machine_that_became_slower_leaves_the_speedups() -> None:
    slower = {"baseline_p50_ms": Figure(value=9.0, interval=(8.9, 9.1))}

    assert outcome("latency", **slower)[0] == "not compared"
    assert outcome("speed-up", **slower)[0] == "tie"


def test_the_same_engine_is_a_tie_in_accuracy_whatever_chance_says() -> None:
    found = compare([entry("A", engine_sha256="x"), entry("B", engine_sha256="x")])

    assert (found[0].what, found[0].outcome) == ("engine", "tie")


def test_every_result_is_held_against_the_first() -> None:
    found = compare([entry("A"), entry("B"), entry("C")])

    assert [(one.first, one.second) for one in found[::4]] == [("A", "B"), ("A", "C")]


@given(a=st.tuples(st.floats(1, 9), st.floats(1, 9)), b=st.tuples(st.floats(1, 9), st.floats(1, 9)))
def test_who_is_compared_with_whom_does_not_matter(a, b) -> None:
    one, other = (Figure(value=sum(pair) / 2, interval=(min(pair), max(pair))) for pair in (a, b))
    there, back = (
        next(found.outcome for found in compare([entry("A", p50_ms=x), entry("B", p50_ms=y)]) if "p50" in found.what)
        for x, y in ((one, other), (other, one))
    )

    assert {there, back} in ({"tie"}, {"better", "worse"})


# Reading.


def test_a_report_and_a_validation_are_compared(example: Report, write: Write) -> None:
    machine = {"cpu_model": "a processor"}
    first = example.replace(conditions={"device": machine})
    one, other = read_entries([write(first), write({**VALIDATED, "engine_sha256": "cd" * 32})])
    found = {found.what: found.outcome for found in compare([one, other])}

    assert (one.letter, other.letter) == ("A", "B")
    assert (one.machine, other.machine) == ("a processor", "a processor")
    assert found["accuracy"] == "better", "78.4 % of 1,100 and 90 % of 100: the intervals lie apart"
    assert found["latency p50"] == "better"
    assert found["speed-up"] == "not compared"


def test_a_report_of_version_1_is_known_by_the_images_of_its_recipe(root: Path, write: Write) -> None:
    old = json.loads((root / "tests" / "golden" / "report" / "version_1.json").read_text())
    old["reproduce"] = {"recipe": "data:\n  evaluate: {images: val.zip}\n"}
    other = {**old, "reproduce": {"recipe": "data: {evaluate: {images: other.zip}}"}}
    first, second, third = read_entries([write(old), write(old), write(other)])

    assert set(first.same_images) & set(second.same_images)
    assert not set(first.same_images) & set(third.same_images)


def test_a_folder_of_targets_gives_one_result_each(example: Report, write: Write, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "out" / name).mkdir(parents=True)
        write(example, f"out/{name}/report.json")

    assert len(read_entries([tmp_path / "out"])) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "is no vitrim report"),
        ('{"bundle": "b", "latency_p50_ms": 3}', "is not what `vitrim validate --json` writes"),
        (json.dumps({**VALIDATED, "latency_p50_ms_ci95": [1]}), "is not what `vitrim validate --json` writes"),
        (json.dumps({**VALIDATED, "batch": "many"}), "is not what `vitrim validate --json` writes"),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "x.json").write_text(content)

    with pytest.raises(InputError, match=re.escape(words)) as caught:
        read_entries([tmp_path / "x.json", tmp_path / "x.json"])
    assert len(str(caught.value).splitlines()) == 1


def test_one_result_or_none_cannot_be_compared(example: Report, write: Write, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"two results or more, got 1"):
        read_entries([write(example)])
    with pytest.raises(InputError, match=r"no report.json in"):
        read_entries([tmp_path, tmp_path])
    with pytest.raises(InputError, match=r"at most 26"):
        read_entries([write(example)] * 27)


# Pages.


def test_the_pages_show_every_figure_and_every_outcome(example: Report, write: Write) -> None:
    entries = read_entries([write(example), write(example.replace(name="<b>|*x*"))])
    found = compare(entries)
    page, text = to_html(entries, found), to_markdown(entries, found)

    assert "<b>|" not in page
    assert "&lt;b&gt;|*x*" in page
    assert "\\<b\\>\\|\\*x\\*" in text
    for one in found:
        assert page.count(f"<td>{one.outcome}</td>") >= 1
        assert f"| {one.second}: {one.what} | {one.outcome}: " in text
    assert {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| ")} == {9, 3}
    assert all(len(row) == len(HEADS) for row in rows(entries))
    assert "script" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)


def test_a_page_goes_where_its_ending_says(example: Report, write: Write, tmp_path: Path) -> None:
    entries = read_entries([write(example), write(example)])
    found = compare(entries)
    for name, begin in (("a.md", "# Comparison"), ("b.html", "<!doctype html>")):
        write_page(tmp_path / "new" / name, entries, found)
        assert (tmp_path / "new" / name).read_text().startswith(begin)

    with pytest.raises(InputError, match=r"ends with .md or .html, got 'c.pdf'"):
        write_page(tmp_path / "c.pdf", entries, found)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"choose another output"):
        write_page(tmp_path / "file" / "a.md", entries, found)
