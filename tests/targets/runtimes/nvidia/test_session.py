"""Sessions of both TensorRTs on a fake CUDA runtime that does its work only when it is waited for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import make_engine, open_engine
from fake_cuda import FakeCudart
from onnx import TensorProto, helper, save
from tiny_graphs import CLASSES, PIXELS, WIDTH, answer, images, save_fp32

from targets.errors import InputError, WorkerError
from targets.runtimes import tensorrt_gpu
from targets.runtimes.nvidia.session import GpuSession

Install = Callable[..., Any]
VERSIONS = [("tensorrt", "10.3.0"), ("tensorrt", "11.4.1.8"), ("tensorrt_rtx", "1.7.1.116")]


@pytest.fixture(params=VERSIONS, ids=lambda one: "-".join(one))
def session(request: pytest.FixtureRequest, install: Install, cudart: FakeCudart, tmp_path: Path) -> GpuSession:
    """A session of each kind, for batch 4."""
    runtime, version = request.param
    if runtime == "tensorrt_rtx":
        cudart.capability = "8.9"
    install(version, runtime)
    return open_engine(make_engine(tmp_path / "engine", runtime), runtime)


def since(cudart: FakeCudart, start: int) -> list[str]:
    return cudart.calls[start:]


def test_an_engine_answers_like_numpy_query_after_query(session: GpuSession) -> None:
    for seed in range(3):
        pixels = images(4, seed=seed)

        answers = session.run({"image": pixels})

        assert answers["probabilities"].shape == (4, CLASSES)
        np.testing.assert_allclose(answers["probabilities"], answer(pixels), atol=1e-5)


def test_every_query_copies_in_runs_copies_out_and_waits(install: Install, cudart: FakeCudart, tmp_path: Path) -> None:
    install("10.3.0")
    session = open_engine(make_engine(tmp_path / "engine"), cuda_graph=False)
    session.run({"image": images(4)})
    start = len(cudart.calls)

    session.run({"image": images(4)})

    assert since(cudart, start) == ["copy in", "execute", "copy out", "cudaStreamSynchronize"]
    assert session.facts()["cuda_graph"] == "off"


def test_the_first_query_runs_plainly_and_those_after_it_launch_the_recording(
    install: Install, cudart: FakeCudart, tmp_path: Path
) -> None:
    install("11.4.1")
    session = open_engine(make_engine(tmp_path / "engine"))
    assert session.facts()["cuda_graph"].startswith("not yet")
    start = len(cudart.calls)
    session.run({"image": images(4)})
    first = [one for one in since(cudart, start) if one not in ("cudaMalloc", "cudaHostAlloc")]
    start = len(cudart.calls)

    session.run({"image": images(4)})

    assert first == [
        *["copy in", "execute", "copy out", "cudaStreamSynchronize"],
        *["cudaStreamBeginCapture", "execute", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"],
        "cudaGraphDestroy",
    ]
    assert since(cudart, start) == ["copy in", "cudaGraphLaunch", "copy out", "cudaStreamSynchronize"]
    assert session.facts()["cuda_graph"] == "recorded"


@pytest.mark.parametrize(
    "call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags", "record"]
)
def test_where_recording_fails_queries_go_on_without(
    install: Install, cudart: FakeCudart, tmp_path: Path, call: str
) -> None:
    library = install("10.3.0")
    session = open_engine(make_engine(tmp_path / "engine"))
    if call == "record":
        library.trouble["record"] = "a layer waits for the host"
    else:
        cudart.fail[call] = 900
    session.run({"image": images(4)})
    cudart.fail.clear()
    start = len(cudart.calls)

    answers = session.run({"image": images(4, seed=1)})

    assert since(cudart, start) == ["copy in", "execute", "copy out", "cudaStreamSynchronize"]
    assert session.facts()["cuda_graph"].startswith("off: ")
    if call != "cudaStreamEndCapture":  # where that failed, the fake goes on recording, as nothing else can
        np.testing.assert_allclose(answers["probabilities"], answer(images(4, seed=1)), atol=1e-5)


def test_all_memory_streams_and_recordings_are_given_back(session: GpuSession, cudart: FakeCudart) -> None:
    session.run({"image": images(4)})
    session.run({"image": images(4)})
    assert cudart.forgotten

    session.close()
    session.close()

    assert cudart.forgotten == {}
    with pytest.raises(WorkerError, match="closed"):
        session.run({"image": images(4)})


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaHostAlloc"])
def test_memory_that_runs_out_is_told_with_its_size_and_given_back(
    install: Install, cudart: FakeCudart, tmp_path: Path, call: str
) -> None:
    install("10.3.0")
    session = open_engine(make_engine(tmp_path / "engine"))
    cudart.fail[call] = 2

    with pytest.raises(WorkerError, match=rf"{call} of 3072 bytes failed: out of memory .*smaller batch"):
        session.run({"image": images(4)})

    cudart.fail.clear()
    assert set(cudart.forgotten) == {"stream"}
    np.testing.assert_allclose(session.run({"image": images(4)})["probabilities"], answer(images(4)), atol=1e-5)


def test_a_query_that_fails_leaves_nothing_under_way(install: Install, cudart: FakeCudart, tmp_path: Path) -> None:
    library = install("10.3.0")
    session = open_engine(make_engine(tmp_path / "engine"))
    library.trouble["execute"] = "a kernel\n is missing"
    start = len(cudart.calls)

    with pytest.raises(WorkerError, match="did not run: a kernel is missing"):
        session.run({"image": images(4)})

    assert since(cudart, start)[-1] == "cudaStreamSynchronize"


def test_what_went_wrong_on_the_gpu_is_told_by_the_wait(session: GpuSession, cudart: FakeCudart) -> None:
    cudart.fail["cudaStreamSynchronize"] = 700

    with pytest.raises(WorkerError, match=r"cudaStreamSynchronize failed: .* \(cudaError 700\)"):
        session.run({"image": images(4)})


def test_a_dynamic_engine_takes_batches_within_its_range(install: Install, cudart: FakeCudart, tmp_path: Path) -> None:
    install("10.3.0")
    session = open_engine(make_engine(tmp_path / "engine", batch_min=2, batch_max=6))
    assert session.inputs[0].shape == (None, 3, 8, 8)

    for count in (2, 6, 6, 3, 6):
        answers = session.run({"image": images(count)})
        np.testing.assert_allclose(answers["probabilities"], answer(images(count)), atol=1e-5)

    with pytest.raises(
        InputError, match=r"has shape \[7, 3, 8, 8\]; the engine takes \[2, 3, 8, 8\] to \[6, 3, 8, 8\]"
    ):
        session.run({"image": images(7)})
    session.close()
    assert cudart.forgotten == {}


def test_another_shape_is_recorded_anew(install: Install, cudart: FakeCudart, tmp_path: Path) -> None:
    install("10.3.0")
    session = open_engine(make_engine(tmp_path / "engine", batch_min=2, batch_max=6))
    states = []
    for count in (2, 2, 6, 6):
        start = len(cudart.calls)
        session.run({"image": images(count)})
        states.append(("cudaGraphLaunch" in since(cudart, start), "cudaStreamBeginCapture" in since(cudart, start)))

    assert states == [(False, True), (True, False), (False, True), (True, False)]
    assert len(cudart.live["exec"]) == 1


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "input 'image' is missing"),
        ({"image": images(3)}, r"float32 \[3, 3, 8, 8\]; the engine takes float32 \[4, 3, 8, 8\]"),
        ({"image": images(4).astype(np.float64)}, "is float64"),
        ({"image": images(4)[:, 0]}, r"\[4, 8, 8\]"),
    ],
)
def test_a_query_of_another_shape_or_type_is_refused(
    install: Install, tmp_path: Path, feeds: dict[str, Any], words: str
) -> None:
    install("10.3.0")
    session = open_engine(make_engine(tmp_path / "engine"))

    with pytest.raises(InputError, match=words):
        session.run(feeds)


MACS = 4 * (PIXELS * WIDTH + WIDTH * CLASSES)
"""of a query of four images of tiny_graphs' graph"""


