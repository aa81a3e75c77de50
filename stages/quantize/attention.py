"""Both products of attention, query x key and softmax x value, with Q/DQ before every input, or neither of them.

TensorRT fuses an attention whose two products are quantized, or none. What a softmax makes lies between 0 and 1, so its
scale is fixed: 1/127 in symmetric int8, 1/255 with a zero point, 1/448 in E4M3.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MOST_TOKENS = 512
"""TensorRT has fused int8 attention up to here"""
HEAD_SIZES = range(9, 257)
"""for which TensorRT has fused fp8 attention"""
BETWEEN = ("Mul", "Div", "Add", "Sub", "Where", "Clip", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze")
"""operators that may stand between query x key and the softmax"""
AFTER = ("Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout")
"""operators that may stand between the softmax and its product"""


@dataclass(frozen=True)
class Pair:
    """The two products of an attention, by the names of their nodes."""

    scores: str
    """query x key"""
    values: str
    """softmax x value"""


def attention_pairs(graph: onnx.GraphProto, keep: Collection[str] = ()) -> list[Pair]:
    """Return the attentions of a graph in order, without those of which a product is to keep."""
    made_by = {output: node for node in graph.node for output in node.output}
    found = []
    for node in graph.node:
        if node.op_type != "MatMul" or not node.name:
            continue
        softmax = next((one for name in node.input if (one := _back(made_by, name, AFTER)) is not None), None)
        scores = _scores(made_by, softmax) if softmax is not None else None
        if scores is not None and not {scores.name, node.name}.intersection(keep):
            found.append(Pair(scores.name, node.name))
    return found


def _back(made_by: Mapping[str, onnx.NodeProto], name: str, through: Collection[str]) -> onnx.NodeProto | None:
    """Return the softmax that a tensor comes from through such operators."""
    node = made_by.get(name)
    while node is not None and node.op_type in through:
        node = made_by.get(node.input[0])
    return node if node is not None and node.op_type == "Softmax" else None


def _scores(made_by: Mapping[str, onnx.NodeProto], softmax: onnx.NodeProto) -> onnx.NodeProto | None:
    """Return the product of two activations that a softmax is taken of."""
    waiting = [softmax.input[0]]
    while waiting:
        node = made_by.get(waiting.pop())
        if node is None:
            continue
        if node.op_type == "MatMul" and all(name in made_by for name in node.input):
            return node
        if node.op_type in BETWEEN:
            waiting += reversed(node.input)
    return None


def outside_limits(model: onnx.ModelProto, pairs: Collection[Pair], precision: str) -> dict[str, str]:
    """Of the attentions that TensorRT does not fuse in a precision: {name of query x key: why}."""
    shapes = _shapes(model)
    inputs = {node.name: list(node.input) for node in model.graph.node}
    outputs = {node.name: node.output[0] for node in model.graph.node}
    found = {}
    for pair in pairs:
        tokens = max(shapes.get(outputs[pair.scores], [0])[-2:], default=0)
        head = (shapes.get(inputs[pair.scores][0]) or [0])[-1]
        if precision == "int8" and tokens > MOST_TOKENS:
            found[pair.scores] = f"{tokens} tokens, int8 attention is fused up to {MOST_TOKENS}"
        elif precision == "fp8" and head and head not in HEAD_SIZES:
            found[pair.scores] = f"heads of {head}, fp8 attention is fused for {HEAD_SIZES[0]} to {HEAD_SIZES[-1]}"
    return found


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Sizes of every tensor; 0: not known."""
    from targets.runtimes.widen import without_weights

    inferred = onnx.shape_inference.infer_shapes(without_weights(model), data_prop=True).graph
    infos = (*inferred.input, *inferred.output, *inferred.value_info)
    return {one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in infos}


def quantize_attention(
    model: onnx.ModelProto, pairs: Collection[Pair], ranges: Mapping[str, Any], precision: str, *, symmetric: bool
) -> None:
    """Put Q/DQ before the inputs of these products, in place. ranges: of `observe.scan_ranges`, of the fp32 graph.

    precision: int8 or fp8. symmetric: no zero point for what a softmax makes.
    """
    graph = model.graph
    made_by = {output: node for node in graph.node for output in node.output}
    products = {name for pair in pairs for name in (pair.scores, pair.values)}
    most = 448.0 if precision == "fp8" else 127.0
    nodes: list[onnx.NodeProto] = []
    seen: dict[str, str] = {}
    for node in graph.node:
        for index, name in enumerate(list(node.input) if node.name in products else ()):
            if name not in seen:
                zero = 0
                if _back(made_by, name, AFTER) is not None:
                    step = 1 / most
                    if precision == "int8" and not symmetric:
                        step, zero = 1 / 255, -128
                else:
                    step = float(ranges["tensors"][name]["percentile"]) / most or 1.0
                seen[name] = f"{name}/{precision}/attention/dequantized"
                nodes += _quantizer(graph, name, seen[name], precision, step, zero)
            node.input[index] = seen[name]
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)


def _quantizer(
    graph: onnx.GraphProto, source: str, result: str, precision: str, step: float, zero: int
) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """Two nodes, from a tensor to the same after rounding; their scale and zero point go into the graph."""
    base = f"{source}/{precision}/attention"
    kind, dtype = (
        (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn) if precision == "fp8" else (TensorProto.INT8, np.int8)
    )
    scale, point = f"{base}/scale", f"{base}/zero_point"
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.asarray(step, np.float32), scale),
            helper.make_tensor(point, kind, (), np.asarray(zero).astype(dtype).tobytes(), raw=True),
        ]
    )
    return (
        helper.make_node("QuantizeLinear", [source, scale, point], [base], name=f"{base}/QuantizeLinear"),
        helper.make_node("DequantizeLinear", [base, scale, point], [result], name=f"{base}/DequantizeLinear"),
    )
