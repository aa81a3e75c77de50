"""Latency and throughput: what OpenVINO is told, what is in force, and that both answer like the graph."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_graphs import CLASSES, answer, images, save_fp32, save_int8

from targets.agent import at_once
from targets.errors import InputError, WorkerError
from targets.facts import usable_cores
from targets.runtimes.intel.options import CPU, DEVICES, GPU, HINTS, NPU, hint_obstacle, properties, read_options
from targets.runtimes.runtime import ConcurrentSession
from targets.worker import Worker

PAIRS = [(runtime, precision) for runtime, known in HINTS.items() for precision in known]
LOADED = {"threads": 2, "batch": None, "optimized": True}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=usable_cores()) as worker:
        yield worker


def engine(worker: Worker, folder: Path, *, precision: str = "fp32", **more: Any) -> Path:
    model = folder / "graph.onnx"
    save_int8(model) if precision == "int8" else save_fp32(model)
    (folder / "engine").mkdir()
    worker.build(model, folder / "engine", runtime=CPU, precision=precision, batch=4, more=more)
    return folder / "engine"


@pytest.mark.parametrize(("runtime", "precision"), PAIRS)
@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_the_precision_is_always_said(runtime: str, precision: str, hint: str) -> None:
    told = properties(runtime, read_options(runtime, {**LOADED, "precision": precision, "hint": hint}))

    assert (
        told["INFERENCE_PRECISION_HINT"]
        in {"CPU": ("f32", "bf16"), "GPU": ("f32", "f16"), "NPU": ("f16",)}[DEVICES[runtime]]
    )
    assert told["PERFORMANCE_HINT"] == hint.upper()
    assert (precision == "fp32") <= (told["INFERENCE_PRECISION_HINT"] == "f32")


@pytest.mark.parametrize("runtime", DEVICES)
def test_threads_are_those_of_the_cpu_alone_and_streams_are_said_where_they_were_asked_for(runtime: str) -> None:
    precision = next(iter(HINTS[runtime]))
    plain = properties(runtime, read_options(runtime, {**LOADED, "precision": precision}))

    assert plain.get("INFERENCE_NUM_THREADS") == (2 if runtime == CPU else None)
    assert "NUM_STREAMS" not in plain
    if runtime != NPU:
        given = {**LOADED, "precision": precision, "hint": "throughput", "streams": 3}
        assert properties(runtime, read_options(runtime, given))["NUM_STREAMS"] == 3


def test_int8_weights_leave_activations_alone() -> None:
    told = properties(CPU, read_options(CPU, {**LOADED, "precision": "int8_weights"}))

    assert told["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 0


@pytest.mark.parametrize(
    ("runtime", "options", "said"),
    [
        (CPU, {"hint": "fast"}, "option 'hint' is one of latency, throughput, got 'fast'"),
        (CPU, {"streams": 2}, "option 'streams' goes with hint 'throughput', got 2 with 'latency'; set hint"),
        (CPU, {"hint": "throughput", "streams": 0}, "a whole number from 1 to 1024, got 0"),
        (CPU, {"batch": "four"}, "option 'batch' is a whole number from 1 to 65536, got 'four'"),
        (GPU, {"precision": "fp16", "batch": 0}, "option 'batch' is a whole number from 1 to 65536, got 0"),
        (CPU, {"threads": True}, "option 'threads' is a whole number from 1 to 4096, got True"),
        (CPU, {"hint": "throughput", "streams": True}, "a whole number from 1 to 1024, got True"),
        (NPU, {"precision": "int8", "hint": "throughput", "streams": 2}, "an NPU has no streams; leave it out"),
        (NPU, {"precision": "fp32"}, "runtime 'openvino_npu' does not run 'fp32'; it runs fp16, int8"),
        (GPU, {"precision": "bf16"}, "runtime 'openvino_gpu' does not run 'bf16'; it runs fp32, fp16, int8"),
        (CPU, {"stream": 2}, "has no option 'stream'; did you mean 'streams'"),
        (CPU, {"compute_capability": "8.6"}, "runtime 'openvino' has no option 'compute_capability'"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(runtime: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_options(runtime, {**LOADED, **options})

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    st.one_of(st.none(), st.integers(), st.text(max_size=3), st.booleans()), st.sampled_from(["latency", "throughput"])
)
def test_no_other_runtime_takes_a_hint(streams: Any, hint: str) -> None:
    reason = hint_obstacle("onnxruntime", hint, streams)

    assert (reason is None) == (hint == "latency" and streams is None)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_with_either_hint_an_engine_answers_like_the_graph(
    worker: Worker, tmp_path: Path, hint: str, precision: str
) -> None:
    worker.load(engine(worker, tmp_path, precision=precision, hint=hint))
    pixels = images(11)

    answers = worker.infer(pixels)["probabilities"]

    np.testing.assert_allclose(answers, answer(pixels), atol=1e-5 if precision == "fp32" else 2e-2)


def test_the_hint_of_the_build_holds_at_every_load_unless_another_is_given(worker: Worker, tmp_path: Path) -> None:
    folder = engine(worker, tmp_path, hint="throughput")

    kept, changed = worker.load(folder), worker.load(folder, more={"hint": "latency"})

    assert json.loads((folder / "engine.json").read_text())["at_load"] == {"hint": "throughput", "streams": None}
    assert (kept.facts["performance_hint"], changed.facts["performance_hint"]) == ("THROUGHPUT", "LATENCY")
    assert changed.requests == changed.facts["num_streams"] == 1


@pytest.mark.parametrize("streams", [1, 2])
def test_the_streams_asked_for_are_in_force(worker: Worker, tmp_path: Path, streams: int) -> None:
    if streams > usable_cores():
        pytest.skip("needs two cores")

    loaded = worker.load(engine(worker, tmp_path, hint="throughput", streams=streams))

    assert loaded.facts["num_streams"] == streams
    assert loaded.requests == loaded.facts["optimal_number_of_infer_requests"] >= streams
    assert loaded.facts["inference_precision_hint"] == "f32"


def test_streams_that_openvino_does_not_make_are_refused(worker: Worker, tmp_path: Path) -> None:
    """It makes fewer than it was told to where threads are lacking, without a word."""
    with pytest.raises(InputError, match=r"asked for 999 streams, openvino made \d+ on \d+ threads; set streams: \d+"):
        engine(worker, tmp_path, hint="throughput", streams=999)


def test_many_queries_at_once_answer_each_its_own_image(tmp_path: Path) -> None:
    from targets.runtimes import openvino_cpu

    options = {"precision": "fp32", "batch": 1, "threads": usable_cores(), "hint": "throughput"}
    session = openvino_cpu.load(save_fp32(tmp_path / "graph.onnx"), options)
    pixels = images(200)
    found = np.zeros((len(pixels), CLASSES), np.float32)

    assert isinstance(session, ConcurrentSession)
    for index in range(len(pixels)):
        session.submit(
            {"image": pixels[index : index + 1]},
            lambda answers, index=index: found.__setitem__(index, answers["probabilities"][0]),  # type: ignore[misc]
        )
    session.wait()
    session.close()

    np.testing.assert_allclose(found, answer(pixels), atol=1e-5)


def test_a_query_that_fails_is_told(tmp_path: Path) -> None:
    from targets.runtimes import openvino_cpu

    options = {"precision": "fp32", "batch": 1, "threads": 1, "hint": "throughput"}
    session = openvino_cpu.load(save_fp32(tmp_path / "graph.onnx"), options)

    def fails(answers: dict[str, Any]) -> None:
        raise ValueError("nobody wants it")

    session.submit({"image": images(1)}, fails)
    with pytest.raises(ValueError, match="nobody wants it"):
        session.wait()
    session.submit({"image": images(1)}, lambda answers: None)
    session.wait()  # told once; the pool goes on
    session.close()


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_a_query_that_openvino_refuses_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hint: str
) -> None:
    """Though all requests are lost to such queries, nobody waits for one of them."""
    from targets.runtimes import openvino_cpu

    monkeypatch.setattr(at_once, "ANSWER_SECONDS", 30)
    options = {"precision": "fp32", "batch": 1, "threads": 1, "hint": hint}
    session = openvino_cpu.load(save_fp32(tmp_path / "graph.onnx"), options)
    too_large = {"image": np.zeros((1, 3, 99, 99), np.float32)}
    assert isinstance(session, ConcurrentSession)

    for ask in (
        lambda: session.run(too_large),
        lambda: at_once.saturate(at_once.Pool(session, lambda: too_large), 20),
        lambda: at_once.serve_at_once([0] * 20, at_once.Pool(session, lambda: too_large), limit_ns=10**12),
    ):
        with pytest.raises(WorkerError, match=r"^openvino cannot run: .+99") as caught:
            ask()
        assert "\n" not in str(caught.value)
    session.close()
    session.close()


def test_sessions_come_and_go_without_hanging(tmp_path: Path) -> None:
    """What OpenVINO's own queue does not survive: given up right after its last answer."""
    from targets.runtimes import openvino_cpu

    options = {"precision": "fp32", "batch": 1, "threads": 1, "hint": "throughput"}
    graph = save_fp32(tmp_path / "graph.onnx")
    for _ in range(300):
        session = openvino_cpu.load(graph, options)
        session.submit({"image": images(1)}, lambda answers: None)
        session.wait()
        session.close()
