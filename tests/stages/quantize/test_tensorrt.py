"""What the stage makes for TensorRT, built by TensorRT-RTX, which reads the same graphs and needs no GPU to build."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
