"""A build that finds its shapes by itself: within the budget on the machine at hand, and asked once."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.report.record import Report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RECIPE = """\
vitrim: 1
name: searched-digits
model:
  timm: vit_tiny_patch16_224
  pretrained: false
  image_size: 32
  classes: 10
  arguments: {patch_size: 4, embed_dim: 96, depth: 3, num_heads: 2, mlp_ratio: 8}
data:
  fit: {dataset: digits, share: [0, 0.3]}
  train: {dataset: digits, share: [0, 0.3]}
  select: {dataset: digits, share: [0.3, 0.5]}
  evaluate: {dataset: digits, share: [0.5, 1]}
steps:
  - finetune: {epochs: 4, from_scratch: true, flip: false, lr: 0.002}
  - prune: {search: {attention: false, fit_images: 128, select_images: 64}, images: 128}
  - export
targets: [cpu]
runtimes: [onnxruntime]
budget: {latency_ratio: 0.75}
measure: {level: quick}
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def searched(tmp_path: Path) -> Path:
    path = tmp_path / "searched.yaml"
    path.write_text(RECIPE)
    return path


def test_shapes_are_found_for_the_budget_and_kept_for_the_next_build(
    searched: Path, vitrim: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    plan = vitrim("plan", searched, "--json")
    assert [step["depends_on_search"] for step in json.loads(plan.stdout)["cpu"] if step["stage"] == "prune"] == [True]

    done = vitrim("build", searched, "--output", out)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = Report.model_validate_json((out / "cpu" / "report.json").read_text())

    assert report.search is not None
    assert 1 <= len(report.search.rounds) <= 3
    assert report.size.macs.after < report.size.macs.before
    assert [row.mlp_width.after for row in report.blocks] == [shape.mlp_width for shape in report.search.shapes]
    assert [row.heads.after for row in report.blocks] == [2, 2, 2]  # attention is not searched
    assert report.latency_ms is not None
    # Far from a proof of the budget, which a loaded machine may spoil: the engine is no slower than before.
    assert report.latency_ms.ratio_ci95[0] < 1
    assert "Solved exactly in" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80

    again = vitrim("build", searched, "--output", out, "--json")
    events = [json.loads(line) for line in again.stdout.splitlines()]
    finished = [event for event in events if event["kind"] == "step_finished"]
    asked = [event["step"] for event in finished if not event["cached"] and not event["step"].startswith("compare")]
    assert asked == []
    assert Report.model_validate_json((out / "cpu" / "report.json").read_text()).search == report.search


def test_a_second_pair_is_searched_for_the_same_milliseconds(searched: Path, vitrim: Run, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs two runtimes: openvino is not installed")
    text = RECIPE.replace("runtimes: [onnxruntime]\n", "").replace("latency_ratio: 0.75", "latency_ratio: 0.85")
    searched.write_text(text.replace("fit_images: 128", "fit_images: 128, rounds: 1"))

    done = vitrim("build", searched, "--output", tmp_path / "out")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = Report.model_validate_json((tmp_path / "out" / "cpu" / "report.json").read_text())

    assert {row.runtime for row in report.candidates} == {"onnxruntime", "openvino"}
    assert report.search is not None
    (won,) = [row for row in report.candidates if row.chosen]
    assert (report.search.runtime, report.search.precision) == (won.runtime, won.precision)
    # Whether a second pair is worth a search depends on losses and times: two are searched at most, one is chosen.
    lost = [row.reason for row in report.candidates if not row.chosen]
    second = [one for one in lost if "searched, too: as fast as" in one or "no shapes of it are as fast as" in one]
    assert len(second) <= 1


def test_a_search_without_a_budget_is_refused_at_once(searched: Path, vitrim: Run) -> None:
    searched.write_text(RECIPE.replace("budget: {latency_ratio: 0.75}\n", ""))

    done = vitrim("build", searched)

    assert done.returncode == 2
    assert "set one of budget.latency_ratio" in done.stderr
    assert "source" not in done.stdout


def test_a_size_that_cannot_be_tried_is_refused_before_anything_is_built(searched: Path, vitrim: Run) -> None:
    text = RECIPE.replace("search: {", "search: {sizes: [30], ").replace("finetune: {epochs: 4", "finetune: {epochs: 1")
    searched.write_text(text)

    done = vitrim("build", searched)

    assert done.returncode == 2
    assert "resize_input: size 30x30 is no multiple of the patch 4x4; near it is 32x32" in done.stderr
    assert "compile" not in done.stdout
