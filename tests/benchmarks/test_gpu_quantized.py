"""Part `quantized` of the GPU benchmark: what it makes of a model runs, in every precision, in a process of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.gpu_ort import OrtProcess

pytestmark = pytest.mark.slow  # a graph is exported


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A sixteenth of ViT-B, as `--small` tries it."""
    from benchmarks.gpu_quantized import _Model

    return _Model.make("ViT-B", place=None, small=True, folder=tmp_path_factory.mktemp("model"))


def test_guessed_ranges_quantize_every_product_with_weights(made: Any) -> None:
    graph = onnx.load(made.graphs["int8"]).graph
    onnx.checker.check_model(onnx.load(made.graphs["int8"]))
    made_by = {name: node for node in graph.node for name in node.output}
    linear = [one for one in graph.node if one.op_type in ("MatMul", "Gemm") and one.input[1].endswith("_float")]

    assert len(linear) == 2 * 4 + 1  # qkv, proj, fc1 and fc2 of two blocks, and the head
    for node in linear:
        assert [made_by[one].op_type for one in node.input[:2]] == ["DequantizeLinear"] * 2
    kinds = {one.name: one.data_type for one in graph.initializer}
    assert sum(kind == onnx.TensorProto.INT8 for name, kind in kinds.items() if name.endswith(".weight_int8")) == 9


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_graph_answers_and_is_timed_in_a_process_of_its_own(made: Any, precision: str) -> None:
    images = np.random.default_rng(0).standard_normal((5, *made.spec.input_shape)).astype(np.float32)
    with OrtProcess(made.graphs[precision], batch=2, device="cpu") as process:
        answers, times = process.answers(images), process.time(3)
        info = process.info

    assert answers.shape == (5, made.spec.classes)
    assert np.isfinite(answers).all()
    assert len(times) == 3
    assert (info["provider"], info["torch_loaded"]) == ("CPUExecutionProvider", False)
    if precision == "fp16":
        with OrtProcess(made.graphs["fp32"], batch=5, device="cpu") as exact:
            assert np.allclose(answers, exact.answers(images), atol=0.05)


def test_a_provider_that_is_not_there_is_told_in_one_line(made: Any) -> None:
    import onnxruntime

    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("it is there")
    with pytest.raises(RuntimeError, match="TensorrtExecutionProvider is not in this onnxruntime"):
        OrtProcess(made.graphs["fp32"], batch=1, device="tensorrt")


def test_tensorrt_rtx_is_not_tried_without_a_gpu(tmp_path: Path) -> None:
    from benchmarks.gpu_quantized import attempt

    assert attempt(tmp_path, "cpu")["skipped"] == "needs a GPU"
