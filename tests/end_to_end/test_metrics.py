"""How accuracy is measured of models without a head, of CLIP-like towers, and by the user's own command."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.report.record import Report

pytestmark = [pytest.mark.slow]

Run = Callable[..., subprocess.CompletedProcess[str]]
SHORT = (
    "steps=[{prune_mlp: {keep: 0.75, round_to: 8}}, export]",
    "runtimes=[onnxruntime]",
    "measure.batches=[]",
    "budget.accuracy_drop_points=null",
)
METRIC = """\
import json, subprocess, sys
bundle = sys.argv[1]
manifest = json.load(open(bundle + "/manifest.json"))
print("some words before")
print(json.dumps({"value": 0.5 if manifest["precision"] == "fp32" else 0.25, "images": 7, "name": "mine"}))
"""


def build(vitrim: Run, recipe: Path, out: Path, *pairs: str) -> Report:
    words = [word for pair in (*SHORT, *pairs) for word in ("--set", pair)]
    done = vitrim("build", recipe, "--output", out, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return Report.model_validate_json((out / "cpu" / "report.json").read_text())


def test_a_model_without_a_head_is_compared_by_its_neighbours(recipe: Path, vitrim: Run, tmp_path: Path) -> None:
    report = build(vitrim, recipe, tmp_path / "out", "model.classes=0")

    assert report.accuracy is not None
    assert report.accuracy.metric == "knn_top1"
    assert report.accuracy.baseline > 0.3  # random features tell digits apart a little, too
    assert report.accuracy.feature_cosine is not None
    assert report.accuracy.feature_cosine > 0.8
    assert "cosine" in (tmp_path / "out" / "cpu" / "report.md").read_text()


def test_without_labels_the_answers_of_the_source_are_what_is_kept(recipe: Path, vitrim: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(40):
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    told = ("budget.accuracy_drop_points=90", f"data.evaluate={{images: {tmp_path / 'photos'}}}")
    report = build(vitrim, recipe, tmp_path / "out", *told)

    assert report.accuracy is not None
    assert (report.accuracy.metric, report.accuracy.images, report.accuracy.baseline) == ("agreement", 40, 1.0)
    assert report.accuracy.engine == report.accuracy.agreement
    words = ["validate", tmp_path / "out" / "cpu" / "bundle", "--images", tmp_path / "photos", "--json"]
    again = json.loads(vitrim(*words).stdout)
    assert again["agreement_with_source"] == pytest.approx(report.accuracy.engine, abs=1e-4)
    assert again["answered_otherwise"] == 0


def test_a_tower_is_compared_by_zero_shot_with_given_text_embeddings(recipe: Path, vitrim: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "texts.npy", np.random.default_rng(0).normal(size=(10, 32)).astype(np.float32))
    report = build(
        vitrim,
        recipe,
        tmp_path / "out",
        "model.classes=0",
        f"measure={{level: quick, metric: zero_shot, text_embeddings: {tmp_path / 'texts.npy'}}}",
    )

    assert report.accuracy is not None
    assert report.accuracy.metric == "zero_shot_top1"
    assert report.accuracy.images > 800


def test_the_user_s_own_command_judges_baseline_and_engine(recipe: Path, vitrim: Run, tmp_path: Path) -> None:
    (tmp_path / "metric.py").write_text(METRIC)
    command = json.dumps(f"{sys.executable} {tmp_path / 'metric.py'} {{bundle}}")
    report = build(vitrim, recipe, tmp_path / "out", f"measure={{level: quick, metric: command, command: {command}}}")

    assert report.accuracy is not None
    assert (report.accuracy.metric, report.accuracy.images) == ("mine", 7)
    assert (report.accuracy.baseline, report.accuracy.engine) == (0.5, 0.5)


def test_text_embeddings_that_are_not_there_are_refused_before_any_work(
    recipe: Path, vitrim: Run, tmp_path: Path
) -> None:
    done = vitrim(
        "build",
        recipe,
        "--output",
        tmp_path / "out",
        "--set",
        "measure={metric: zero_shot, text_embeddings: none.npy}",
    )

    assert done.returncode == 2
    assert "none.npy" in done.stderr
    assert not (tmp_path / "out").exists()
