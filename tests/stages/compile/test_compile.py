"""Compiling: every runtime, in every precision this processor has, builds what it says it builds."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from stages.compile.stage import STAGE, CompileOptions, _counted
from stages.stage import StageContext
from targets.board import COMPUTES
from targets.errors import InputError, StageError, WorkerError
from targets.facts import installed_version, probe
from targets.profile import RuntimeChoice, TargetProfile, usable_runtimes
from targets.worker import Worker

pytestmark = pytest.mark.slow  # the graphs to compile take some seconds to make

Run = Callable[..., Any]
COMBINATIONS = [
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("onnxruntime", "int8_dynamic"),
    ("onnxruntime", "int8_weights"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
    ("openvino", "int8_weights"),
]
LAYERS = 10  # with weights: patch embedding, four in each of two blocks, head


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def combination(request: pytest.FixtureRequest, make_target: Callable[..., TargetProfile]) -> tuple[str, str]:
    """A runtime and a precision; skips what this machine does not run."""
    runtime, precision = request.param
    for choice, reason in usable_runtimes(make_target()):
        if choice.name == runtime and precision in choice.precisions and reason is not None:
            pytest.skip(reason)
    return runtime, precision


def graph_for(graphs: Any, precision: str) -> Path:
    return Path(getattr(graphs, "fp32" if precision == "bf16" else precision))


def answers(path: Path, graphs: Any, **options: Any) -> np.ndarray:
    with Worker(threads=1) as worker:
        worker.load(path, **options)
        return np.asarray(worker.infer(graphs.pixels, preprocess=graphs.preprocess, batch=3)["logits"])


def test_every_combination_that_the_cpu_target_offers_is_tested() -> None:
    from targets.profile import load_profile

    offered = {(choice.name, precision) for choice in load_profile("cpu").runtimes for precision in choice.precisions}

    assert offered == set(COMBINATIONS)


def test_an_engine_answers_as_the_graph_it_was_built_from(
    combination: tuple[str, str], graphs: Any, run_compile: Run, tmp_path: Path, int8_saturates: bool
) -> None:
    runtime, precision = combination
    graph = graph_for(graphs, precision)

    run_compile(graph, tmp_path / "engine", runtime=runtime, precision=precision)

    expected = answers(graph / "model.onnx", graphs, runtime="onnxruntime", precision=precision.replace("bf16", "fp32"))
    found = answers(tmp_path / "engine", graphs)
    spread = np.abs(expected).max()
    exact = ("fp32", "int8_weights")
    tolerance = 1e-5 if precision in exact else 5e-2  # int8: runtimes round differently
    if precision in ("int8", "int8_dynamic") and int8_saturates:
        tolerance = 0.15
    assert found.shape == (40, 6)
    np.testing.assert_allclose(found, expected, atol=tolerance * spread)


def test_products_run_in_the_precision_asked_for(
    combination: tuple[str, str], graphs: Any, run_compile: Run, tmp_path: Path
) -> None:
    runtime, precision = combination

    result, _ = run_compile(graph_for(graphs, precision), tmp_path / "engine", runtime=runtime, precision=precision)

    products = result.facts["matrix_products"]
    computes = COMPUTES.get(precision, precision)
    assert products[computes] >= LAYERS - 1
    assert sum(products.values()) - products[computes] <= 5  # softmax x value stays in fp32
    assert f"{products[computes]} matrix products in {computes}" in result.facts["summary"]


@pytest.mark.parametrize("batch", [1, 2])
def test_onnxruntime_multiplies_in_int8_at_a_fixed_batch(
    batch: int, graphs: Any, run_compile: Run, tmp_path: Path
) -> None:
    """Its fusion of MatMul and Add, left on, would make fp32 of every layer with a bias."""
    result, _ = run_compile(graphs.int8, tmp_path, runtime="onnxruntime", precision="int8", batch=batch)

    assert result.facts["matrix_products"]["int8"] >= LAYERS


def test_batch_and_threads_are_those_of_the_target_unless_told(
    combination: tuple[str, str], graphs: Any, run_compile: Run, tmp_path: Path
) -> None:
    runtime, precision = combination
    graph = graph_for(graphs, precision)

    usual, _ = run_compile(graph, tmp_path / "usual", runtime=runtime, precision=precision)
    other, _ = run_compile(graph, tmp_path / "other", runtime=runtime, precision=precision, batch=2, threads=2)

    engines = [json.loads((tmp_path / name / "engine.json").read_text()) for name in ("usual", "other")]
    assert [one["batch"] for one in engines] == [usual.facts["batch"], other.facts["batch"]] == [3, 2]
    assert [one["options"]["threads"] for one in engines] == [1, 2]
    with Worker() as worker:  # whoever loads it without a word about threads
        loaded = [worker.load(tmp_path / name).facts for name in ("usual", "other")]
    assert [int(one.get("threads") or one["inference_num_threads"]) for one in loaded] == [1, 2]
    assert [one["inputs"][0]["shape"] for one in engines] == [[3, 3, 16, 16], [2, 3, 16, 16]]


def test_facts_say_what_was_built_where_and_how_large(
    combination: tuple[str, str], graphs: Any, run_compile: Run, tmp_path: Path
) -> None:
    runtime, precision = combination

    result, _ = run_compile(graph_for(graphs, precision), tmp_path / "engine", runtime=runtime, precision=precision)

    engine = json.loads((tmp_path / "engine" / "engine.json").read_text())
    files = {file.name: file.stat().st_size for file in (tmp_path / "engine").iterdir() if file.name != "engine.json"}
    assert {name: file["size_bytes"] for name, file in engine["files"].items()} == files
    assert result.facts["engine_bytes"] == sum(files.values())
    assert (result.facts["runtime"], result.facts["precision"]) == (engine["runtime"], engine["precision"])
    assert (engine["runtime"], engine["precision"]) == (runtime, precision)
    assert result.facts["version"] == installed_version(runtime) == result.bound_to[runtime]
    assert result.bound_to["instruction_sets"] == " ".join(probe()["instruction_sets"])
    assert result.bound_to["cores"] == str(probe()["cores"])
    assert result.facts["build_seconds"] > 0
    json.dumps(result.facts)


def test_the_same_graph_gives_the_same_engine(
    combination: tuple[str, str], graphs: Any, run_compile: Run, tmp_path: Path
) -> None:
    runtime, precision = combination
    for name in ("one", "two"):
        run_compile(graph_for(graphs, precision), tmp_path / name, runtime=runtime, precision=precision)

    one, two = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir() if file.name != "engine.json"}
        for name in ("one", "two")
    )
    assert one == two


def test_progress_names_the_runtime_and_the_precision(graphs: Any, run_compile: Run, tmp_path: Path) -> None:
    _, told = run_compile(graphs.fp32, tmp_path, runtime="openvino")

    assert [message for message, _ in told] == ["openvino builds for fp32, batch 3", "looking at what runs"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_int8_of_a_graph_that_is_not_quantized_is_an_error(
    runtime: str, graphs: Any, run_compile: Run, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=rf"asked {runtime} for int8, .* \(\d+ in fp32\); int8 needs a quantized"):
        run_compile(graphs.fp32, tmp_path, runtime=runtime, precision="int8")


def test_products_of_which_nothing_is_told_are_not_called_by_a_precision() -> None:
    assert _counted({"unknown": 12}) == "12 matrix products in a precision that is not told"
    assert _counted({"int8": 2, "fp32": 1}) == "1 matrix products in fp32, 2 matrix products in int8"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_fp32_of_a_quantized_graph_is_an_error(runtime: str, graphs: Any, run_compile: Run, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=f"asked {runtime} for fp32, but .*in int8"):
        run_compile(graphs.int8, tmp_path, runtime=runtime)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"runtime": "tensorrt"}, "target 'small' has no runtime 'tensorrt'; it has onnxruntime, openvino"),
        ({"runtime": "onnxruntime", "precision": "bf16"}, "does not run 'bf16' with 'onnxruntime'; it runs fp32, int8"),
    ],
)
def test_what_the_target_does_not_offer_is_refused(
    options: dict[str, Any], reason: str, graphs: Any, run_compile: Run, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=reason):
        run_compile(graphs.fp32, tmp_path, **options)


def test_what_this_machine_lacks_is_refused_with_the_reason(
    graphs: Any, run_compile: Run, make_target: Callable[..., TargetProfile], tmp_path: Path
) -> None:
    future = make_target(runtimes=(RuntimeChoice(name="openvino", versions=">=9999"),))

    with pytest.raises(InputError, match=r"'openvino' in 'fp32' cannot be used here: version .* needs >=9999"):
        run_compile(graphs.fp32, tmp_path, runtime="openvino", target=future)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("content", [b"", b"no graph", None], ids=["empty", "text", "cut short"])
def test_a_broken_graph_is_refused(
    runtime: str, content: bytes | None, graphs: Any, run_compile: Run, tmp_path: Path
) -> None:
    whole = (graphs.fp32 / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(whole[:1000] if content is None else content)

    with pytest.raises(WorkerError, match=rf"^build failed: {runtime} cannot (read|load) 'model\.onnx': ") as caught:
        run_compile(tmp_path, tmp_path / "engine", runtime=runtime)

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_engine_of_another_graph_is_another_engine(
    runtime: str, graphs: Any, run_compile: Run, tmp_path: Path
) -> None:
    model = onnx.load(graphs.fp32 / "model.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
    (tmp_path / "graph").mkdir()
    onnx.save(model, tmp_path / "graph" / "model.onnx")

    run_compile(graphs.fp32, tmp_path / "one", runtime=runtime)
    run_compile(tmp_path / "graph", tmp_path / "two", runtime=runtime)

    np.testing.assert_allclose(answers(tmp_path / "two", graphs), answers(tmp_path / "one", graphs) + 1, atol=1e-4)


@pytest.mark.parametrize("absent", ["onnxruntime", "openvino"])
def test_no_runtime_is_loaded_into_the_process_of_torch(
    absent: str, graphs: Any, run_compile: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)  # importing it here fails; the worker has its own

    result, _ = run_compile(graphs.fp32, tmp_path, runtime=absent)

    assert result.facts["matrix_products"]["fp32"] >= LAYERS


def test_the_stage_needs_a_target(graphs: Any, tmp_path: Path) -> None:
    context = StageContext(input=graphs.fp32, source=graphs.fp32, output=tmp_path, scratch=tmp_path, images={})

    with pytest.raises(RuntimeError, match="not target_bound"):
        STAGE.run(CompileOptions(runtime="onnxruntime"), context)
    assert STAGE.target_bound


def test_the_throughput_hint_is_in_force_and_in_the_summary(graphs: Any, run_compile: Run, tmp_path: Path) -> None:
    result, _ = run_compile(
        graphs.fp32, tmp_path / "engine", runtime="openvino", threads=1, hint="throughput", streams=1
    )

    told = json.loads((tmp_path / "engine" / "engine.json").read_text())
    assert told["at_load"] == {"hint": "throughput", "streams": 1, "threads": 1}
    assert (result.facts["hint"], result.facts["requests"]) == ("throughput", 1)
    assert result.facts["in_force"]["performance_hint"] == "THROUGHPUT"
    assert result.facts["summary"].endswith("; throughput hint, queries at once: 1")
    spread = np.abs(answers(graphs.fp32 / "model.onnx", graphs, runtime="onnxruntime")).max()
    np.testing.assert_allclose(
        answers(tmp_path / "engine", graphs),
        answers(graphs.fp32 / "model.onnx", graphs, runtime="onnxruntime"),
        atol=1e-5 * spread,
    )


def test_a_hint_for_a_runtime_without_hints_is_refused(graphs: Any, run_compile: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"option 'hint' is one of openvino, .* not of 'onnxruntime'; leave it out"):
        run_compile(graphs.fp32, tmp_path, runtime="onnxruntime", hint="throughput")
