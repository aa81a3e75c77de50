"""Bundles measured on a device: the pretended one, and this machine through its agent."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from stages.data.images import open_images
from stages.data.source import DataSource
from stages.stage import Role
from targets.bundle.expected import Expected
from targets.bundle.write import write_bundle
from targets.errors import InputError
from targets.preprocess import Preprocess
from targets.profile import Budget, load_profile

Command = Callable[..., Any]
SIDE, CLASSES = 16, 10


def make_bundle(
    folder: Path, *, runtime: str = "onnxruntime", expected: Expected | None = None, target: Any = None
) -> Path:
    """A bundle without an engine, as `vitrim build` writes it for a target that is not at hand."""
    folder.mkdir(parents=True)
    weight = np.random.default_rng(0).normal(size=(3 * SIDE * SIDE, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("Reshape", ["images", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    tensors = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array([1, -1]), "shape")]
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])
    graph = helper.make_graph(nodes, "tiny", [image], [logits], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    write_bundle(
        folder / "bundle",
        engine=None,
        onnx=folder / "m.onnx",
        spec={"architecture": "tiny", "classes": CLASSES},
        preprocess=Preprocess(height=SIDE, width=SIDE),
        labels=None,
        card={},
        planned={"runtime": runtime, "version": "", "precision": "fp32", "batch": 1},
        expected=expected,
        target=target,
    )
    return folder / "bundle"


def make_images(folder: Path) -> Path:
    """Grey pictures in folders by the class that the pretended engine calls them."""
    for level in range(CLASSES):
        (folder / f"class{level}").mkdir(parents=True)
        for index in (0, 1):
            grey = min(255, 8 + round(level * 25.5) + index)
            pixels = np.full((SIDE, SIDE, 3), grey, np.uint8)
            Image.fromarray(pixels).save(folder / f"class{level}" / f"{index}.png")
    return folder


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("VITRIM_DEVICES", raising=False)
    (tmp_path / "delays.yaml").write_text("milliseconds: 2\nstate: {power_mode: 15W}\n")
    (tmp_path / "off.yaml").write_text("unreachable: true\n")
    path = tmp_path / "devices.yaml"
    path.write_text(
        "format: vitrim.devices/1\n"
        "devices:\n"
        "  sham: {kind: fake, target: cpu, script: delays.yaml}\n"
        "  off: {kind: fake, target: cpu, script: off.yaml, patience_seconds: 0}\n"
        "  here: {kind: local, target: cpu}\n"
    )
    return path


def test_a_device_finishes_a_bundle_that_has_no_engine(command: Command, devices: Path, tmp_path: Path) -> None:
    bundle, images = make_bundle(tmp_path / "made"), make_images(tmp_path / "images")
    words = ["validate", bundle, "--device", "sham", "--devices", devices, "--images", images]
    answer = command(*words, "--json", "--output", tmp_path / "told.json")
    assert answer.code == 0, answer.err
    told, kept = json.loads(answer.out), json.loads((tmp_path / "told.json").read_text())

    assert told["engine"] == "built there: there is none yet"
    assert told["top1"] == 1.0
    assert told["latency_p50_ms"] >= 2
    assert told["power_mode"] == "15W"
    assert len(told["health_ms"]) == 2
    (record,) = kept.pop("records")
    assert kept == told
    assert record["comparison"]["measurements"]["engine"]["engine_sha256"] == told["engine_sha256"]
    assert record["environment"]["power_mode"] == "15W"


def test_the_budget_of_the_build_is_held_against_what_the_board_did(
    command: Command, devices: Path, tmp_path: Path
) -> None:
    folder = make_images(tmp_path / "images")
    images = open_images(DataSource(images=folder), Role.EVALUATE, index_cache=None)
    assert images.labels is not None
    right = tuple(map(int, images.labels))
    expected = Expected(
        budget=Budget(accuracy_drop_points=30, latency_p50_ms=1.5),
        metric="top1",
        images_digest=images.fingerprint,
        baseline=right,
        engine=(0, *right[1:-1], 0),  # of a proxy, which was wrong once
        label=right,
    )
    bundle = make_bundle(tmp_path / "made", expected=expected)
    assert json.loads((bundle / "expected.json").read_text())["format"] == "vitrim.expected/1"

    answer = command("validate", bundle, "--device", "sham", "--devices", devices, "--images", folder, "--json")

    told = json.loads(answer.out)
    assert (told["source_top1"], told["drop_points"], told["answered_otherwise"]) == (1.0, 0.0, 1)
    assert told["verdict"]["status"] == "over"
    assert "latency p50" in told["verdict"]["sentence"]
    assert "of at most 1.5" in told["verdict"]["sentence"]
    assert answer.code == 1


def test_what_is_built_there_has_the_threads_and_cores_of_the_profile(
    command: Command, devices: Path, tmp_path: Path
) -> None:
    core = min(os.sched_getaffinity(0))
    path = tmp_path / "one-core.yaml"
    path.write_text(f"name: one-core\nsummary: a test\nverified: not yet\nextends: cpu\ncores: [{core}]\n")
    bundle = make_bundle(tmp_path / "made", target=load_profile(path).model_dump(mode="json"))
    words = ["validate", bundle, "--device", "here", "--devices", devices, "--output", tmp_path / "told.json"]

    answer = command(*words)

    assert answer.code == 0, answer.err
    (record,) = json.loads((tmp_path / "told.json").read_text())["records"]
    engine = record["roles"]["engine"]["engine"]
    assert engine["options"]["threads"] == 1
    assert engine["at_load"] == {"cores": [core], "threads": 1}


def test_an_engine_that_was_built_before_is_taken_again_but_measured_anew(
    command: Command, devices: Path, tmp_path: Path
) -> None:
    words = ["validate", make_bundle(tmp_path / "made"), "--device", "sham", "--devices", devices, "--json"]
    first, second = (json.loads(command(*words).out) for _ in range(2))

    assert second["engine"] == "built there: there is none yet, built earlier"
    assert second["engine_sha256"] == first["engine_sha256"]
    assert second["attempts"] == 1


def test_this_machine_as_a_device_answers_as_it_does_without(command: Command, devices: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "made")
    answer = command("validate", bundle, "--device", "here", "--devices", devices, "--batches", "1", "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)

    assert told["runtime"].startswith("onnxruntime ")
    assert [one["batch"] for one in told["batches"]] == [1]
    assert "top1" not in told


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--device", "nobody"], 2, "unknown device 'nobody'; known: here, off, sham"),
        (["--device", "sham", "--rate", "30"], 2, "--rate is for this machine"),
        (["--device", "sham", "--wait", "-1"], 2, "wait must be a number of seconds from 0"),
        (["--device", "sham", "--level", "slow"], 2, "level must be quick or full, got 'slow'"),
        (["--device", "sham", "--output", "/nowhere/told.json"], 2, "cannot write '/nowhere/told.json'"),
        (["--device", "off"], 1, "device 'off': its agent ended with code 1: it is switched off, as its script says"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    command: Command, devices: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    answer = command("validate", make_bundle(tmp_path / "made"), "--devices", devices, *words)

    assert answer.code == code
    assert message in answer.err
    assert "Traceback" not in answer.err
    assert len(answer.err.strip().splitlines()) <= 3


def test_bundles_of_different_batches_need_to_be_told_one(devices: Path, tmp_path: Path) -> None:
    from pipeline.ondevice import prepare_job

    manifests = {"a": {"batch": 1}, "b": {"batch": 4}}
    unused: Any = None
    with pytest.raises(InputError, match=r"batch sizes \[1, 4\]; say which one with `batch`"):
        prepare_job(
            unused, {}, manifests, None, "quick", work=tmp_path, batch=None, threads=None, build=False, latency=True,
            nonce="", tell=lambda message, share: None,
        )  # fmt: skip


def test_devices_are_listed_probed_and_not_enrolled_where_there_is_no_key(command: Command, devices: Path) -> None:
    listed = command("devices", "list", "--devices", devices)
    assert [line.split()[:2] for line in listed.out.splitlines()[1:]] == [
        ["sham", "fake"], ["off", "fake"], ["here", "local"],
    ]  # fmt: skip
    probed = command("devices", "probe", "sham", "--devices", devices)
    assert "power_mode             15W" in probed.out
    assert probed.out.endswith("it fits cpu\n")
    refused = command("devices", "enrol", "here", "--devices", devices)
    assert (refused.code, "has no host key" in refused.err) == (2, True)


def test_the_agent_is_written_as_one_file(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "agent.pyz"
    answer = command("devices", "agent", path)

    assert answer.code == 0
    assert path.read_bytes()[:2] == b"PK"
    assert command("devices", "agent", tmp_path / "nowhere" / "agent.pyz").code == 2