def test_every_layer_tells_its_time_and_what_the_engine_says_of_it(session: GpuSession) -> None:
    session.run({"image": images(4)})

    rows = session.layers({"image": images(4)}, repeats=3)

    assert all(row["seconds"] > 0 for row in rows)
    assert [row["seconds"] for row in rows] == sorted((row["seconds"] for row in rows), reverse=True)
    assert all(row["calls"] == 1 for row in rows)
    assert any(row["precision"] == "fp32" for row in rows)
    assert sum(row["macs"] or 0 for row in rows) == MACS
    assert {row["macs"] for row in rows if "softmax" in row["name"]} <= {None}
    assert {key for row in rows for key in row} == {
        *("name", "operator", "kernel", "precision", "provider", "macs", "seconds", "calls"),
    }


def test_layers_are_not_looked_at_where_there_is_no_memory_for_it(
    install: Install, cudart: FakeCudart, tmp_path: Path
) -> None:
    library = install("10.3.0")
    session = open_engine(make_engine(tmp_path / "engine"))
    library.trouble["context"] = "no memory"

    with pytest.raises(WorkerError, match=r"no context for the engine: .*; use a smaller batch"):
        session.layers({"image": images(4)}, repeats=1)


def test_an_fp16_engine_without_casts_takes_fp32_images(install: Install, tmp_path: Path) -> None:
    install("10.3.0")
    weight = helper.make_tensor("weight", TensorProto.FLOAT16, [3, 2], np.float16([[1, 0], [0, 1], [1, 1]]))
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, size]) for name, size in (("image", 3), ("out", 2))
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["image", "weight"], ["out"], name="product")],
        "halves",
        values[:1],
        values[1:],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    save(model, tmp_path / "graph.onnx")
    session = tensorrt_gpu.load(tmp_path / "graph.onnx", {"threads": 1, "precision": "fp16"})

    assert session.inputs[0].dtype == "float16"
    assert session.run({"image": np.float32([[1, 0.5, 2]])})["out"].tolist() == [[3, 2.5]]
    assert session.layers({"image": np.float32([[1, 0.5, 2]])}, 1)


