"""What the stage makes for TensorRT, built by TensorRT-RTX, which reads the same graphs and needs no GPU to build."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.quantize.graph import read_graph
from stages.vit.spec import ViTSpec
from targets.preprocess import Preprocess
from targets.worker import Worker

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'vitrim[rtx]'")


@pytest.mark.slow
def test_a_symmetric_graph_that_merges_tokens_builds_with_all_its_int8_products(
    write_graph: Callable[..., Path], run_quantize: Callable[..., Any], tmp_path: Path, spec: ViTSpec
) -> None:
    merging = spec.replace(preprocess=Preprocess(height=32, width=32, mean=(0, 0, 0), std=(1, 1, 1)), merge=(5, 3))
    ran = run_quantize(write_graph(tmp_path, spec=merging), tmp_path, alphas=(0.95,), symmetric=True)
    output = tmp_path / "engine"
    output.mkdir()
    model, more = ran.context.output / "model.onnx", {"compute_capability": ["8.6", "8.9"]}

    with Worker(threads=1) as worker:
        engine, _ = worker.build(model, output, runtime="tensorrt_rtx", precision="int8", batch=1, more=more)

    quantized = [name for name, precision in engine["built"]["products"].items() if precision == "int8"]
    assert len(quantized) == ran.result.facts["products"]["int8"]


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 22])
def test_a_pruned_bf16_graph_that_merges_tokens_builds_with_all_its_bf16_products(
    write_graph: Callable[..., Path], run_quantize: Callable[..., Any], tmp_path: Path, spec: ViTSpec, opset: int
) -> None:
    first, second = spec.blocks
    pruned = (first.replace(d_qk=8, d_v=12), second.replace(mlp_width=40))
    merging = spec.replace(preprocess=Preprocess(height=32, width=32), blocks=pruned, merge=(5, 3))
    graph = write_graph(tmp_path, spec=merging, opset=opset)
    ran = run_quantize(graph, tmp_path, precision="bf16", select=32)
    output = tmp_path / "engine"
    output.mkdir()
    model, more = ran.context.output / "model.onnx", {"compute_capability": ["8.6", "8.9", "12.0", "12.1"]}

    with Worker(threads=1) as worker:
        engine, _ = worker.build(model, output, runtime="tensorrt_rtx", precision="bf16", batch=1, more=more)

    made = [name for name, precision in engine["built"]["products"].items() if precision == "bf16"]
    assert len(made) == ran.result.facts["products"]["bf16"]
    assert set(engine["built"]["products"]) - set(made) <= {
        node.name for node in read_graph(model).node if "merge" in node.name or node.op_type == "Conv"
    }
    assert ("patch_embed.proj/Conv" in made) is (opset == 22)
