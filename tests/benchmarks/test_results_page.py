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
        assert (root / "benchmarks" / f"{name}.py").is_file(), name


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
    results("allocation", {"runtime": "onnxruntime", "precision": "fp32", "rows": [row]})

    assert "| allocated | 0.7 | 66.0 | 0.683 [0.670, 0.695] | 72.4 | 7.4 [5.5, 9.4] | 81.0 |" in results_page.page()
