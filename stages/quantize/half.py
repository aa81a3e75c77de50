"""A graph of 16 bits, fp16 or bf16, in which some nodes stay fp32, and its emulation in fp32.

Converters that ship with runtimes round the output of a node kept in fp32 back to fp16 at once, so that a value too
large for fp16 is lost between two nodes that were kept because of it. Here a tensor between two such nodes stays fp32.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from targets.runtimes.widen import tensor_types, widen

LARGEST = 65504.0
"""largest finite float16"""
SINGLE = TensorProto.FLOAT
TYPED = ("Cast", "Constant", "ConstantOfShape", "Range", "EyeLike", "RandomNormal", "Resize")
"""operators whose output's type is written in them, or that need fp32: what they make is cast by whoever reads it"""


@dataclass(frozen=True)
class Half:
    """A floating-point type of 16 bits."""

    name: str
    tensor: int
    """ONNX's number"""
    dtype: "np.dtype[Any]"

    @property
    def of_tensors(self) -> str:
        """ONNX's name of a tensor of it."""
        return f"tensor({self.dtype.name})"

    def rounded(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """To the nearest, ties to even."""
        return values.astype(self.dtype)


HALVES = {
    "fp16": Half("fp16", TensorProto.FLOAT16, np.dtype(np.float16)),
    "bf16": Half("bf16", TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}


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


def nodes_without(model: onnx.ModelProto, half: Half) -> list[str]:
    """Nodes whose operator ONNX does not have in this type in the graph's opset, or does not know at all."""
    types = tensor_types(model)
    opsets = {one.domain or "": one.version for one in model.opset_import}
    return [
        node.name
        for node in model.graph.node
        if node.op_type not in TYPED and not _is_defined(node, half, types, opsets.get(node.domain, 1))
    ]


def _is_defined(node: onnx.NodeProto, half: Half, types: Mapping[str, int], opset: int) -> bool:
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return False
    allowed = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}
    for names, formal in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for index, name in enumerate(names):
            kind = formal[min(index, len(formal) - 1)].type_str  # the last may stand for any number
            if types.get(name) == SINGLE and half.of_tensors not in allowed.get(kind, (kind,)):
                return False
    return True


def convert(model: onnx.ModelProto, keep: set[str], half: Half, *, keep_io: bool = False) -> None:
    """Turn a graph to this type in place, but for the nodes named and those that ONNX does not have in it.

    keep_io: its inputs and outputs too.
    """
    keep = {*keep, *nodes_without(model, half)}
    graph = model.graph
    types = tensor_types(model)
    weights = {one.name: one for one in graph.initializer if one.data_type == SINGLE}
    is_half = dict.fromkeys(types, False)
    answers = {one.name for one in graph.output}
    nodes: list[onnx.NodeProto] = []
    casts: dict[tuple[str, int], str] = {}
    used: set[str] = set()

    def as_type(name: str, wanted: int) -> str:
        """The tensor in this type: itself, a weight's copy, or behind a Cast."""
        if types.get(name) != SINGLE or is_half[name] == (wanted == half.tensor):
            used.add(name)
            return name
        if (name, wanted) not in casts:
            casts[name, wanted] = new = f"{name}/{half.name if wanted == half.tensor else 'fp32'}"
            if name in weights:
                value = half.rounded(numpy_helper.to_array(weights[name]))
                graph.initializer.append(helper.make_tensor(new, half.tensor, value.shape, value.tobytes(), raw=True))
            else:
                nodes.append(helper.make_node("Cast", [name], [new], name=f"{new}/Cast", to=wanted))
        used.add(name)
        return casts[name, wanted]

    for one in graph.input:
        if keep_io and one.type.tensor_type.elem_type == SINGLE:
            one.type.tensor_type.elem_type = half.tensor
            is_half[one.name] = True
    for node in list(graph.node):
        narrow = node.name not in keep and node.op_type not in TYPED
        if node.op_type != "Cast":  # which reads whatever comes
            node.input[:] = [as_type(name, half.tensor if narrow else SINGLE) for name in node.input]
        used.update(node.input)
        behind = []
        for index, name in enumerate(node.output):
            if types.get(name) != SINGLE:
                continue
            is_half[name] = narrow
            if name in answers and narrow != keep_io:  # the answer keeps its name, what goes on inside gets another
                inner = f"{name}/inner"
                node.output[index] = inner
                to = half.tensor if keep_io else SINGLE
                behind.append(helper.make_node("Cast", [inner], [name], name=f"{name}/Cast", to=to))
                is_half[name] = keep_io
        nodes += [node, *behind]
    for one in graph.output:
        if keep_io and one.type.tensor_type.elem_type == SINGLE:
            one.type.tensor_type.elem_type = half.tensor
    graph.ClearField("node")
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    left = [one for one in graph.initializer if one.name in read]
    graph.ClearField("initializer")
    graph.initializer.extend(left)
    del graph.value_info[:]


def emulate(model: onnx.ModelProto, keep: set[str], half: Half) -> None:
    """Round in place, in a graph that stays fp32, what `convert` holds in 16 bits: weights, and outputs of nodes.

    ONNX Runtime computes fp16 graphs on most CPUs in fp32 and leaves out the rounding between nodes, overflow too; bf16
    graphs it does not run there at all.
    """
    convert(model, keep, half)
    widen(model, half.tensor)
