"""A build that starts from an ONNX file: quantize, compile and validate, with the same report and bundle."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pipeline.report.record import Report
from tests.stages.source_onnx.graphs import CLASSES, write_cnn

pytestmark = [pytest.mark.slow]

Run = Callable[..., subprocess.CompletedProcess[str]]
RECIPE = """\
vitrim: 1
name: any-graph
model:
  onnx: net.onnx
  preprocess: {mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25], interpolation: bilinear}
data:
  fit: {dataset: digits, share: [0, 0.3]}
  select: {dataset: digits, share: [0.3, 0.5]}
  evaluate: {dataset: digits, share: [0.5, 1]}
steps:
  - quantize: {images: 32}
targets: [cpu]
budget: {accuracy_drop_points: 30}
"""


@pytest.fixture
def onnx_recipe(tmp_path: Path) -> Path:
    write_cnn(tmp_path / "net.onnx")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_a_graph_of_any_vision_model_is_quantized_compiled_validated_and_bundled(
    onnx_recipe: Path, vitrim: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = vitrim("build", onnx_recipe, "--output", out)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    report = Report.model_validate_json((out / "cpu" / "report.json").read_text())

    assert report.model == "net"
    assert [row.name for row in report.stages][:2] == ["source_onnx", "quantize"]
    assert report.parity is not None
    assert (report.parity.passed, report.parity.reference) == (True, "the source's graph in ONNX Runtime")
    assert report.accuracy is not None
    assert report.accuracy.agreement > 0.8
    assert report.size.macs.before == 16 * 16 * 8 * 27 + 80
    assert report.blocks == ()
    assert report.proof is not None
    assert report.proof.layers
    assert report.latency_ms is not None
    assert report.latency_ms.ratio == pytest.approx(1, abs=0.5), "the unpruned engine is the engine"
    assert "against those of the source" in (out / "cpu" / "report.html").read_text()
    _bundle_answers(out / "cpu" / "bundle", tmp_path)


def own_target(folder: Path, **more: object) -> Path:
    path = folder / "mine.yaml"
    facts = {"name": "mine", "summary": "mine", "verified": "not yet", "extends": "cpu"}
    path.write_text(yaml.safe_dump({**facts, **more}))
    return path


def test_an_engine_in_which_something_else_ran_than_its_target_demands_fails(
    onnx_recipe: Path, vitrim: Run, tmp_path: Path
) -> None:
    target = own_target(tmp_path, demands={"providers": ["Nobody"]})
    done = vitrim("build", onnx_recipe, "--target", target, "--output", tmp_path / "out")

    assert done.returncode == 1, done.stderr
    report = Report.model_validate_json((tmp_path / "out" / "mine" / "report.json").read_text())
    assert report.verdict.status == "failed"
    assert "the target allows Nobody" in report.verdict.sentence
    assert report.proof is not None
    assert report.proof.broken


def test_a_time_below_the_floor_of_its_target_ends_the_build(onnx_recipe: Path, vitrim: Run, tmp_path: Path) -> None:
    slow = {"value": 1e-9, "source": "made up", "confidence": "probed"}
    target = own_target(tmp_path, board={"peak_tera_ops_s": {"int8": slow}})
    done = vitrim("build", onnx_recipe, "--target", target, "--output", tmp_path / "out")

    assert done.returncode == 1, done.stdout
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("vitrim:")]
    assert "this hardware needs" in error
    assert done.stderr.strip().splitlines()[-1] == error
    assert not (tmp_path / "out" / "mine" / "report.json").exists()


def test_a_candidate_that_cannot_be_made_loses_and_a_source_that_is_not_what_it_is_known_to_be_fails(
    onnx_recipe: Path, vitrim: Run, tmp_path: Path
) -> None:
    onnx_recipe.write_text(RECIPE.replace("{images: 32}", '{precision: auto, images: 32, keep_float: ["*"]}'))
    words = ("--set", "measure.known_accuracy=0.99")
    done = vitrim("build", onnx_recipe, *words, "--output", tmp_path / "out")

    assert done.returncode == 1, done.stderr
    assert "candidate onnxruntime int8 linears is out: keep_float '*'" in done.stderr
    report = Report.model_validate_json((tmp_path / "out" / "cpu" / "report.json").read_text())
    out = {row.precision for row in report.candidates if row.reason.startswith("failed: keep_float")}
    assert "int8" in out
    assert {row.precision for row in report.candidates if row.chosen} <= {"fp32", "bf16"}
    assert report.verdict.status == "failed"
    assert "99.0 % is known of it" in report.verdict.sentence


def _bundle_answers(bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "white").save(tmp_path / "picture.png")
    words = [sys.executable, str(bundle / "run.py"), str(tmp_path / "picture.png"), "--json", "--top", str(CLASSES)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)
    assert len(told["classes"]) == CLASSES


def test_the_plan_of_a_graph_counts_it_before_anything_runs(onnx_recipe: Path, vitrim: Run) -> None:
    done = vitrim("plan", onnx_recipe, "--json")

    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)["cpu"]
    assert (steps[0]["stage"], steps[0]["macs"]) == ("source_onnx", 16 * 16 * 8 * 27 + 80)
    assert {step["stage"] for step in steps} == {"source_onnx", "quantize", "compile"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ("- quantize: {images: 32}", "- prune_mlp"),
            "prune_mlp works on a model that torch runs, and model.onnx is a",
        ),
        (("onnx: net.onnx", "onnx: absent.onnx"), "absent.onnx' is not there"),
        (("preprocess: {mean: [0.5, 0.5, 0.5], ", "preprocess: {"), "model.preprocess.mean: is missing"),
        (("onnx: net.onnx", "onnx: net.onnx\n  timm: vit_tiny_patch16_224"), "model.timm: unknown key"),
    ],
    ids=["stage", "file", "preprocess", "both"],
)
def test_what_a_graph_cannot_have_is_refused_in_one_line(
    onnx_recipe: Path, vitrim: Run, change: tuple[str, str], words: str
) -> None:
    onnx_recipe.write_text(RECIPE.replace(*change))
    done = vitrim("plan", onnx_recipe)

    assert done.returncode == 2, done.stdout
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
