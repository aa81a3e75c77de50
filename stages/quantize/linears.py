"""Scales of layers with weights in closed form: int8 weights, fp8 weights and inputs, and the SmoothQuant strength.

Shapes: D inputs of a layer, K outputs; X [T, D] its input, W [D, K] its weight.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from stages.quantize.attention import Pair, quantize_attention

FP8_LARGEST = 448.0
"""largest finite E4M3 (OCP 8-bit floating point specification)"""
ALPHAS = tuple(step / 20 for step in range(21))
"""strengths that `auto` weighs"""


def linears(graph: onnx.GraphProto, keep: Collection[str] = ()) -> list[onnx.NodeProto]:
    """MatMuls and Gemms whose second input is a weight of the graph, without those to keep."""
    weights = {one.name for one in graph.initializer}
    return [
        node
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights and node.name not in keep
    ]


def quantize_weights(model: onnx.ModelProto, keep: Collection[str], *, block: int | None) -> None:
    """Hold the weights of the Linears in int8, in place: symmetric, one scale per output, or per block of inputs."""
    for node, name, weight, axis in _weights(model.graph, keep):
        inputs = 1 - axis
        if block is None:
            scale = np.abs(weight).max(axis=inputs) / 127  # [K]
            wide, where = np.expand_dims(scale, inputs), {"axis": axis}
        else:
            size = weight.shape[inputs]
            parts = np.abs(np.moveaxis(weight, inputs, 0)).reshape(size // block, block, -1).max(axis=1) / 127
            scale = np.moveaxis(parts, 0, inputs)  # as the weight, D / block instead of D
            wide, where = np.repeat(scale, block, axis=inputs), {"axis": inputs, "block_size": block}
        scale, wide = _positive(scale), _positive(wide)
        values = np.clip(np.rint(weight / wide), -127, 127).astype(np.int8)
        _dequantize(model.graph, node, name, numpy_helper.from_array(values, f"{name}/int8"), scale, np.int8, where)
    _sweep(model.graph)


def quantize_fp8(
    model: onnx.ModelProto, keep: Collection[str], ranges: Mapping[str, Any], *, attention: Collection[Pair] = ()
) -> None:
    """Put E4M3 Q/DQ before the Linears, in place: weights with a scale per output, inputs with one from the ranges.

    attention: of which both products are quantized, too.
    """
    graph = model.graph
    seen: dict[str, str] = {}
    before: dict[str, list[onnx.NodeProto]] = {}
    for node, name, weight, axis in _weights(graph, keep):
        scale = _positive(np.abs(weight).max(axis=1 - axis) / FP8_LARGEST)
        values = (weight / np.expand_dims(scale, 1 - axis)).astype(ml_dtypes.float8_e4m3fn)
        packed = helper.make_tensor(f"{name}/fp8", TensorProto.FLOAT8E4M3FN, weight.shape, values.tobytes(), raw=True)
        _dequantize(graph, node, name, packed, scale, ml_dtypes.float8_e4m3fn, {"axis": axis})
        source = node.input[0]
        if source not in seen:
            seen[source] = f"{source}/fp8/dequantized"
            step = _positive(np.asarray(ranges["tensors"][source]["percentile"] / FP8_LARGEST))
            scale_name, zero = f"{source}/fp8/scale", f"{source}/fp8/zero_point"
            graph.initializer.extend(
                [numpy_helper.from_array(step, scale_name), _zeros(zero, (), ml_dtypes.float8_e4m3fn)]
            )
            before[node.name] = [
                helper.make_node(
                    "QuantizeLinear", [source, scale_name, zero], [f"{source}/fp8"], name=f"{source}/QuantizeLinear"
                ),
                helper.make_node(
                    "DequantizeLinear",
                    [f"{source}/fp8", scale_name, zero],
                    [seen[source]],
                    name=f"{source}/DequantizeLinear",
                ),
            ]
        node.input[0] = seen[source]
    nodes = [one for node in graph.node for one in (*before.get(node.name, ()), node)]
    graph.ClearField("node")
    graph.node.extend(nodes)
    _sweep(graph)
    quantize_attention(model, attention, ranges, "fp8", symmetric=True)


def best_alpha(model: onnx.ModelProto, ranges: Mapping[str, Any], keep: Collection[str]) -> float:
    """The SmoothQuant strength with the least expected error of the Linears' outputs, one for the whole graph.

    With s = max|X_d|^a / max|W_d|^(1-a), rounding X/s with step p and Ws with steps q_k adds to an output the variance
    p^2/12 |sW|^2 + |X/s|^2 sum_k q_k^2/12, uniform and independent errors assumed; layers count relative to |XW|^2,
    for which the diagonal of X's second moments stands. One strength, because NNCF takes one per kind of operator.
    """
    totals = np.zeros(len(ALPHAS))
    for node, _, weight, axis in _weights(model.graph, keep):
        seen = ranges["channels"].get(node.input[0])
        if seen is None:
            continue
        matrix = (weight if axis == 1 else weight.T).astype(np.float64)  # [D, K]
        largest, square = (np.maximum(np.asarray(seen[key]), 1e-12) for key in ("largest", "mean_square"))  # [D]
        of_weight = np.maximum(np.abs(matrix).max(axis=1), 1e-12)  # [D]
        energy = float((square[:, None] * matrix**2).sum()) or 1e-30
        for index, alpha in enumerate(ALPHAS):
            smooth = largest**alpha / of_weight ** (1 - alpha)  # [D]
            scaled = matrix * smooth[:, None]
            step = 2 * (largest / smooth).max() / 255
            steps = 2 * np.abs(scaled).max(axis=0) / 255  # [K]
            error = step**2 / 12 * (scaled**2).sum() + (square / smooth**2).sum() * (steps**2).sum() / 12
            totals[index] += error / energy
    return ALPHAS[int(totals.argmin())]


def _weights(
    graph: onnx.GraphProto, keep: Collection[str]
) -> Iterator[tuple[onnx.NodeProto, str, NDArray[np.float32], int]]:
    """(node, name of its weight, weight, axis of its outputs) of every Linear in fp32."""
    tensors = {one.name: one for one in graph.initializer}
    for node in linears(graph, keep):
        name = node.input[1]
        weight = numpy_helper.to_array(tensors[name])
        if weight.ndim != 2 or weight.dtype != np.float32:
            continue
        transposed = any(one.name == "transB" and one.i for one in node.attribute)
        yield node, name, weight, 0 if transposed else 1


def _dequantize(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    name: str,
    values: TensorProto,
    scale: NDArray[np.float32],
    kind: Any,
    where: dict[str, Any],
) -> None:
    """Let a node read its weight through a DequantizeLinear put in front of it."""
    if f"{name}/dequantized" not in {output for one in graph.node for output in one.output}:
        zero = f"{name}/zero_point"
        graph.initializer.extend(
            [values, numpy_helper.from_array(scale, f"{name}/scale"), _zeros(zero, scale.shape, kind)]
        )
        made = helper.make_node(
            "DequantizeLinear",
            [values.name, f"{name}/scale", zero],
            [f"{name}/dequantized"],
            name=f"{name}/DequantizeLinear",
            **where,
        )
        graph.node.insert(next(i for i, one in enumerate(graph.node) if one.name == node.name), made)
        node = next(one for one in graph.node if one.name == node.name)
    node.input[1] = f"{name}/dequantized"


def _zeros(name: str, shape: tuple[int, ...], kind: Any) -> TensorProto:
    code = TensorProto.INT8 if kind is np.int8 else TensorProto.FLOAT8E4M3FN
    return helper.make_tensor(name, code, shape, np.zeros(shape, kind).tobytes(), raw=True)


def _positive(scale: NDArray[Any]) -> NDArray[np.float32]:
    """A scale of 0, of weights that are all 0, would be no scale."""
    return np.where(scale > 0, scale, 1).astype(np.float32)


def _sweep(graph: onnx.GraphProto) -> None:
    """Drop weights that no node reads any more."""
    read = {name for node in graph.node for name in node.input}
    left = [one for one in graph.initializer if one.name in read]
    graph.ClearField("initializer")
    graph.initializer.extend(left)
