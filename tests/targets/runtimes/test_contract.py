"""What every runtime of the catalog must do, on tiny graphs and for real."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_graphs import CLASSES, SIZE, answer, images, save_fp32, save_int8

from targets.errors import InputError, UnknownNameError, WorkerError
from targets.facts import RUNTIME_DISTRIBUTIONS, installed_version, probe
from targets.runtimes.catalog import CATALOG, get_runtime
from targets.runtimes.engine import ENGINE_FILE, engine_digest
from targets.runtimes.intel.devices import device_obstacle
from targets.runtimes.nvidia.cuda import Cuda
from targets.runtimes.ort.ask import provider_obstacle
from targets.worker import Worker

FLOAT = {"openvino_npu": "fp16"}
"""runtime -> precision in which it computes an fp32 graph, where that is not fp32"""
PRECISIONS = [
    (runtime, precision)
    for runtime in CATALOG
    for precision in (FLOAT.get(runtime, "fp32"), "int8")
    if (runtime, precision) != ("onnxruntime_cuda", "int8")  # which it does not run
]
ORT = ("onnxruntime_cuda", "onnxruntime_tensorrt")
GPU = ("tensorrt", "tensorrt_rtx", *ORT)
INTEL = ("openvino_gpu", "openvino_npu")
PACKAGES = dict.fromkeys(INTEL, "openvino")
AHEAD = {"tensorrt_rtx": {"compute_capability": "8.9"}}
"""what must be said to build without a GPU"""


def obstacle(runtime: str, *, builds: bool = False) -> str | None:
    """Why a runtime cannot be tried here; builds: that it builds is enough."""
    if installed_version(runtime) is None:
        return f"{runtime} is not installed (package {RUNTIME_DISTRIBUTIONS[runtime][0]})"
    if runtime in ORT and (reason := provider_obstacle(runtime)):
        return f"{runtime}: {reason}"
    if reason := device_obstacle(runtime):
        return reason
    if runtime in GPU and not (builds and runtime in AHEAD):
        try:
            Cuda()  # a Jetson has no nvidia-smi to ask
        except WorkerError as error:
            return f"{runtime} needs an NVIDIA GPU to {'build' if builds else 'load an engine'}: {error}"
    return None


def skip_where_it_cannot(runtime: str, *, builds: bool = False) -> None:
    if reason := obstacle(runtime, builds=builds):
        pytest.skip(reason)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=1) as worker:
        yield worker


@pytest.fixture(scope="module", params=PRECISIONS, ids=lambda one: "-".join(one))
def built(request: pytest.FixtureRequest, worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of batch 4, built by every runtime in every precision it has here."""
    runtime, precision = request.param
    skip_where_it_cannot(runtime)
    folder = tmp_path_factory.mktemp(f"{runtime}-{precision}")
    model, output = folder / "graph.onnx", folder / "engine"
    if precision == "int8":
        save_int8(model, symmetric=runtime in GPU)
    else:
        save_fp32(model)
    output.mkdir()
    worker.build(model, output, runtime=runtime, precision=precision, batch=4)
    return output


def described(engine: Path) -> dict[str, object]:
    return dict(json.loads((engine / ENGINE_FILE).read_text()))


def test_every_runtime_is_tested_here() -> None:
    assert set(CATALOG) == set(RUNTIME_DISTRIBUTIONS)


@pytest.mark.parametrize("runtime", CATALOG)
def test_a_runtime_that_is_not_installed_says_what_to_install(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES.get(runtime, runtime), None)  # importing it fails

    with pytest.raises(WorkerError, match=f"runtime {runtime!r} cannot be used here: .*install .*{runtime[:8]}"):
        get_runtime(runtime)