def test_products_are_counted_by_what_the_engine_tells_of_its_layers(session: GpuSession) -> None:
    assert session.matrix_products({"image": images(4)}) == {"fp32": 2}


def test_rtx_records_by_itself_and_keeps_compiled_kernels(install: Install, cudart: FakeCudart, tmp_path: Path) -> None:
    cudart.capability = "8.9"
    library = install("1.7.1.116", "tensorrt_rtx")
    plan = make_engine(tmp_path / "engine", "tensorrt_rtx")
    told = []
    for _ in range(2):
        session = open_engine(plan, "tensorrt_rtx", runtime_cache=str(tmp_path / "kernels"))
        session.run({"image": images(4)})
        told.append(session.facts()["runtime_cache"])
        session.close()

    assert told == ["new", "read"]
    assert library.last_config.cuda_graph_strategy is library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert "cudaStreamBeginCapture" not in cudart.calls
    (kernels,) = (tmp_path / "kernels").glob("*.bin")
    kernels.write_bytes(b"of somebody else")
    assert open_engine(plan, "tensorrt_rtx", runtime_cache=str(tmp_path / "kernels")).facts()["runtime_cache"] == "new"


def test_a_plain_graph_is_built_and_loaded_for_any_batch(install: Install, tmp_path: Path) -> None:
    install("10.3.0")
    session = tensorrt_gpu.load(save_fp32(tmp_path / "graph.onnx"), {"threads": 1, "precision": "fp32"})

    assert session.inputs[0].shape == (None, 3, 8, 8)
    np.testing.assert_allclose(session.run({"image": images(7)})["probabilities"], answer(images(7)), atol=1e-5)


def test_a_stripped_engine_takes_the_weights_that_it_was_built_with_and_no_others(
    install: Install, tmp_path: Path
) -> None:
    install("10.3.0")
    plan = make_engine(tmp_path / "engine", strip_weights=True)
    other = save_fp32(tmp_path / "other.onnx", batch=4)

    with pytest.raises(InputError, match="no weights in it; say where its ONNX file is by option 'weights'"):
        open_engine(plan)
    with pytest.raises(InputError, match=r"other.onnx' is not the ONNX file that the engine was built from"):
        open_engine(plan, weights=str(other))
    session = open_engine(plan, weights=str(tmp_path / "graph.onnx"))
    np.testing.assert_allclose(session.run({"image": images(4)})["probabilities"], answer(images(4)), atol=1e-5)


def test_weights_for_an_engine_that_has_its_own_are_refused(install: Install, tmp_path: Path) -> None:
    install("10.3.0")
    plan = make_engine(tmp_path / "engine")

    with pytest.raises(InputError, match="this one has its own"):
        open_engine(plan, weights=str(tmp_path / "graph.onnx"))


def test_a_failed_start_gives_the_stream_back(install: Install, cudart: FakeCudart, tmp_path: Path) -> None:
    library = install("10.3.0")
    plan = make_engine(tmp_path / "engine")
    library.trouble["context"] = "no memory"

    with pytest.raises(WorkerError, match="no context for the engine"):
        open_engine(plan)

    assert cudart.forgotten == {}
