"""The whole job on a tiny model: what comes out, what is reused, what a bundle can do alone."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.report.record import Report

pytestmark = [pytest.mark.slow]

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_a_recipe_becomes_an_engine_a_report_and_a_bundle(recipe: Path, vitrim: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = vitrim("build", recipe, "--output", out)
    assert done.returncode == 0, done.stdout + done.stderr
    report = Report.model_validate_json((out / "cpu" / "report.json").read_text())

    assert report.verdict.status in ("within", "undecided")
    assert report.accuracy is not None
    assert report.accuracy.images > 800
    assert report.accuracy.baseline > 0.5
    assert report.latency_ms is not None
    assert report.latency_ms.engine.p99 is None
    assert report.parity is not None
    assert report.parity.passed
    assert report.size.params.after < report.size.params.before
    assert [row.mlp_width.after for row in report.blocks] == [64, 64]
    assert {row.name for row in report.stages} >= {"source", "finetune", "prune_mlp", "distill", "export", "quantize"}
    assert (out / "cpu" / "report.html").stat().st_size > 10_000
    assert "tiny-digits" in (out / "cpu" / "report.md").read_text()
    assert max(map(len, done.stdout.splitlines())) <= 80

    _bundle_classifies_without_torch(out / "cpu" / "bundle", tmp_path)
    _second_build_reuses_everything(recipe, vitrim, out)
    _validate_measures_anew(recipe, out / "cpu" / "bundle", vitrim)


def _bundle_classifies_without_torch(bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (20, 20), "white").save(picture)
    blocked = "import sys, runpy; sys.modules['torch'] = sys.modules['timm'] = None"
    arguments = "sys.argv = ['run.py', sys.argv[1], '--json']"
    code = f"{blocked}; {arguments}; runpy.run_path({str(bundle / 'run.py')!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(picture)], capture_output=True, text=True, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr

    answer = json.loads(done.stdout)
    assert json.dumps(answer).count("probability") >= 1


def _second_build_reuses_everything(recipe: Path, vitrim: Run, out: Path) -> None:
    before = Report.model_validate_json((out / "cpu" / "report.json").read_text())
    done = vitrim("build", recipe, "--output", out, "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    finished = [event for event in events if event["kind"] == "step_finished"]
    after = Report.model_validate_json((out / "cpu" / "report.json").read_text())

    planned = [event for event in finished if not event["step"].startswith("compare")]
    assert all(event["cached"] for event in planned), planned
    assert after.reused == ("validation",)
    assert after.latency_ms == before.latency_ms
    assert after.accuracy == before.accuracy


def _validate_measures_anew(recipe: Path, bundle: Path, vitrim: Run) -> None:
    done = vitrim("validate", bundle, "--batches", "1,3", "--rate", "50", "--arrivals", "fixed", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["latency_p50_ms"] > 0
    assert [row["batch"] for row in told["batches"]] == [1, 3]
    assert told["batches"][1]["throughput_ips"] > 0
    assert told["open_loop"]["queries"] == 128

    done = vitrim("validate", bundle, "--recipe", recipe, "--json")
    again = json.loads(done.stdout)
    accuracy = Report.model_validate_json((bundle.parent / "report.json").read_text()).accuracy
    assert accuracy is not None
    assert again["drop_points"] == pytest.approx(accuracy.drop_points, abs=0.01)
    assert again["source_top1"] == pytest.approx(accuracy.baseline, abs=1e-4)
    assert again["answered_otherwise"] == 0
    assert done.returncode == (again["verdict"]["status"] == "over")

    damaged = bundle / "preprocessing.json"
    damaged.write_text(damaged.read_text() + " ")
    refused = vitrim("validate", bundle)
    assert refused.returncode == 1
    assert "damaged" in refused.stderr
    assert "Traceback" not in refused.stderr