@pytest.mark.parametrize("runtime", CATALOG)
def test_one_that_is_installed_can_be_used(runtime: str) -> None:
    if runtime in ORT:
        skip_where_it_cannot(runtime)
    if installed_version(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    if reason := device_obstacle(runtime):
        pytest.skip(reason)

    assert get_runtime(runtime).version() == installed_version(runtime)


@pytest.mark.parametrize("runtime", AHEAD)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_builds_without_its_hardware_says_all_that_loading_would(
    worker: Worker, tmp_path: Path, runtime: str, precision: str
) -> None:
    skip_where_it_cannot(runtime, builds=True)
    model, output = tmp_path / "graph.onnx", tmp_path / "engine"
    output.mkdir()
    save_int8(model, symmetric=True) if precision == "int8" else save_fp32(model)

    engine, seconds = worker.build(model, output, runtime=runtime, precision=precision, batch=4, more=AHEAD[runtime])

    assert seconds > 0
    assert engine == described(output)
    assert engine["inputs"] == [{"name": "image", "shape": [4, 3, SIZE, SIZE], "dtype": "float32"}]
    assert engine["outputs"] == [{"name": "probabilities", "shape": [4, CLASSES], "dtype": "float32"}]
    assert engine["version"] == engine["bound_to"][runtime] == installed_version(runtime)


def test_an_engine_answers_like_numpy(worker: Worker, built: Path) -> None:
    worker.load(built)
    pixels = images(11)

    answers = worker.infer(pixels)["probabilities"]

    tolerance = 1e-5 if described(built)["precision"] == "fp32" else 2e-2
    assert answers.shape == (11, CLASSES)
    np.testing.assert_allclose(answers, answer(pixels), atol=tolerance)


def test_an_engine_and_the_graph_it_was_built_from_answer_the_same(worker: Worker, built: Path) -> None:
    facts, pixels = described(built), images(4, seed=3)
    worker.load(built)
    from_engine = worker.infer(pixels)["probabilities"]

    worker.load(built.parent / "graph.onnx", runtime=str(facts["runtime"]), precision=str(facts["precision"]), batch=4)
    from_graph = worker.infer(pixels)["probabilities"]

    np.testing.assert_allclose(from_engine, from_graph, atol=1e-6)


def test_the_batch_is_fixed_when_it_is_built(worker: Worker, built: Path) -> None:
    loaded = worker.load(built)

    assert loaded.inputs == ({"name": "image", "shape": [4, 3, SIZE, SIZE], "dtype": "float32"},)
    assert loaded.outputs == ({"name": "probabilities", "shape": [4, CLASSES], "dtype": "float32"},)
    with pytest.raises(InputError, match="fixed at 4, got batch 2"):
        worker.infer(images(2), batch=2)


def test_the_facts_say_what_is_in_force(worker: Worker, built: Path) -> None:
    loaded, facts = worker.load(built, threads=1), described(built)

    assert facts["version"] == loaded.version == (installed_version(str(facts["runtime"])) or "")
    assert facts["batch"] == 4
    assert loaded.engine_sha256 == engine_digest(built)
    if facts["runtime"] in INTEL:
        assert loaded.facts["full_device_name"] == facts["bound_to"]["device"]  # type: ignore[index]
        return
    assert loaded.facts.get("threads", loaded.facts.get("inference_num_threads")) == 1
    if facts["runtime"] in GPU:
        assert {"platform", "compute_capability", facts["runtime"]} <= set(facts["bound_to"])  # type: ignore[call-overload]
        return
    assert facts["bound_to"] == {
        "architecture": probe()["architecture"],
        "instruction_sets": " ".join(probe()["instruction_sets"]),
        facts["runtime"]: facts["version"],
    }


def test_products_run_in_the_precision_of_the_engine(worker: Worker, built: Path) -> None:
    worker.load(built)

    products = worker.matrix_products()

    if described(built)["runtime"] == "openvino_npu":
        assert products == {}  # it does not tell
        return
    assert sum(products.values()) == 2
    if described(built)["runtime"] == "onnxruntime_tensorrt":
        assert products == {"unknown": 2}, "its provider tells nothing of TensorRT's layers"
        return
    assert products.get("int8", 0) >= (described(built)["precision"] == "int8")
    assert "int8" in products or products == {"fp32": 2}


def test_the_profile_shares_out_the_whole_time(worker: Worker, built: Path) -> None:
    worker.load(built)

    rows = worker.profile(images(4), repeats=3)

    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert all(set(row) == {"operator", "share", "calls"} and row["calls"] >= 1 for row in rows)
    assert [row["share"] for row in rows] == sorted((row["share"] for row in rows), reverse=True)


def test_every_layer_tells_what_ran(worker: Worker, built: Path) -> None:
    worker.load(built)

    rows = worker.layers(images(4), repeats=3)

    assert all(
        set(row) == {"name", "operator", "kernel", "precision", "provider", "macs", "seconds", "calls"} for row in rows
    )
    assert [row["seconds"] for row in rows] == sorted((row["seconds"] for row in rows), reverse=True)
    assert all(row["provider"] and row["kernel"] and row["calls"] >= 1 for row in rows)
    if described(built)["runtime"] == "onnxruntime_tensorrt":
        assert {row["precision"] for row in rows} == {"unknown"}
        return
    if described(built)["runtime"] == "openvino_npu":
        return  # it tells neither precisions nor shapes
    products = [row for row in rows if row["macs"]]
    assert sorted(row["precision"] for row in products) == sorted(
        name for name, count in worker.matrix_products().items() for _ in range(count)
    )


def test_a_changed_file_is_refused(worker: Worker, built: Path) -> None:
    for name in described(built)["files"]:  # type: ignore[attr-defined]
        file = built / name
        content = file.read_bytes()
        for wrong in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1]):
            file.write_bytes(wrong)

            with pytest.raises(InputError, match=f"{name}.*not the one that was built"):
                worker.load(built)
        file.unlink()
        with pytest.raises(InputError, match="lacks its file"):
            worker.load(built)
        file.write_bytes(content)
    worker.load(built)


