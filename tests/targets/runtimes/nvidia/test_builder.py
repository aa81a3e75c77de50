"""What the builder of TensorRT 10 and 11 is told, on fakes of both; the real builder is in test_rtx_builds.py."""

import enum
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from engines import make_engine
from fake_cuda import FakeCudart
from fake_tensorrt import save_int8
from tiny_graphs import save_fp32

from targets.errors import InputError, WorkerError
from targets.runtimes import tensorrt_gpu, tensorrt_rtx_gpu
from targets.runtimes.engine import read_engine
from targets.runtimes.nvidia.layers import count_products, read_layers

Install = Callable[..., Any]
ASKED = {"precision": "fp32", "batch": 4, "threads": 1}


@pytest.mark.parametrize("version", ["10.0.1", "10.3.0", "10.16.1", "11.0.0", "11.4.1"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_version_builds_from_one_graph_without_a_precision_flag(
    install: Install, tmp_path: Path, version: str, precision: str
) -> None:
    library = install(version)
    model = (save_int8 if precision == "int8" else save_fp32)(tmp_path / "graph.onnx")

    made = tensorrt_gpu.build(model, tmp_path, {**ASKED, "precision": precision})

    assert library.said.flags == set()
    assert library.said.verbosity is library.ProfilingVerbosity.DETAILED
    assert library.said.level == 3
    assert made["files"] == ["model.plan", "layers.json"]
    layers = read_layers((tmp_path / "layers.json").read_text())
    products = list(made["built"]["products"])
    assert count_products(layers, products) == ({"int8": 1} if precision == "int8" else {"fp32": 2})


def test_a_later_version_without_the_flag_is_strongly_typed_by_itself(install: Install, tmp_path: Path) -> None:
    library = install("11.4.1")
    library.NetworkDefinitionCreationFlag = SimpleNamespace()  # where it is deprecated

    made = tensorrt_gpu.build(save_fp32(tmp_path / "graph.onnx"), tmp_path, dict(ASKED))

    assert made["files"] == ["model.plan", "layers.json"]


def test_what_is_asked_reaches_the_builder(install: Install, tmp_path: Path) -> None:
    library = install("10.3.0")

    make_engine(
        tmp_path / "engine", workspace_mib=64, optimization_level=5, tf32=True, refit="any", batch_min=1, batch_max=8
    )

    assert library.said.pools == {"WORKSPACE": 64 * 2**20}
    assert library.said.level == 5
    assert library.said.flags == {"TF32", "REFIT"}
    assert library.said.profiles == [{"image": ((1, 3, 8, 8), (4, 3, 8, 8), (8, 3, 8, 8))}]


def test_a_stripped_engine_is_refittable_with_identical_weights(install: Install, tmp_path: Path) -> None:
    library = install("10.3.0")

    make_engine(tmp_path / "engine", strip_weights=True)

    assert library.said.flags == {"STRIP_PLAN", "REFIT_IDENTICAL"}


def test_a_fixed_batch_needs_no_profile_and_is_fixed_in_engine_json(install: Install, tmp_path: Path) -> None:
    library = install("10.3.0")

    engine = read_engine(make_engine(tmp_path / "engine").parent)

    assert library.said.profiles == []
    assert engine["inputs"] == [{"name": "image", "shape": [4, 3, 8, 8], "dtype": "float32"}]
    assert engine["outputs"] == [{"name": "probabilities", "shape": [4, 10], "dtype": "float32"}]


def test_times_of_kernels_are_kept_by_gpu_and_version_and_read_again(
    install: Install, cudart: FakeCudart, tmp_path: Path
) -> None:
    folder = tmp_path / "times"
    library = install("10.3.0")
    made = read_engine(make_engine(tmp_path / "first", timing_cache=str(folder)).parent)["built"]
    assert library.said.cache == b""
    (file,) = folder.glob("*.bin")
    facts = json.loads(file.with_name(file.name + ".json").read_text())
    assert facts["facts"] == {"gpu": "Orin", "compute_capability": "8.7", "cuda": "12.6", "tensorrt": "10.3.0"}
    assert facts["sha256"] == made["timing_cache_sha256"]

    make_engine(tmp_path / "second", timing_cache=str(folder))
    assert library.said.cache == b"+"
    cudart.gpu = "Orin Nano"
    make_engine(tmp_path / "third", timing_cache=str(folder))
    assert library.said.cache == b""
    cudart.gpu = "Orin"
    file.write_bytes(b"changed")
    make_engine(tmp_path / "fourth", timing_cache=str(folder))
    assert library.said.cache == b""


def test_times_that_the_library_does_not_take_are_begun_anew(install: Install, tmp_path: Path) -> None:
    library = install("10.3.0")
    make_engine(tmp_path / "first", timing_cache=str(tmp_path / "times"))
    library.trouble["foreign cache"] = True

    make_engine(tmp_path / "second", timing_cache=str(tmp_path / "times"))

    assert library.said.cache == b""


def test_tensorrt_builds_only_where_there_is_a_gpu(install: Install, cudart: FakeCudart, tmp_path: Path) -> None:
    install("10.3.0")
    cudart.devices = 0

    with pytest.raises(
        WorkerError, match=r"tensorrt builds on the GPU that runs the engine, and there is none: .*no CUDA"
    ):
        make_engine(tmp_path / "engine")


def test_rtx_builds_for_the_gpu_here_unless_others_are_named(
    install: Install, cudart: FakeCudart, tmp_path: Path
) -> None:
    cudart.capability = "8.9"
    library = install("1.7.1", "tensorrt_rtx")
    make_engine(tmp_path / "here", "tensorrt_rtx")
    assert library.said.compute == ["SM89"]

    plan = make_engine(tmp_path / "there", "tensorrt_rtx", compute_capability=["8.6", "12.0"])

    assert library.said.compute == ["SM89", "SM86", "SM120"]
    engine = read_engine(plan.parent)
    assert engine["bound_to"]["compute_capability"] == "8.6 or 12.0"
    assert engine["built"]["layers"] == "not looked at: the GPU here has compute capability 8.9"


def test_an_older_rtx_says_that_it_does_not_know_a_newer_gpu(install: Install, tmp_path: Path) -> None:
    library = install("1.4.0", "tensorrt_rtx")
    library.ComputeCapability = enum.Enum("ComputeCapability", "NONE CURRENT SM75 SM86 SM89 SM120")

    with pytest.raises(InputError, match=r"tensorrt_rtx 1.4.0 does not know compute capability 12.1; install a later"):
        make_engine(tmp_path / "engine", "tensorrt_rtx", compute_capability="12.1")


def test_rtx_is_refused_on_a_jetson_with_what_to_use_instead(install: Install, tmp_path: Path) -> None:
    install("1.7.1", "tensorrt_rtx")

    with pytest.raises(InputError, match=r"not run on compute capability 8.7 \(Jetson Orin\); use runtime 'tensorrt'"):
        make_engine(tmp_path / "engine", "tensorrt_rtx")


def test_a_gpu_that_is_not_there_is_refused_by_its_number(install: Install, tmp_path: Path) -> None:
    install("10.3.0")

    with pytest.raises(InputError, match="device 3 is not one of the 1 GPUs here"):
        make_engine(tmp_path / "engine", device=3)


def test_fp8_is_refused_on_orin(install: Install, tmp_path: Path) -> None:
    install("10.3.0")

    with pytest.raises(InputError, match=r"TensorRT does not run 'fp8' on compute capability 8.7 \(Jetson Orin\)"):
        make_engine(tmp_path / "engine", precision="fp8")


def test_a_node_that_the_parser_does_not_know_is_told_by_name(install: Install, tmp_path: Path) -> None:
    install("10.3.0")
    model = onnx.load(save_fp32(tmp_path / "graph.onnx"))
    model.graph.node[2].op_type = "Frobnicate"
    onnx.save(model, tmp_path / "graph.onnx")

    with pytest.raises(
        WorkerError, match=r"tensorrt cannot read 'graph.onnx': node 'odd' \(Frobnicate\): it is not supported$"
    ):
        tensorrt_gpu.build(tmp_path / "graph.onnx", tmp_path, ASKED)


def test_a_build_that_fails_is_told_in_the_librarys_words(install: Install, tmp_path: Path) -> None:
    library = install("10.3.0")
    library.trouble["build"] = "not enough\n memory for any tactic"

    with pytest.raises(
        WorkerError, match=r"tensorrt cannot compile 'graph.onnx': not enough memory for any tactic; .*more than 64 MiB"
    ):
        make_engine(tmp_path / "engine", workspace_mib=64)


def test_a_version_that_is_too_old_cannot_be_used(install: Install) -> None:
    install("8.6.1")
    assert tensorrt_gpu.available() == "version 8.6.1 is installed, 10.0 or later is needed"
    install("10.0.1")
    assert tensorrt_gpu.available() is None
    install("1.3.0", "tensorrt_rtx")
    assert tensorrt_rtx_gpu.available() == "version 1.3.0 is installed, 1.4 or later is needed"
