"""An fp16 graph in which what would overflow stays fp32, and its emulation in fp32.

Converters that ship with runtimes round the output of a node kept in fp32 back to fp16 at once, so that a value too
large for fp16 is lost between two nodes that were kept because of it. Here a tensor between two such nodes stays fp32.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LARGEST = 65504.0
"""largest finite float16"""
SINGLE, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
TYPED = ("Cast", "Constant", "ConstantOfShape", "Range", "EyeLike", "RandomNormal", "Resize")
"""operators whose output's type is written in them, or that need fp32: what they make is cast by whoever reads it"""


@dataclass(frozen=True)
class Risk:
    """A node that would overflow in fp16."""

    node: str
    what: str
    """name of the tensor, or `sum inside`"""
    largest: float


def nodes_at_risk(model: onnx.ModelProto, ranges: Mapping[str, Any], *, share: float) -> list[Risk]:
    """Nodes that read or make a tensor above `share` of the largest float16, or add up to as much inside."""
    limit = share * LARGEST
    largest = {name: one["largest"] for name, one in ranges["tensors"].items()}
    for tensor in model.graph.initializer:
        if tensor.data_type == SINGLE:
            largest[tensor.name] = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0))
    found = []
    for node in model.graph.node:
        sizes = [(name, largest[name]) for name in (*node.output, *node.input) if largest.get(name, 0) > limit]
        inside = ranges["inside"].get(node.name, 0.0)
        if sizes:
            found.append(Risk(node.name, *max(sizes, key=lambda one: one[1])))
        elif inside > limit or math.isnan(inside):
            found.append(Risk(node.name, "sum inside", inside))
    return found


def convert(model: onnx.ModelProto, keep: set[str], *, keep_io: bool = False) -> None:
    """Turn a graph to fp16 in place, but for the nodes named; keep_io: its inputs and outputs too."""
    graph = model.graph
    types = _types(model)
    weights = {one.name: one for one in graph.initializer if one.data_type == SINGLE}
    is_half = dict.fromkeys(types, False)
    answers = {one.name for one in graph.output}
    nodes: list[onnx.NodeProto] = []
    casts: dict[tuple[str, int], str] = {}
    used: set[str] = set()

    def as_type(name: str, wanted: int) -> str:
        """The tensor in this type: itself, a weight's copy, or behind a Cast."""
        if types.get(name) != SINGLE or is_half[name] == (wanted == HALF):
            used.add(name)
            return name
        if (name, wanted) not in casts:
            casts[name, wanted] = new = f"{name}/{'fp16' if wanted == HALF else 'fp32'}"
            if name in weights:
                value = numpy_helper.to_array(weights[name]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(value, new))
            else:
                nodes.append(helper.make_node("Cast", [name], [new], name=f"{new}/Cast", to=wanted))
        used.add(name)
        return casts[name, wanted]

    for one in graph.input:
        if keep_io and one.type.tensor_type.elem_type == SINGLE:
            one.type.tensor_type.elem_type = HALF
            is_half[one.name] = True
    for node in list(graph.node):
        half = node.name not in keep and node.op_type not in TYPED
        if node.op_type not in TYPED:
            node.input[:] = [as_type(name, HALF if half else SINGLE) for name in node.input]
        used.update(node.input)
        behind = []
        for index, name in enumerate(node.output):
            if types.get(name) != SINGLE:
                continue
            is_half[name] = half
            if name in answers and half != keep_io:  # the answer keeps its name, what goes on inside gets another
                inner = f"{name}/inner"
                node.output[index] = inner
                behind.append(
                    helper.make_node("Cast", [inner], [name], name=f"{name}/Cast", to=HALF if keep_io else SINGLE)
                )
                is_half[name] = keep_io
        nodes += [node, *behind]
    for one in graph.output:
        if keep_io and one.type.tensor_type.elem_type == SINGLE:
            one.type.tensor_type.elem_type = HALF
    graph.ClearField("node")
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    left = [one for one in graph.initializer if one.name in read]
    graph.ClearField("initializer")
    graph.initializer.extend(left)
    del graph.value_info[:]


def emulate(model: onnx.ModelProto, keep: set[str]) -> None:
    """Round in place, in a graph that stays fp32, what `convert` holds in fp16: weights, and outputs of nodes.

    ONNX Runtime computes fp16 graphs on most CPUs in fp32 and leaves out the rounding between nodes, overflow too.
    """
    graph = model.graph
    types = _types(model)
    weights = {one.name: one for one in graph.initializer if one.data_type == SINGLE}
    nodes: list[onnx.NodeProto] = []
    rounded: dict[str, str] = {}
    exact = {one.name for one in graph.input} | {
        name for node in graph.node if node.name in keep or node.op_type in TYPED for name in node.output
    }
    for node in graph.node:
        half = node.name not in keep and node.op_type not in TYPED
        for index, name in enumerate(node.input):
            if not half or types.get(name) != SINGLE or not (name in exact or name in weights):
                continue
            if name not in rounded:
                rounded[name] = f"{name}/rounded"
                if name in weights:
                    value = numpy_helper.to_array(weights[name]).astype(np.float16).astype(np.float32)
                    graph.initializer.append(numpy_helper.from_array(value, rounded[name]))
                else:
                    nodes += _round(name, rounded[name])
            node.input[index] = rounded[name]
        nodes.append(node)
        for index, name in enumerate(node.output):
            if half and types.get(name) == SINGLE:
                node.output[index] = f"{name}/exact"
                nodes += _round(node.output[index], name)
    graph.ClearField("node")
    graph.node.extend(nodes)
    del graph.value_info[:]


def _round(name: str, to: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", [name], [f"{to}/half"], name=f"{to}/Half", to=HALF),
        helper.make_node("Cast", [f"{to}/half"], [to], name=f"{to}/Single", to=SINGLE),
    ]


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for one in bare.graph.initializer:  # types need no weights, and inference takes 2 GiB at most
        if one.data_type == SINGLE:
            one.ClearField("raw_data")
            one.ClearField("float_data")
            one.data_location = TensorProto.EXTERNAL
            one.external_data.add(key="location", value="absent")
    inferred = onnx.shape_inference.infer_shapes(bare).graph
    infos = (*inferred.input, *inferred.output, *inferred.value_info)
    types = {one.name: one.type.tensor_type.elem_type for one in infos}
    return {**types, **{one.name: one.data_type for one in model.graph.initializer}}