@pytest.mark.parametrize("fact", ["machine", "platform", "runtime"])
def test_another_machine_or_version_is_refused_with_both_facts(worker: Worker, built: Path, fact: str) -> None:
    facts = described(built)
    on_gpu = facts["runtime"] in GPU
    machine = {"machine": "device" if facts["runtime"] in INTEL else "instruction_sets"}
    if on_gpu:
        machine = {"machine": "compute_capability", "platform": "platform"}
    name = str(facts["runtime"]) if fact == "runtime" else machine.get(fact, "architecture")
    other = {**facts, "bound_to": {**facts["bound_to"], name: "another"}}  # type: ignore[dict-item]
    (built / ENGINE_FILE).write_text(json.dumps(other))

    with pytest.raises(InputError, match=f"built for {name} 'another', here '.+'; build it again"):
        worker.load(built)

    (built / ENGINE_FILE).write_text(json.dumps(facts))


@pytest.mark.parametrize("runtime", CATALOG)
def test_a_dynamic_graph_runs_as_it_is(worker: Worker, tmp_path: Path, runtime: str) -> None:
    skip_where_it_cannot(runtime)
    if runtime == "openvino_npu":
        with pytest.raises(InputError, match="an NPU takes fixed shapes; give a batch"):
            worker.load(save_fp32(tmp_path / "graph.onnx"), runtime=runtime, precision="fp16")
        return
    loaded = worker.load(save_fp32(tmp_path / "graph.onnx"), runtime=runtime)
    pixels = images(7)

    assert loaded.inputs[0]["shape"] == [None, 3, SIZE, SIZE]
    np.testing.assert_allclose(worker.infer(pixels, batch=3)["probabilities"], answer(pixels), atol=1e-5)


@pytest.mark.parametrize("runtime", CATALOG)
def test_a_graph_of_another_fixed_batch_is_refused(worker: Worker, tmp_path: Path, runtime: str) -> None:
    skip_where_it_cannot(runtime, builds=True)
    model = save_fp32(tmp_path / "graph.onnx", batch=2)
    output = tmp_path / "engine"
    output.mkdir()

    precision = FLOAT.get(runtime, "fp32")
    with pytest.raises(InputError, match="fixed at 2, got batch 4"):
        worker.build(model, output, runtime=runtime, precision=precision, batch=4, more=AHEAD.get(runtime))


@pytest.mark.parametrize("runtime", CATALOG)
def test_an_unknown_precision_is_refused(worker: Worker, tmp_path: Path, runtime: str) -> None:
    if runtime in ORT:
        skip_where_it_cannot(runtime)
    if installed_version(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    if reason := device_obstacle(runtime):
        pytest.skip(reason)
    model = save_fp32(tmp_path / "graph.onnx")
    output = tmp_path / "engine"
    output.mkdir()

    with pytest.raises(InputError, match=f"does not run 'fp4'; it runs {FLOAT.get(runtime, 'fp32')}"):
        worker.build(model, output, runtime=runtime, precision="fp4", batch=4)


@pytest.mark.parametrize("runtime", CATALOG)
def test_a_damaged_graph_is_refused_by_name(worker: Worker, tmp_path: Path, runtime: str) -> None:
    skip_where_it_cannot(runtime, builds=True)
    model, output = save_fp32(tmp_path / "graph.onnx"), tmp_path / "engine"
    model.write_bytes(model.read_bytes()[:500])
    output.mkdir()

    said = f"{PACKAGES.get(runtime, runtime)} cannot (load|read|compile) 'graph.onnx'"
    precision = FLOAT.get(runtime, "fp32")
    with pytest.raises(WorkerError, match=said):
        worker.build(model, output, runtime=runtime, precision=precision, batch=4, more=AHEAD.get(runtime))
    if obstacle(runtime) is None:
        with pytest.raises(WorkerError, match=said):
            worker.load(model, runtime=runtime, precision=precision)


def test_bf16_runs_in_bf16_where_the_processor_has_it(worker: Worker, tmp_path: Path) -> None:
    if not {"avx512_bf16", "amx_bf16", "bf16"} & set(probe()["instruction_sets"]):
        pytest.skip("this processor has no bf16")
    output = tmp_path / "engine"
    output.mkdir()
    worker.build(save_fp32(tmp_path / "graph.onnx"), output, runtime="openvino", precision="bf16", batch=4)
    loaded = worker.load(output)

    assert loaded.facts["inference_precision_hint"] == "bf16"
    assert "bf16" in worker.matrix_products()
    np.testing.assert_allclose(worker.infer(images(4))["probabilities"], answer(images(4)), atol=2e-2)


def test_a_large_model_keeps_its_weights_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from targets.runtimes import onnxruntime_cpu
    from targets.runtimes.ort import library

    monkeypatch.setattr(library, "EXTERNAL_ABOVE_BYTES", 100)
    options = {"precision": "fp32", "batch": 4, "threads": 1}

    files = onnxruntime_cpu.build(save_fp32(tmp_path / "graph.onnx"), tmp_path, options)["files"]

    assert files == ["model.onnx", "model.onnx.data"]
    session = onnxruntime_cpu.load(tmp_path / files[0], {**options, "optimized": True})
    np.testing.assert_allclose(session.run({"image": images(4)})["probabilities"], answer(images(4)), atol=1e-5)


def test_an_unknown_runtime_is_told_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="unknown runtime 'openvin'; did you mean 'openvino'"):
        get_runtime("openvin")
