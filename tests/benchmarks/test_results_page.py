"""The page of results says what the result files say, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results_page

CONDITIONS = {"measured_at": "2026-11-26T10:00:00+00:00", "cores": 2, "cpu": "some CPU"}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """results(name, data): write a result file where the page looks for it."""
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)

    def write(name: str, data: dict[str, Any]) -> None:
        (tmp_path / f"{name}.json").write_text(json.dumps({"conditions": CONDITIONS, **data}))

    return write


def test_the_committed_page_is_up_to_date() -> None:
    assert results_page.PAGE.read_text() == results_page.page()


def test_what_was_not_measured_is_said(results: Any) -> None:
    assert results_page.page().count("Not yet measured") == len(results_page.SECTIONS)


def test_every_section_names_its_script_and_there_is_one(root: Path) -> None:
    for name in results_page.SECTIONS:
        words = results_page.COMMANDS.get(name, f"benchmarks/{name}.py").split()
        assert all((root / word).is_file() for word in words if "/" in word), name


def test_figures_come_from_the_file(results: Any) -> None:
    row = {"method": "ols", "repair": "sequential", "take_back": 0.7, "refine": 0, "agreement": 0.847}
    results(
        "mlp_pruning",
        {
            "model": "some_vit",
            "evaluation": {"images": 1100},
            "calibration": {"images": 1000, "set": "some set"},
            "top1_source": 0.798,
            "rows": [{**row, "keep": 0.75, "top1": 0.765}, {**row, "keep": 0.5, "top1": 0.615}],
        },
    )

    page = results_page.page()

    assert "| ols, sequential | 76.5 (84.7) | 61.5 (84.7) |" in page
    assert "top-1 79.8 on 1,100 images, calibrated on 1,000 of some set" in page
    assert "2026-11-26, 2 cores of some CPU" in page


def test_rows_of_several_machines_are_told_apart() -> None:
    old = {**CONDITIONS, "instruction_sets": ["avx2", "avx512f"]}
    new = {**CONDITIONS, "measured_at": "2026-11-28T10:00:00+00:00", "instruction_sets": ["avx2"]}

    assert results_page.machines({"conditions": new, "rows": [new, new]}) == "2026-11-28, 2 cores of some CPU"
    assert results_page.machines({"conditions": new, "rows": [old, new]}) == (
        "rows of several machines: 2026-11-26, 2 cores of some CPU with avx512f; "
        "2026-11-28, 2 cores of some CPU with avx2"
    )


def test_widths_that_a_threshold_found_are_shown(results: Any) -> None:
    row = {"method": "similarity", "measure": "cosine", "repair": "none", "refine": 0, "top1": 0.7, "agreement": 0.8}
    results(
        "mlp_pruning",
        {
            "model": "some_vit",
            "evaluation": {"images": 1100},
            "top1_source": 0.798,
            "rows": [{**row, "keep": 0.5}],
            "thresholds": [{**row, "threshold": 0.98, "widths": [768, 640, 704]}],
        },
    )

    assert "| similarity cosine, no repair | 0.98 | 640 to 768 | 70.0 | 80.0 |" in results_page.page()


@pytest.mark.parametrize(("exact", "words"), [(True, "solved exactly in 14 ms"), (False, "several limits at once")])
def test_what_a_search_decided_in_a_whole_job_is_told(results: Any, exact: bool, words: str) -> None:
    whole = {"before": [3, 64, 64], "after": [3, 64, 64]}
    search = {
        "precision": "int8",
        "runtime": "openvino",
        "size": [176, 176],
        "sublayers": [whole, {**whole, "after": [2, 64, 64]}],
        "exact": exact,
        "solve_ms": 14.4,
        "rounds": [{"measured": 0.6123}],
    }
    size = {"macs": {"before": 100, "after": 48}}
    told = {"verdict": {"sentence": "within budget: 2.1x faster"}, "size": size, "recipe": "vit_tiny_auto.yaml"}
    results("end_to_end_auto", {**told, "search": search})

    page = results_page.page()

    assert "`vitrim build recipes/vit_tiny_auto.yaml`: within budget: 2.1x faster." in page
    assert "pictures of 176 x 176: 1 of 2 sublayers changed, 48.0 % of the multiply-accumulates are left" in page
    assert words in page
    assert "`benchmarks/end_to_end.py --recipe recipes/vit_tiny_auto.yaml --set budget.latency_ratio=0.6` → " in page


def test_builds_are_shown_with_their_intervals(results: Any) -> None:
    row = {
        "name": "allocated",
        "asked": 0.7,
        "macs_share": 0.66,
        "ratio": 0.683,
        "ratio_ci95": [0.67, 0.695],
        "top1": 0.724,
        "drop_points": 7.4,
        "drop_ci95": [5.5, 9.4],
        "agreement": 0.81,
    }
    uniform = {**row, "name": "dgmr", "asked": 0.5, "asked_of": "50% of MLPs"}
    results("allocation", {"runtime": "onnxruntime", "precision": "fp32", "rows": [row, uniform]})

    assert "| dgmr | 50% of MLPs | 66.0 | 0.683 " in results_page.page()
    assert "| allocated | 0.7 | 66.0 | 0.683 [0.670, 0.695] | 72.4 | 7.4 [5.5, 9.4] | 81.0 |" in results_page.page()
