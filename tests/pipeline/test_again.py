"""An engine is built once more as it was built, or as its target's profile says."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.again import Again, build_again
from targets.profile import load_profile

PROFILE = """\
name: shelf
summary: a board on the shelf
verified: not yet
extends: {extends}
{more}
"""


def bundle(folder: Path, **files: Any) -> Path:
    (folder / "engine").mkdir()
    for name, data in files.items():
        path = folder / ("engine/engine.json" if name == "engine" else f"{name}.json")
        path.write_text(json.dumps(data))
    return folder


def profile(folder: Path, extends: str, more: str) -> Any:
    path = folder / "shelf.yaml"
    path.write_text(PROFILE.format(extends=extends, more=more))
    return load_profile(path).model_dump(mode="json")


def test_as_the_engine_was_built_but_for_what_is_of_its_batch(tmp_path: Path) -> None:
    options = {"precision": "int8", "batch": 1, "threads": 2, "workspace_mib": 512, "batch_max": 1}
    engine = {"runtime": "tensorrt", "options": options, "at_load": {"cuda_graph": False, "cores": [2, 3], "x": 1}}

    assert build_again(bundle(tmp_path, engine=engine), {}) == Again(
        threads=2, options={"workspace_mib": 512}, at_load={"cuda_graph": False, "cores": [2, 3]}
    )


def test_an_engine_that_a_package_left_out_is_built_as_it_was(tmp_path: Path) -> None:
    built = {"runtime": "openvino", "options": {"threads": 2, "hint": "latency"}, "at_load": {"cores": [0, 1]}}

    assert build_again(bundle(tmp_path, build=built), {}) == Again(
        threads=2, options={"hint": "latency"}, at_load={"cores": [0, 1]}
    )


def test_openvino_keeps_hint_and_streams(tmp_path: Path) -> None:
    engine = {"runtime": "openvino", "options": {"precision": "fp32", "hint": "throughput", "streams": 2}}

    assert build_again(bundle(tmp_path, engine=engine), {}).options == {"hint": "throughput", "streams": 2}


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_bundle_without_an_engine_goes_by_its_profile(runtime: str, tmp_path: Path) -> None:
    told = profile(tmp_path, "cpu", "cores: [1, 2]")

    again = build_again(bundle(tmp_path, target=told), {"runtime": runtime, "batch": 1})

    assert again.threads == 2
    assert again.at_load == {"cores": [1, 2], "threads": 2}
    assert again.options == ({"hint": "latency"} if runtime == "openvino" else {})


def test_options_of_a_profile_are_split_by_when_they_count(tmp_path: Path) -> None:
    more = "runtimes: [{name: tensorrt, precisions: [fp16], options: {workspace_mib: 256, cuda_graph: false}}]"
    told = profile(tmp_path, "jetson-orin-nano", more)

    again = build_again(bundle(tmp_path, target=told), {"runtime": "tensorrt", "batch": 1})

    assert again.options == {"workspace_mib": 256}
    assert again.at_load == {"cuda_graph": False}


def test_a_profiles_range_of_batches_is_that_of_the_bundles_own(tmp_path: Path) -> None:
    more = "runtimes: [{name: tensorrt, precisions: [fp16], options: {batch_max: 4}}]"
    told = profile(tmp_path, "jetson-orin-nano", more)
    bundle(tmp_path, target=told)
    manifest = {"runtime": "tensorrt", "batch": 1}

    assert build_again(tmp_path, manifest, batch=1).options == {"batch_max": 4}
    assert build_again(tmp_path, manifest, batch=8).options == {}


def test_a_bundle_that_tells_neither_is_built_plainly(tmp_path: Path) -> None:
    assert build_again(tmp_path, {"runtime": "onnxruntime", "batch": 1}) == Again()
