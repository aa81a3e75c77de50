"""An ONNX file as a strongly typed network: parsed, its batch settled, and looked at before anything is built.

The precision is the graph's alone: no builder flag changes it, in TensorRT 10 as in 11.
"""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets.errors import InputError
from targets.runtimes.nvidia.library import Listener, failure
from targets.runtimes.nvidia.onnx_file import check_graph
from targets.runtimes.runtime import TensorFacts, query_shape

TYPES = {
    "FLOAT": ("float32", "fp32"),
    "HALF": ("float16", "fp16"),
    "BF16": ("bfloat16", "bf16"),
    "INT8": ("int8", "int8"),
    "FP8": ("float8_e4m3fn", "fp8"),
    "INT32": ("int32", "int32"),
    "INT64": ("int64", "int64"),
    "BOOL": ("bool", "bool"),
    "UINT8": ("uint8", "uint8"),
}
"""name of a DataType -> (numpy's name, ours)"""

_QUANTIZED = ("int8", "fp8")
_LOWER = {
    "fp32": ("fp16", "bf16", *_QUANTIZED),
    "fp16": _QUANTIZED,
    "bf16": _QUANTIZED,
    "int8": ("fp8",),
    "fp8": ("int8",),
}
_REMEDIES = {
    "int8": "quantize it (stage quantize)",
    "fp32": "export it in fp32",
    **{one: f"convert it (stage quantize, precision {one})" for one in ("fp16", "bf16", "fp8")},
}


@dataclass(frozen=True)
class Parsed:
    """A network with what keeps it alive, and what it holds."""

    builder: Any
    network: Any
    parser: Any
    products: dict[str, str]
    """precision of each matrix product and convolution by the name of its ONNX node"""
    types: dict[str, str]
    """our name of each type of tensor -> the node of one that has it"""
    wide: tuple[str, ...]
    """nodes of the matrix products (not convolutions) whose numbers are fp32 when they are multiplied"""


def parse(library: Any, runtime: str, model: Path, listener: Listener) -> Parsed:
    """Read an ONNX file. Raises InputError for asymmetric Q/DQ, WorkerError naming the node that is not understood."""
    check_graph(runtime, model)
    builder = library.Builder(listener.logger)
    strongly = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    # Deprecated since TensorRT 11, whose networks are strongly typed whatever is said.
    network = builder.create_network(0 if strongly is None else 1 << int(strongly))
    parser = library.OnnxParser(network, listener.logger)
    if not parser.parse_from_file(str(model)):
        reason = _reason(parser)
        if "QuantizeLinear" in reason or "DequantizeLinear" in reason:
            reason += f"; {runtime} takes symmetric int8 and fp8 only (quantize with `symmetric: true`)"
        raise failure(runtime, "read", model, reason)
    if not network.num_inputs or not network.num_outputs:
        raise failure(runtime, "read", model, "it has no inputs or no outputs; it is not ONNX or is cut off")
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    types: dict[str, str] = {}
    for layer in layers:
        for tensor in _outputs(layer):
            types.setdefault(precision_of(tensor.dtype), layer.name)
    matrices = [layer for layer in layers if layer.type == library.LayerType.MATRIX_MULTIPLY]
    wide = tuple(layer.name for layer in matrices if precision_of(layer.get_input(0).dtype) == "fp32")
    return Parsed(builder, network, parser, _products(library, layers), types, wide)


def check_precision(runtime: str, precision: str, products: dict[str, str]) -> None:
    """Raise InputError where the graph's products are not of the precision asked for, or some are lower."""
    counts = Counter(products.values())
    found = ", ".join(f"{count} in {one}" for one, count in sorted(counts.items())) or "none"
    if any(one in counts for one in _LOWER[precision]):
        raise InputError(f"asked {runtime} for {precision}, but the graph has matrix products {found}; ask for those")
    if precision not in counts:
        raise InputError(
            f"asked {runtime} for {precision}, but the graph's matrix products are {found}, "
            f"and {runtime} converts nothing; {_REMEDIES[precision]}"
        )


def settle_batch(network: Any, options: dict[str, Any]) -> dict[str, list[list[int]]]:
    """Fix a dynamic batch where only one size is wanted; returns {input: [least, usual, most] shape} of the others."""
    ranges = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tensor_shape(tensor.shape)
        sizes = [options[name] for name in ("batch_min", "batch", "batch_max")]
        shapes = [query_shape(shape, batch=size, name=tensor.name) for size in sizes]
        if shape[0] is None and sizes[0] == sizes[2]:
            tensor.shape = tuple(shapes[0])
        elif shape[0] is None:
            ranges[tensor.name] = shapes
    return ranges


