"""A model that reads smaller pictures than its source goes through the whole build, and is judged against it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.report.record import Report

pytestmark = pytest.mark.slow

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_an_engine_of_smaller_pictures_is_built_validated_and_bundled(
    recipe: Path, vitrim: Run, tmp_path: Path
) -> None:
    text = recipe.read_text().replace("  - prune_mlp", "  - resize_input: {size: 12}\n  - prune_mlp")
    recipe.write_text(text.replace("batches: [1]", "batches: [1, 4]"))
    out = tmp_path / "out"

    done = vitrim("build", recipe, "--output", out)

    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = Report.model_validate_json((out / "cpu" / "report.json").read_text())
    assert report.parity.passed
    assert report.size.macs.after < 0.5 * report.size.macs.before  # 10 tokens of 17, half of the MLPs
    assert report.accuracy is not None
    assert report.accuracy.engine > 0.35  # of ten digits, in 9 patches of 4 x 4 pixels
    assert report.latency_ms is not None
    told = json.loads((out / "cpu" / "bundle" / "preprocessing.json").read_text())
    assert (told["height"], told["width"]) == (12, 12)
    Image.new("RGB", (40, 40), "white").save(tmp_path / "white.png")
    ran = subprocess.run(
        [sys.executable, str(out / "cpu" / "bundle" / "run.py"), str(tmp_path / "white.png")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
