"""Building and loading for a GPU, on the real ONNX Runtime whose CPU stands in for it; and what is refused."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, save
from tiny_graphs import CLASSES, SIZE, answer, images, save_fp32, save_int8

from targets.agent.service import Service
from targets.errors import InputError, WorkerError
from targets.runtimes import onnxruntime_cuda, onnxruntime_tensorrt
from targets.runtimes.engine import write_engine
from targets.runtimes.nvidia.options import ORT_CUDA, ORT_TENSORRT
from targets.runtimes.ort import ask, gpu, library

BUILD = {"precision": "fp32", "batch": 4, "threads": 1}
LOAD = {"precision": "fp32", "threads": 1, "optimized": True, "batch": None}
StandIn = Callable[..., None]


def finish(folder: Path, runtime: str, options: dict[str, Any], made: dict[str, Any]) -> Path:
    """Write engine.json as the agent does; returns the file to load."""
    made = dict(made)
    files = made.pop("files")
    write_engine(
        folder,
        files=files,
        runtime=runtime,
        version=library.version(),
        precision=options["precision"],
        batch=options["batch"],
        options=options,
        **made,
    )
    return folder / files[0]


def save_of(path: Path, kind: int, *, constant: bool = False) -> Path:
    """A product whose weight is stored in this type, and made fp32 before it is multiplied."""
    weight = helper.make_tensor("stored", kind, [8, 8], np.zeros(64, np.float32), raw=False)
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [1.0])
    quantized = kind in (TensorProto.INT8, TensorProto.FLOAT8E4M3FN)
    nodes = [
        *([helper.make_node("Constant", [], ["stored"], value=weight)] if constant else []),
        helper.make_node("DequantizeLinear", ["stored", "scale"], ["weight"])
        if quantized
        else helper.make_node("Cast", ["stored"], ["weight"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["image", "weight"], ["out"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8]) for name in ("image", "out")]
    graph = helper.make_graph(nodes, "stored", values[:1], values[1:], [scale, *([] if constant else [weight])])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def test_an_engine_of_cuda_answers_and_says_where_its_nodes_are(
    tmp_path: Path, stand_in: StandIn, told: list[dict[str, str]]
) -> None:
    stand_in()
    model, output = save_fp32(tmp_path / "graph.onnx"), tmp_path / "engine"
    output.mkdir()
    options = {**BUILD, "tf32": True}

    made = onnxruntime_cuda.build(model, output, options)

    assert made["files"] == ["model.onnx"]
    assert made["inputs"] == [{"name": "image", "shape": [4, 3, SIZE, SIZE], "dtype": "float32"}]
    assert made["outputs"] == [{"name": "probabilities", "shape": [4, CLASSES], "dtype": "float32"}]
    assert set(made["bound_to"]) == {"platform", "onnxruntime_cuda", "gpu", "compute_capability"}
    session = onnxruntime_cuda.load(finish(output, ORT_CUDA, options, made), dict(LOAD))
    np.testing.assert_allclose(session.run({"image": images(4)})["probabilities"], answer(images(4)), atol=1e-6)
    facts = session.facts()
    assert facts["optimization"] == "ORT_DISABLE_ALL", "what runs is what was looked at"
    assert (facts["tf32"], facts["gpu"], facts["tells_precision"]) == (True, "NVIDIA L4", True)
    assert sum(facts["nodes"].values()) >= 4
    assert session.matrix_products({"image": images(4)}) == {"fp32": 2}
    assert {one["use_tf32"] for one in told} == {"1"}, "what the engine was built with holds at loading"


def test_an_option_at_loading_goes_before_that_of_the_build(
    tmp_path: Path, stand_in: StandIn, told: list[dict[str, str]]
) -> None:
    stand_in()
    model, output = save_fp32(tmp_path / "graph.onnx"), tmp_path / "engine"
    output.mkdir()
    options = {**BUILD, "tf32": True}
    file = finish(output, ORT_CUDA, options, onnxruntime_cuda.build(model, output, options))

    onnxruntime_cuda.load(file, {**LOAD, "tf32": False, "cuda_graph": True})

    assert [(one["use_tf32"], one["enable_cuda_graph"]) for one in told[-2:]] == [("0", "0"), ("0", "1")]


def test_a_plain_graph_runs_on_cuda_at_any_batch(tmp_path: Path, stand_in: StandIn) -> None:
    stand_in()
    session = onnxruntime_cuda.load(save_fp32(tmp_path / "graph.onnx"), {"threads": 1, "precision": "fp32"})

    assert session.inputs[0].shape == (None, 3, SIZE, SIZE)
    assert session.run({"image": images(3)})["probabilities"].shape == (3, CLASSES)


@pytest.mark.parametrize("runtime", [onnxruntime_cuda, onnxruntime_tensorrt])
def test_a_recording_is_of_one_shape(tmp_path: Path, stand_in: StandIn, runtime: Any) -> None:
    """The library launches it whatever the shape of a query is, on the memory of the first."""
    model = save_fp32(tmp_path / "graph.onnx")
    stand_in(engine=model)

    with pytest.raises(InputError, match=r"'image' is \['any', 3, 8, 8\]; give a batch, or leave cuda_graph out"):
        runtime.load(model, {"threads": 1, "cuda_graph": True})

    stand_in(engine=save_fp32(tmp_path / "fixed.onnx", batch=4))
    session = runtime.load(model, {"threads": 1, "cuda_graph": True, "batch": 4})
    assert session.facts()["cuda_graph"] == "recorded by the library"
    session.close()


def test_an_engine_is_bound_to_the_gpu_that_it_was_built_on(tmp_path: Path, stand_in: StandIn) -> None:
    stand_in()
    output = tmp_path / "engine"
    output.mkdir()

    made = onnxruntime_cuda.build(save_fp32(tmp_path / "graph.onnx"), output, {**BUILD, "device": 1})

    assert (made["bound_to"]["gpu"], made["bound_to"]["compute_capability"]) == ("NVIDIA T4", "7.5")
    assert made["built"]["compute_capability"] == ["7.5"]


def test_an_engine_of_tensorrt_is_what_its_provider_left(
    tmp_path: Path, stand_in: StandIn, told: list[dict[str, str]]
) -> None:
    model, output = save_fp32(tmp_path / "graph.onnx", batch=4), tmp_path / "engine"
    stand_in(engine=model)
    output.mkdir()
    options = {**BUILD, "timing_cache": str(tmp_path / "times")}

    made = onnxruntime_tensorrt.build(model, output, options)

    assert made["files"] == ["model_ctx.onnx", "TensorrtExecutionProvider_TRTKernel_graph_0_0_fp32_sm89.engine"]
    assert made["bound_to"]["tensorrt"] == "10.16.1"
    assert made["built"]["products"] == 2
    assert told[0]["trt_ep_context_file_path"] == str(output / "model_ctx.onnx")
    folder = tmp_path / "times" / Path(told[0]["trt_timing_cache_path"]).name
    assert folder.is_dir()
    assert "L4" in folder.name
    assert "10.16.1" in folder.name
    session = onnxruntime_tensorrt.load(finish(output, ORT_TENSORRT, options, made), dict(LOAD))
    np.testing.assert_allclose(session.run({"image": images(4)})["probabilities"], answer(images(4)), atol=1e-6)
    assert session.matrix_products({"image": images(4)}) == {"unknown": 2}
    assert session.facts()["tells_precision"] is False


def test_a_plain_graph_is_built_in_a_folder_that_goes_with_the_session(
    tmp_path: Path, stand_in: StandIn, told: list[dict[str, str]]
) -> None:
    model = save_fp32(tmp_path / "graph.onnx")
    stand_in(engine=model)

    session = onnxruntime_tensorrt.load(model, {"threads": 1, "precision": "fp32"})

    assert told[0]["trt_profile_max_shapes"] == f"image:16x3x{SIZE}x{SIZE}"
    folder = Path(told[0]["trt_ep_context_file_path"]).parent
    assert folder.is_dir()
    session.layers({"image": images(2)}, 1)
    session.close()
    assert not folder.exists()


def test_a_build_that_leaves_no_engine_is_refused(tmp_path: Path, stand_in: StandIn) -> None:
    stand_in()
    output = tmp_path / "engine"
    output.mkdir()

    with pytest.raises(WorkerError, match="built, but left no engine: the folder has nothing"):
        onnxruntime_tensorrt.build(save_fp32(tmp_path / "graph.onnx"), output, dict(BUILD))


@pytest.mark.parametrize("runtime", [onnxruntime_cuda, onnxruntime_tensorrt])
def test_tf32_is_off_in_nvidias_libraries_unless_asked(tmp_path: Path, stand_in: StandIn, runtime: Any) -> None:
    model = save_fp32(tmp_path / "graph.onnx")
    stand_in(engine=model)

    runtime.load(model, {"threads": 1}).close()
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    runtime.load(model, {"threads": 1, "tf32": True}).close()
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ


@pytest.mark.parametrize("runtime", [onnxruntime_cuda, onnxruntime_tensorrt])
def test_a_node_that_runs_elsewhere_ends_the_build(
    tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, runtime: Any
) -> None:
    """The session is the CPU's, what is wanted is the GPU's: as where a graph has nodes that the GPU does not run."""
    model = save_fp32(tmp_path / "graph.onnx")
    stand_in(engine=model)
    monkeypatch.setattr(gpu, "PROVIDERS", {ORT_CUDA: library.CUDA, ORT_TENSORRT: library.TENSORRT})
    output = tmp_path / "engine"
    output.mkdir()

    with pytest.raises(InputError, match=rf"{runtime.name} runs . nodes on CPUExecutionProvider .*MatMul"):
        runtime.build(model, output, dict(BUILD))
    with pytest.raises(InputError, match=rf"{runtime.name} runs . nodes on CPUExecutionProvider .*MatMul"):
        runtime.load(model, {"threads": 1})


@pytest.mark.parametrize(
    ("made", "asked", "words"),
    [
        (save_fp32, "int8", "asked onnxruntime_tensorrt for int8, but 'graph.onnx' holds neither .*: ask for fp32"),
        (save_fp32, "fp16", "holds neither Q/DQ nodes nor weights of 16 bits: ask for fp32"),
        (
            lambda path: save_of(path, TensorProto.BFLOAT16),
            "fp32",
            "holds weights of bfloat16: onnx.*t runs fp32, fp16",
        ),
        (lambda path: save_of(path, TensorProto.FLOAT8E4M3FN), "int8", "holds numbers of float8: onnxruntime_tensorrt"),
        (lambda path: save_of(path, TensorProto.INT8), "fp32", "behind DequantizeLinear, and no QuantizeLinear: onnx"),
        (lambda path: save_of(path, TensorProto.FLOAT16, constant=True), "fp32", "holds weights of float16: ask for f"),
        (lambda path: save_int8(path, symmetric=True), "fp32", "holds Q/DQ nodes: ask for int8"),
        (save_int8, "int8", "takes symmetric int8 only; quantize with `symmetric: true`"),
    ],
)
def test_a_graph_that_holds_another_precision_is_refused(tmp_path: Path, made: Any, asked: str, words: str) -> None:
    model = made(tmp_path / "graph.onnx")

    with pytest.raises(InputError, match=words):
        gpu.check_held(ORT_TENSORRT, model, asked)


def test_a_graph_that_holds_what_is_asked_is_counted(tmp_path: Path) -> None:
    assert gpu.check_held(ORT_TENSORRT, save_fp32(tmp_path / "a.onnx"), "fp32") == 2
    assert gpu.check_held(ORT_TENSORRT, save_int8(tmp_path / "b.onnx", symmetric=True), "int8") == 2


@pytest.mark.parametrize(
    ("runtime", "precision", "capability", "words"),
    [
        (onnxruntime_cuda, "int8", "8.9", "runtime 'onnxruntime_cuda' does not run 'int8'; it runs fp32, fp16$"),
        (onnxruntime_tensorrt, "fp8", "8.9", "does not run 'fp8'; it runs fp32, fp16, int8$"),
        (onnxruntime_cuda, "fp32", "7.2", "CUDA provider does not run on compute capability 7.2 .*Xavier.*onnxruntime"),
    ],
)
def test_a_precision_or_gpu_that_it_does_not_run_is_refused(
    tmp_path: Path, stand_in: StandIn, runtime: Any, precision: str, capability: str, words: str
) -> None:
    stand_in(capability=capability)
    output = tmp_path / "engine"
    output.mkdir()

    with pytest.raises(InputError, match=words):
        runtime.build(save_fp32(tmp_path / "graph.onnx"), output, {**BUILD, "precision": precision})


def test_times_of_another_gpu_or_version_are_in_another_folder(tmp_path: Path) -> None:
    options = {"timing_cache": str(tmp_path)}
    facts = {"gpu": "NVIDIA L4", "compute_capability": "8.9", "tensorrt": "10.9.0"}
    folders = {
        gpu.timing_folder(options, {**facts, **change})
        for change in ({}, {"tensorrt": "10.10.0"}, {"gpu": "NVIDIA T4"}, {"compute_capability": "7.5"})
    }

    assert len(folders) == 4
    assert gpu.timing_folder({"timing_cache": None}, facts) is None


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"get_available_providers": lambda: [library.CPU]}, "built without the CUDA provider; .*install the package"),
        ({"__version__": "1.22.0"}, r"version 1.22.0 is installed, 1.24 or later is needed; install onnxruntime-gpu>="),
        ({"lacks": "it needs libcuda.so.1"}, "the CUDA provider cannot start: it needs libcuda.so.1"),
        (
            {"gpu": WorkerError("cudaGetDeviceCount failed")},
            "cannot start: cudaGetDeviceCount failed; look with nvidia",
        ),
        ({}, None),
    ],
    ids=["cpu package", "old", "library", "no gpu", "all is there"],
)
def test_what_stands_in_the_way_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: dict[str, Any], words: str | None
) -> None:
    whole = {
        "__version__": "1.31.1",
        "__file__": str(tmp_path / "__init__.py"),
        "get_available_providers": lambda: [library.CUDA, library.CPU],
        **found,
    }

    def cuda() -> None:
        if "gpu" in found:
            raise found["gpu"]

    monkeypatch.setattr(library, "load_library", lambda: SimpleNamespace(**whole))
    monkeypatch.setattr(gpu.native, "provider_file", lambda package, provider: tmp_path / "provider.so")
    monkeypatch.setattr(gpu.native, "load_what_it_needs", lambda file: found.get("lacks"))
    monkeypatch.setattr(gpu, "Cuda", cuda)

    reason = gpu.obstacle(library.CUDA)

    if words is None:
        assert reason is None
    else:
        with pytest.raises(WorkerError, match=words):
            raise WorkerError(str(reason))
        assert "\n" not in str(reason)


def test_without_onnxruntime_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    assert str(gpu.obstacle(library.CUDA)).endswith("install the package onnxruntime-gpu")


def test_a_process_that_cannot_answer_leaves_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "_ASK", "raise SystemExit('{}: no library\\nof this name')")

    reason = ask.provider_obstacle.__wrapped__(ORT_CUDA)

    assert reason == "onnxruntime cannot be started: the process ended with exit code 1; it said: of this name"


def test_the_process_that_plans_asks_another_one() -> None:
    assert ask.provider_obstacle("onnxruntime") is None
    if library.CUDA not in library.load_library().get_available_providers():
        assert "built without the CUDA provider" in str(ask.provider_obstacle(ORT_CUDA))


def test_the_agent_builds_and_loads_such_an_engine(
    tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in()
    monkeypatch.setattr(gpu, "obstacle", lambda provider: None)
    output = tmp_path / "engine"
    output.mkdir()
    agent = Service(threads=1, runtimes={})
    model = str(save_fp32(tmp_path / "graph.onnx"))

    engine = agent.build(ORT_CUDA, model, str(output), {"precision": "fp32", "batch": 4})["engine"]
    loaded = agent.load(str(output))

    assert engine["bound_to"]["gpu"] == "NVIDIA L4"
    assert set(loaded["facts"]["nodes"]) == set(engine["built"]["nodes"]) == {library.CPU}
    assert agent.matrix_products() == {"fp32": 2}
    agent.close()
    other = {"platform": "x", "gpu": "NVIDIA T4"}
    monkeypatch.setattr(gpu, "here", lambda runtime, version, device: {**other, runtime: version})
    with pytest.raises(InputError, match=r"built for .*gpu 'NVIDIA L4', here 'NVIDIA T4'; build it again"):
        agent.load(str(output))
