"""The real job: a pretrained ViT-Tiny and real images go in, a bundle that classifies a real photograph comes out."""

import csv
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.report.record import Report

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1800)]

Run = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[2]
SMALLER = ("data.fit.limit=256", "data.select.limit=256", "steps.prune_mlp.refine=0", "steps.distill.images_seen=64")


def test_the_imagenet_recipe_gives_a_bundle_that_classifies_photographs(
    assets: Path, vitrim: Run, tmp_path: Path
) -> None:
    weights = next((assets / "vit_tiny_patch16_224").glob("*.safetensors"))
    words = [word for pair in SMALLER for word in ("--set", pair)]
    done = vitrim(
        "build",
        ROOT / "recipes" / "vit_tiny_imagenet.yaml",
        *("--checkpoint", weights, "--output", tmp_path / "out", *words),
        timeout=1500,
        VITRIM_ASSETS=str(assets),
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: over budget, as little training may leave it
    report = Report.model_validate_json((tmp_path / "out" / "cpu" / "report.json").read_text())

    assert report.accuracy is not None
    assert report.accuracy.images == 1100
    assert report.accuracy.baseline == pytest.approx(0.798, abs=0.002)
    assert report.accuracy.drop_points < 12
    assert report.parity is not None
    assert report.parity.passed
    assert report.size.params.before == 5_717_416
    assert report.size.bytes.after < 0.3 * report.size.bytes.before
    _bundle_knows_what_is_on_photographs(assets, tmp_path / "out" / "cpu" / "bundle", tmp_path)


def _bundle_knows_what_is_on_photographs(assets: Path, bundle: Path, folder: Path) -> None:
    """At least half of twenty, in a process that has no torch, timm or vitrim."""
    rows = list(csv.DictReader(io.StringIO((assets / "imagenet_val" / "labels.csv").read_text())))[::55]
    with zipfile.ZipFile(assets / "imagenet_val" / "images.zip") as archive:
        members = {Path(name).name: name for name in archive.namelist()}
        for row in rows:
            (folder / Path(row["file"]).name).write_bytes(archive.read(members[Path(row["file"]).name]))
    blocked = "import sys, runpy; sys.modules['torch'] = sys.modules['timm'] = sys.modules['pipeline'] = None"
    code = f"{blocked}; runpy.run_path({str(bundle / 'run.py')!r}, run_name='__main__')"
    pictures = [str(folder / Path(row["file"]).name) for row in rows]
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, *pictures, "--json"], capture_output=True, text=True, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)

    assert [answer["image"] for answer in answers] == pictures
    right = [answer["classes"][0]["class"] == int(row["label"]) for answer, row in zip(answers, rows, strict=True)]
    assert sum(right) >= 0.5 * len(right)