def count_macs(library: Any, network: Any, batch: int) -> dict[str, int]:
    """Multiply-accumulates of one query by product, for a network whose batch is settled.

    batch: images per query, where the batch is still open. What the library does not tell is left out.
    """
    found = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        shapes = [_settled(one.shape, batch) for one in (*_inputs(layer)[:1], *_outputs(layer)[:1])]
        if len(shapes) < 2 or any(size is None for shape in shapes for size in shape):
            continue
        given, made = ([int(size or 0) for size in shape] for shape in shapes)
        if layer.type == library.LayerType.MATRIX_MULTIPLY:
            found[layer.name] = math.prod(made) * _summed(given, made)
        elif layer.type == library.LayerType.CONVOLUTION and (kernel := _kernel(library, layer)) is not None:
            found[layer.name] = round(math.prod(made) * kernel * given[1])
    return found


def _summed(given: list[int], made: list[int]) -> int:
    """Length of the sums of a matrix product, by the shapes of what goes in first, transposed or not, and comes out."""
    if len(given) < 2:
        return given[-1]
    rows = made[-2] if len(made) > 1 else 1
    return given[-1] if given[-2] == rows else given[-2]


def _kernel(library: Any, layer: Any) -> float | None:
    """Size of a convolution's window over its groups; None where the library does not tell."""
    if not hasattr(layer, "kernel_size_nd") and hasattr(library, "IConvolutionLayer"):
        layer.__class__ = library.IConvolutionLayer  # the library hands out every layer as its base
    sizes = getattr(layer, "kernel_size_nd", None)
    return None if sizes is None else math.prod(int(size) for size in sizes) / int(layer.num_groups)


def _settled(dims: Any, batch: int) -> tuple[int | None, ...]:
    """Sizes of a tensor; an open first one is the batch."""
    shape = tensor_shape(dims)
    return (shape[0] or batch, *shape[1:]) if shape else shape


def describe(network: Any) -> dict[str, list[dict[str, Any]]]:
    """Inputs and outputs as engine.json has them; raises InputError for a type that numpy does not have."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return {"inputs": [_facts(one) for one in inputs], "outputs": [_facts(one) for one in outputs]}


def tensor_shape(dims: Any) -> tuple[int | None, ...]:
    """Sizes of a tensor; None: dynamic."""
    return tuple(int(size) if size >= 0 else None for size in dims)


def precision_of(dtype: Any) -> str:
    """Name of ours for a library's DataType."""
    kind = str(dtype.name)
    return TYPES.get(kind, ("", kind.lower()))[1]


def _facts(tensor: Any) -> dict[str, Any]:
    kind = str(tensor.dtype.name)
    if kind not in TYPES or kind in ("BF16", "FP8"):
        raise InputError(
            f"{tensor.name!r} goes in or out as {kind.lower()}, which numpy does not have; "
            "convert the graph with fp32 inputs and outputs (quantize with `io: float32`)"
        )
    dtype = TYPES[kind][0]
    return TensorFacts(name=tensor.name, shape=tensor_shape(tensor.shape), dtype=dtype).to_json()


def _reason(parser: Any) -> str:
    """First error of the parser with its node."""
    if not parser.num_errors:
        return "the parser did not say why"
    error = parser.get_error(0)
    name, operator = error.node_name(), error.node_operator()
    words = " ".join(error.desc().split()).removeprefix("Assertion failed: ")
    if not name and not operator:
        return words
    node = repr(name) if name else f"number {error.node()}"
    return f"node {node} ({operator}): {words}"


def _products(library: Any, layers: list[Any]) -> dict[str, str]:
    """Precision of each product by what goes into it, through its Q/DQ."""
    kinds = (library.LayerType.MATRIX_MULTIPLY, library.LayerType.CONVOLUTION)
    made = {tensor.name: layer for layer in layers for tensor in _outputs(layer)}
    found = {}
    for layer in layers:
        if layer.type in kinds:
            stored = {_stored(library, made, tensor) for tensor in _inputs(layer)[:2]}
            plain = precision_of(layer.get_input(0).dtype)
            found[layer.name] = stored.pop() if len(stored) == 1 and stored <= set(_QUANTIZED) else plain
    return found


def _stored(library: Any, made: dict[str, Any], tensor: Any) -> str:
    """Type that a tensor has before it is dequantized; reshapes and casts between are looked through."""
    through = (library.LayerType.SHUFFLE, library.LayerType.IDENTITY, library.LayerType.CAST)
    layer = made.get(tensor.name)
    while layer is not None and layer.type in through:
        tensor = layer.get_input(0)
        layer = made.get(tensor.name)
    dequantized = layer is not None and layer.type == library.LayerType.DEQUANTIZE
    return precision_of(layer.get_input(0).dtype if layer is not None and dequantized else tensor.dtype)


def _inputs(layer: Any) -> list[Any]:
    tensors = [layer.get_input(index) for index in range(layer.num_inputs)]
    return [one for one in tensors if one is not None]


def _outputs(layer: Any) -> list[Any]:
    tensors = [layer.get_output(index) for index in range(layer.num_outputs)]
    return [one for one in tensors if one is not None]
