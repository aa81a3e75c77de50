"""What the stage must know about a graph before and after quantization. Reads structure only, never weights."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import onnx

from targets.errors import InputError
from targets.runtimes.widen import tensor_types

MERGE = "blocks.*.merge/*"
"""names of the nodes of `stages.vit.merging`"""
WEIGHTED = ("MatMul", "Gemm", "Conv")
"""operators that multiply matrices: what int8 makes faster"""
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "MatMulInteger")

INTEGER = ("MatMulInteger", "ConvInteger")
"""products of integers that are quantized in every query"""
BLOCKED_OPSET = 21
"""DequantizeLinear's block_size"""
FP8_OPSET = 19
"""QuantizeLinear to E4M3"""


def read_graph(path: Path) -> onnx.GraphProto:
    """Read a graph's structure; weights that lie beside it stay there. Raises InputError."""
    try:
        return onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf's own exception, which has no public name
        raise InputError(f"{str(path)!r} is not a readable ONNX graph; export it again") from error


def check_can_be_quantized(graph: onnx.GraphProto) -> None:
    """Raise InputError for a graph without matrix products, quantized already, or with a batch fixed above 1."""
    if not any(node.op_type in WEIGHTED for node in graph.node):
        raise InputError(f"the graph holds no {' or '.join(WEIGHTED)}: there is nothing to quantize")
    found = sorted({node.op_type for node in graph.node if node.op_type in QUANTIZED})
    if found:
        raise InputError(f"the graph is quantized already (it holds {', '.join(found)}); start from the export step")
    batch = graph.input[0].type.tensor_type.shape.dim[0]
    if batch.dim_value > 1:
        raise InputError(
            f"the graph's batch is fixed at {batch.dim_value}, but ranges are taken image by image; "
            "export it with batch 'dynamic', which compile fixes"
        )


def match_nodes(graph: onnx.GraphProto, patterns: Sequence[str], *, if_any: Sequence[str] = ()) -> list[str]:
    """Names of the nodes that a pattern fits, in graph order.

    if_any: patterns that may fit none. Raises InputError for another one that fits none, and for patterns that leave no
    matrix product.
    """
    names = [node.name for node in graph.node]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = [node.name for node in graph.node if node.op_type in WEIGHTED][:4]
            raise InputError(f"keep_float {pattern!r} fits no node; nodes are named like {', '.join(shown)}")
    found = [name for name in names if any(fnmatchcase(name, pattern) for pattern in (*patterns, *if_any))]
    if not {node.name for node in graph.node if node.op_type in WEIGHTED} - set(found):
        raise InputError(f"keep_float {', '.join(map(repr, patterns))} keeps every matrix product in fp32; keep fewer")
    return found


def merge_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that merge tokens, which stay fp32.

    They choose by small differences of likeness and add up the residual stream, whose few huge values leave int8 no
    room for the others.
    """
    return [node.name for node in graph.node if fnmatchcase(node.name, MERGE)]


def is_transformer(graph: onnx.GraphProto) -> bool:
    """Whether a graph has attention: a product of what a softmax made."""
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    return any(
        node.op_type == "MatMul" and any(made_by.get(name) == "Softmax" for name in node.input) for node in graph.node
    )


def attention_products(graph: onnx.GraphProto) -> list[str]:
    """Names of what `scope: linears` leaves in float: products without weights, and convolutions."""
    weights = {one.name for one in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type in WEIGHTED and (node.op_type == "Conv" or not weights.intersection(node.input[:2]))
    ]


def join_pairs(groups: Mapping[str, Sequence[str]], pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Put the groups of two nodes that must change together into the first one's: {name: nodes}."""
    found = {name: list(nodes) for name, nodes in groups.items()}
    for first, second in pairs:
        one = next((name for name, nodes in found.items() if first in nodes), None)
        other = next((name for name, nodes in found.items() if second in nodes), None)
        if one is not None and other is not None and one != other:
            found[one] += found.pop(other)
    return found


def check_block(path: Path, block: int, keep: Collection[str]) -> None:
    """Raise InputError where weights cannot share scales by blocks of inputs."""
    model = onnx.load(path, load_external_data=False)
    check_opset(model, BLOCKED_OPSET, f"block {block}", "leave block out")
    weights = {one.name: tuple(one.dims) for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.name in keep or len(weights.get(node.input[1], ())) != 2:
            continue
        transposed = any(one.name == "transB" and one.i for one in node.attribute)
        inputs = weights[node.input[1]][1 if transposed else 0]
        if inputs % block:
            raise InputError(f"block {block} does not divide the {inputs} inputs of {node.name!r}; take a divisor")


def check_opset(model: onnx.ModelProto, needed: int, what: str, instead: str) -> None:
    """Raise InputError where a graph's operator set is too old."""
    found = next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    if found < needed:
        raise InputError(
            f"{what} needs opset {needed}, the graph has {found}; export with opset {needed} or later, or {instead}"
        )


def count_products(graph: onnx.GraphProto, precision: str) -> tuple[int, int]:
    """How many matrix products a graph holds in this precision, and how many there are."""
    if precision in ("int8", "fp8"):
        return count_quantized(graph)
    made_by = {output: node for node in graph.node for output in node.output}
    products = [node for node in graph.node if node.op_type in (*WEIGHTED, *INTEGER)]
    if precision == "int8_dynamic":
        return sum(node.op_type in INTEGER for node in products), len(products)
    if precision == "int8_weights":
        return sum(_is_int8(node.input[1], made_by) for node in products), len(products)
    kind = onnx.TensorProto.BFLOAT16 if precision == "bf16" else onnx.TensorProto.FLOAT16
    types = tensor_types(onnx.helper.make_model(graph))
    return sum(types.get(node.input[0]) == kind for node in products), len(products)


def count_quantized(graph: onnx.GraphProto) -> tuple[int, int]:
    """How many matrix products have int8 on both sides, and how many there are."""
    made_by = {output: node for node in graph.node for output in node.output}
    products = [node for node in graph.node if node.op_type in WEIGHTED]
    return sum(all(_is_int8(name, made_by) for name in node.input[:2]) for node in products), len(products)


def _is_int8(name: str, made_by: dict[str, onnx.NodeProto]) -> bool:
    """Does a tensor come from a DequantizeLinear, perhaps through operators that only move values?"""
    node = made_by.get(name)
    while node is not None and node.op_type in ("Reshape", "Transpose", "Split", "Squeeze", "Unsqueeze"):
        node = made_by.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"
