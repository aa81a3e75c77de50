"""Small vision models written as ONNX by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FILTERS, CLASSES = 8, 10


def write_cnn(
    path: Path,
    *,
    shape: tuple[Any, ...] = ("n", 3, 16, 16),
    kind: int = TensorProto.FLOAT,
    name: str = "x",
    hidden: str = "h",
    named: bool = True,
    features: bool = False,
    external: bool = False,
    seed: int = 0,
) -> Path:
    """Conv 3x3 → ReLU → mean over the picture → Gemm; with `features` also what goes into the Gemm, first."""
    draw = np.random.default_rng(seed)
    weights = {
        "filters": draw.normal(size=(FILTERS, 3, 3, 3), scale=0.3),
        "bias": draw.normal(size=FILTERS, scale=0.1),
        "head": draw.normal(size=(FILTERS, CLASSES)),
    }
    nodes = [
        helper.make_node("Conv", [name, "filters", "bias"], [hidden], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("Relu", [hidden], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "head"], ["y"]),
    ]
    if named:
        for node, called in zip(nodes, ("conv", "relu", "pool", "flat", "head"), strict=True):
            node.name = called
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], CLASSES])]
    if features:
        outputs.insert(0, helper.make_tensor_value_info("f", TensorProto.FLOAT, [shape[0], FILTERS]))
    tensors = [numpy_helper.from_array(value.astype(np.float32), key) for key, value in weights.items()]
    graph = helper.make_graph(nodes, "cnn", [helper.make_tensor_value_info(name, kind, shape)], outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
    return path
