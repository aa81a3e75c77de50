"""Targets that are not at hand: engines built ahead of time, bundles that a board finishes, and what is not proven."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx
import pytest
from PIL import Image

from pipeline.report.record import Report
from targets.bundle.verify import verify_bundle
from targets.facts import probe

pytestmark = [pytest.mark.slow]

Run = Callable[..., subprocess.CompletedProcess[str]]


def needs_rtx() -> None:
    try:
        version("tensorrt-rtx")
    except PackageNotFoundError:
        pytest.skip("tensorrt-rtx is not installed")
    if probe()["gpus"]:
        pytest.skip("this machine has a GPU: the target may be at hand")


def test_one_recipe_serves_targets_that_are_at_hand_and_that_are_not(recipe: Path, vitrim: Run, tmp_path: Path) -> None:
    needs_rtx()
    out = tmp_path / "out"
    targets = [word for name in ("cpu", "rtx-4090", "jetson-orin-nano") for word in ("--target", name)]
    done = vitrim("build", recipe, *targets, "--output", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    here, ahead, board = (
        Report.model_validate_json((out / name / "report.json").read_text())
        for name in ("cpu", "rtx-4090", "jetson-orin-nano")
    )

    assert here.proof is not None
    assert (here.proof.engine, here.target.chosen) == ("measured", "by measurement")
    assert any("matrix products ran in int8" in line for line in here.proof.proven)
    assert any("99th percentile" in line for line in here.proof.unproven)
    _is_built_ahead_of_time(ahead, out / "rtx-4090" / "bundle")
    _is_left_to_the_board(board, out / "jetson-orin-nano" / "bundle", tmp_path)
    _second_build_reuses_everything(recipe, vitrim, out, targets)
    refused = vitrim("validate", out / "jetson-orin-nano" / "bundle")
    assert refused.returncode == 2
    assert "has no engine to measure: its board builds it (sh build.sh ENGINE_FOLDER)" in refused.stderr


def _is_built_ahead_of_time(report: Report, bundle: Path) -> None:
    engine = json.loads((bundle / "engine" / "engine.json").read_text())

    assert (engine["runtime"], engine["precision"]) == ("tensorrt_rtx", "int8")
    assert engine["bound_to"]["compute_capability"] == "8.9"
    assert (bundle / "engine" / "model.plan").stat().st_size > 10_000
    assert (report.target.chosen, report.target.runtime) == ("by rule", "tensorrt_rtx")
    assert report.verdict.status == "not_measured"
    assert "the engine was built ahead of time and never ran" in report.verdict.sentence
    assert report.latency_ms is None
    assert report.accuracy is not None
    assert "onnxruntime" in report.accuracy.proxy
    assert report.accuracy.images > 800
    assert report.proof is not None
    assert report.proof.engine == "built ahead of time"
    assert any("builds the engine for compute capability 8.9" in line for line in report.proof.proven)
    assert any("nothing was measured on the target" in line for line in report.proof.unproven)
    assert [(row.runtime, row.chosen) for row in report.candidates] == [
        ("tensorrt_rtx", True),
        ("tensorrt", False),
        ("onnxruntime_tensorrt", False),
        ("onnxruntime_cuda", False),
    ]
    assert "it does not run int8 there" in report.candidates[-1].reason
    assert verify_bundle(bundle) == []
    assert "never ran" in (bundle / "README.md").read_text()


def _is_left_to_the_board(report: Report, bundle: Path, tmp_path: Path) -> None:
    assert report.verdict.status == "not_measured"
    assert "its board has to build it" in report.verdict.sentence
    assert report.proof is not None
    assert report.proof.engine == "not built"
    assert not (bundle / "engine").exists()
    assert json.loads((bundle / "target.json").read_text())["name"] == "jetson-orin-nano"
    assert json.loads((bundle / "manifest.json").read_text())["engine_sha256"] is None
    assert verify_bundle(bundle) == []
    _no_zero_point_but_zero(bundle / "model.onnx")
    told = _what_the_builder_is_asked(bundle, tmp_path)
    assert f"--onnx={bundle / 'model.onnx'}" in told
    assert "--stronglyTyped" in told
    assert "--skipInference" in told
    assert f"--saveEngine={tmp_path / 'engine' / 'model.plan'}" in told
    picture = tmp_path / "picture.png"
    Image.new("RGB", (20, 20), "white").save(picture)
    answered = subprocess.run(
        [sys.executable, str(bundle / "run.py"), str(picture)], capture_output=True, text=True, check=False
    )
    assert answered.returncode == 0, answered.stderr
    assert "this bundle has no engine yet; running model.onnx with onnxruntime" in answered.stderr


def _no_zero_point_but_zero(model: Path) -> None:
    graph = onnx.load(model).graph
    values = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    points = [node.input[2] for node in graph.node if node.op_type == "QuantizeLinear" and len(node.input) > 2]

    assert points
    assert all(not values[name].any() for name in points)


def _what_the_builder_is_asked(bundle: Path, tmp_path: Path) -> str:
    """Run build.sh with a stand-in of trtexec that knows the flags of TensorRT 10 and writes down what it is asked."""
    tool = tmp_path / "trtexec"
    asked = tmp_path / "asked"
    tool.write_text(
        f'#!/bin/sh\n[ "$1" = --help ] && echo "--stronglyTyped --skipInference" && exit\necho "$@" > {asked}\n'
    )
    tool.chmod(0o755)
    done = subprocess.run(
        ["sh", str(bundle / "build.sh"), str(tmp_path / "engine")],
        env={**os.environ, "BUILDER": str(tool)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return asked.read_text()


def _second_build_reuses_everything(recipe: Path, vitrim: Run, out: Path, targets: list[str]) -> None:
    done = vitrim("build", recipe, *targets, "--output", out, "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    finished = [event for event in events if event["kind"] == "step_finished"]

    free = ("compare", "choose")
    assert all(event["cached"] for event in finished if not event["step"].startswith(free)), finished
    after = Report.model_validate_json((out / "rtx-4090" / "report.json").read_text())
    assert after.reused == ("validation",)


def test_a_bf16_engine_is_built_ahead_of_time_and_its_graph_is_judged_by_an_emulation(
    recipe: Path, vitrim: Run, tmp_path: Path
) -> None:
    needs_rtx()
    text = recipe.read_text().replace("{precision: int8, alphas: [0.5], images: 32}", "{precision: bf16}")
    recipe.write_text(text.replace("epochs: 40", "epochs: 5"))
    done = vitrim("build", recipe, "--target", "rtx-4090", "--output", tmp_path / "out")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    folder = tmp_path / "out" / "rtx-4090"
    report = Report.model_validate_json((folder / "report.json").read_text())
    engine = json.loads((folder / "bundle" / "engine" / "engine.json").read_text())

    assert (report.target.runtime, report.target.precision) == ("tensorrt_rtx", "bf16")
    assert (engine["precision"], engine["bound_to"]["compute_capability"]) == ("bf16", "8.9")
    products = list(engine["built"]["products"].values())
    assert (products.count("fp32"), len(set(products))) == (1, 2), "the patch embedding"
    assert report.accuracy is not None
    assert report.accuracy.proxy.endswith("on this machine's processor, which emulates bf16 in fp32")
    assert report.parity.passed
    own = [row.agreement for row in report.candidates if row.runtime.startswith("tensorrt")]
    assert own == [pytest.approx(1, abs=0.05)] * 2


def test_shapes_are_not_searched_for_a_target_that_is_not_at_hand(recipe: Path, vitrim: Run, tmp_path: Path) -> None:
    needs_rtx()
    text = recipe.read_text().replace("prune_mlp: {keep: 0.5, round_to: 8}", "prune: {blocks: auto}")
    recipe.write_text(text.replace("budget: {", "budget: {latency_ratio: 0.7, "))
    done = vitrim("build", recipe, "--target", "rtx-4090", "--output", tmp_path / "out")

    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "target 'rtx-4090' is not at hand" in done.stderr
    assert "chooses shapes by measurement" in done.stderr
