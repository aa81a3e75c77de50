"""A whole build under a launcher: the first process builds, the other one trains with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def build(recipe: Path, store: Path, output: Path) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, "-m", "pipeline", "build", str(recipe), "-o", str(output)],
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
        env={
            **os.environ,
            "VITRIM_STORE": str(store),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "COLUMNS": "80",
        },
        cwd=Path(__file__).resolve().parents[2],
    )


def test_a_launcher_builds_once_and_trains_together(recipe: Path, tmp_path: Path) -> None:
    text = recipe.read_text().replace("epochs: 40", "epochs: 3").replace("images_seen: 1024", "images_seen: 64")
    recipe.write_text(text.replace("  - quantize: {precision: int8, alphas: [0.5], images: 32}\n", ""))
    done = build(recipe, tmp_path / "store", tmp_path / "out")

    assert done.returncode in (0, 1), done.stderr  # 1: over budget, for so short a training
    assert done.stdout.count("report  ") == 1
    report = tmp_path / "out" / "cpu" / "report.json"
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "store").rglob("manifest.json")]
    assert {one["stage"]: one["facts"].get("processes") for one in manifests if "steps" in one["facts"]} == {
        "finetune": 2,
        "distill": 2,
    }
    assert report.is_file()


def test_bad_input_ends_all_processes(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace("batch_size: 32", "batch_size: 2"))
    done = build(recipe, tmp_path / "store", tmp_path / "out")

    assert done.returncode != 0
    assert "vitrim: batch_size 2 is too small for 2 processes; give at least 3" in done.stderr
