"""A graph of 16 bits as one of fp32 that gives its answers: what it holds in 16 bits is rounded to them in fp32."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SINGLE = TensorProto.FLOAT
MOVES = ("Reshape", "Transpose", "Concat", "Split", "Slice", "Squeeze", "Unsqueeze", "Gather", "Expand", "Identity")
"""operators that make no new values, so that there is nothing to round behind them"""
FUSED = ("DequantizeLinear",)
"""operators that kernels take together with the product behind them, which multiplies codes and not rounded numbers"""

TELLING = 1024
"""weights of no more numbers than this may be shapes or scales, which decide what shapes and types follow"""
INLINE_LIMIT = 1_900_000_000
"""bytes of weights that stay inside a graph's file: protobuf ends at 2^31 - 1"""


def widen(model: onnx.ModelProto, kind: int) -> None:
    """Turn what has this type to fp32 in place: weights keep their values, other tensors are rounded where made.

    kind: TensorProto.FLOAT16 or BFLOAT16. Names of nodes and tensors stay.
    """
    graph = model.graph
    types = tensor_types(model)
    nodes: list[onnx.NodeProto] = []
    for tensor in graph.initializer:
        if tensor.data_type == kind:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    outer: dict[str, str] = {}
    for one in graph.input:
        if one.type.tensor_type.elem_type == kind:
            one.type.tensor_type.elem_type = SINGLE
            outer[one.name] = f"{one.name}/rounded"
            nodes += _round(one.name, outer[one.name], kind)
    for node in graph.node:
        node.input[:] = [outer.get(name, name) for name in node.input]
        behind: list[onnx.NodeProto] = []
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == kind:
                attribute.i = SINGLE
            elif attribute.t.data_type == kind:  # a Constant's value
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32)))
        for index, name in enumerate(node.output):
            if types.get(name) == kind and node.op_type not in (*MOVES, *FUSED):
                node.output[index] = f"{name}/exact"
                behind += _round(f"{name}/exact", name, kind)
        nodes += [node, *behind]
    for one in graph.output:
        if one.type.tensor_type.elem_type == kind:
            one.type.tensor_type.elem_type = SINGLE
    graph.ClearField("node")
    graph.node.extend(nodes)
    del graph.value_info[:]


def write_widened(source: Path, path: Path) -> Path:
    """Write a graph of 16 bits as one of fp32; weights beside it where one file cannot hold them. Returns the path."""
    model = onnx.load(source)
    held = {one.data_type for one in model.graph.initializer}
    for kind in held.intersection((TensorProto.FLOAT16, TensorProto.BFLOAT16)):
        widen(model, kind)
    large = sum(len(one.raw_data) for one in model.graph.initializer) > INLINE_LIMIT
    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data", size_threshold=1024)
    return path


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor."""
    inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    infos = (*inferred.input, *inferred.output, *inferred.value_info)
    types = {one.name: one.type.tensor_type.elem_type for one in infos}
    return {**types, **{one.name: one.data_type for one in model.graph.initializer}}


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without the values of its larger weights: inference takes 2 GiB at most."""
    graph = model.graph
    bare = helper.make_model(
        helper.make_graph(graph.node, graph.name, graph.input, graph.output, value_info=graph.value_info),
        ir_version=model.ir_version,
        opset_imports=model.opset_import,
        functions=model.functions,
    )
    for tensor in graph.initializer:
        one = bare.graph.initializer.add()
        floats = tensor.data_type in (SINGLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
        if not floats or math.prod(tensor.dims) <= TELLING:
            one.CopyFrom(tensor)
            continue
        one.name, one.data_type = tensor.name, tensor.data_type
        one.dims.extend(tensor.dims)
        one.data_location = TensorProto.EXTERNAL
        one.external_data.add(key="location", value="absent")
    return bare


def _round(name: str, to: str, kind: int) -> Iterable[onnx.NodeProto]:
    return (
        helper.make_node("Cast", [name], [f"{to}/half"], name=f"{to}/Half", to=kind),
        helper.make_node("Cast", [f"{to}/half"], [to], name=f"{to}/Single", to=SINGLE),
    )
