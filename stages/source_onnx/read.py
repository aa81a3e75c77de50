"""From the user's ONNX file to the graph that stages work on: one input `images`, one output, every node named."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from stages.data.labels import read_class_names
from stages.graph.card import CARD_FILE, GraphCard
from stages.source_onnx.options import OnnxSourceOptions
from targets.errors import InputError
from targets.runtimes.runtime import product_macs

GRAPH_FILE, LABELS_FILE = "model.onnx", "labels.json"
INPUT = "images"
BATCH = "batch"
INLINE_LIMIT = 1_900_000_000
"""bytes of weights that stay inside the file: protobuf ends at 2^31 - 1"""
PRODUCTS = ("MatMul", "Gemm", "Conv")


def save_graph(options: OnnxSourceOptions, folder: Path) -> tuple[GraphCard, dict[str, Any]]:
    """Write graph, card and labels; returns the card and facts. Raises InputError for what cannot be used."""
    origin = f"onnx {str(options.onnx)!r}"
    model = _load(options.onnx, origin)
    graph = model.graph
    height, width = _settle_input(graph, options, origin)
    size = _settle_output(graph, options, origin)
    _name_nodes(graph)
    del graph.value_info[:]
    classes = size if options.classes is None else options.classes
    if classes not in (0, size):
        raise InputError(
            f"model.classes is {classes}, but output {graph.output[0].name!r} of {origin} has {size} values"
        )
    labels = read_class_names(options.labels) if options.labels else None
    if labels is not None and len(labels) != classes:
        raise InputError(f"{len(labels)} class names for {classes} classes; give one name per class")
    card = GraphCard(
        architecture=options.onnx.stem,
        preprocess=options.preprocess.sized(height, width),
        classes=classes,
        params=sum(
            _count(one) for one in graph.initializer if one.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
        ),
        macs=count_macs(model, height, width),
    )
    beside = sum(len(one.raw_data) for one in graph.initializer) > INLINE_LIMIT
    onnx.save(
        model, folder / GRAPH_FILE, save_as_external_data=beside, location=f"{GRAPH_FILE}.data", size_threshold=1024
    )
    (folder / CARD_FILE).write_text(card.canonical_json() + "\n", encoding="utf-8")
    if labels is not None:
        (folder / LABELS_FILE).write_text(json.dumps(list(labels), ensure_ascii=False) + "\n", encoding="utf-8")
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    return card, {"operators": len(graph.node), "opset": opset, "labels": labels is not None}


def count_macs(model: onnx.ModelProto, height: int, width: int) -> int:
    """Multiply-accumulates of one image in all products whose shapes can be inferred."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    dims = bare.graph.input[0].type.tensor_type.shape.dim
    for dim, size in zip(dims, (1, 3, height, width), strict=True):
        dim.Clear()
        dim.dim_value = size
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    except Exception:  # above 2 GiB, or operators of a domain that it does not know
        return 0
    infos = (*inferred.input, *inferred.output, *inferred.value_info)
    shapes = {one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in infos}
    shapes |= {one.name: list(one.dims) for one in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        known = [shapes.get(name, []) for name in (*node.input[:2], node.output[0])]
        if node.op_type in PRODUCTS and all(known) and all(all(one) for one in known):
            total += product_macs(node.op_type, known[:2], known[2]) or 0
    return total


def _load(path: Path, origin: str) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
        onnx.checker.check_model(str(path))
    except Exception as error:  # protobuf's own exceptions, the checker's, a file of weights that is not there
        raise InputError(f"{origin} is not a valid ONNX file: {' '.join(str(error).split())[:200]}") from error
    return model


def _settle_input(graph: onnx.GraphProto, options: OnnxSourceOptions, origin: str) -> tuple[int, int]:
    """Name the input and its batch; returns height and width."""
    weights = {one.name for one in graph.initializer}
    inputs = [one for one in graph.input if one.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(repr(one.name) for one in inputs)
        raise InputError(f"{origin} has the inputs {names or 'none'}; a vision model has one, the images")
    (image,) = inputs
    kind = image.type.tensor_type
    shape = [dim.dim_value or None for dim in kind.shape.dim]
    if kind.elem_type != TensorProto.FLOAT or len(shape) != 4 or shape[1] != 3:
        told = "x".join(str(size or "?") for size in shape) or "no shape"
        raise InputError(
            f"input {image.name!r} of {origin} is {_type(kind.elem_type)} {told}; it must be float32 Nx3xHxW"
        )
    if (shape[0] or 1) > 1:
        raise InputError(f"the batch of {origin} is fixed at {shape[0]}; export it with a dynamic batch, or 1")
    height, width = options.size or (shape[2], shape[3])
    if not height or not width:
        raise InputError(f"{origin} leaves the size of its images open; say model.image_size")
    if (shape[2] or height, shape[3] or width) != (height, width):
        raise InputError(f"{origin} takes images of {shape[2]}x{shape[3]}, model.image_size is {height}x{width}")
    for dim, size in zip(kind.shape.dim, (shape[0], 3, height, width), strict=True):
        dim.Clear()
        if size is None:
            dim.dim_param = BATCH
        else:
            dim.dim_value = size
    _rename(graph, image.name, INPUT)
    image.name = INPUT
    del graph.input[:]
    graph.input.append(image)
    return height, width


def _settle_output(graph: onnx.GraphProto, options: OnnxSourceOptions, origin: str) -> int:
    """Keep the output that answers; returns how many values it has for an image."""
    rows = {
        one.name: one.type.tensor_type.shape.dim[1].dim_value
        for one in graph.output
        if len(one.type.tensor_type.shape.dim) == 2 and one.type.tensor_type.shape.dim[1].dim_value
    }
    name = options.output or next(iter(rows), None)
    if name not in rows:
        known = ", ".join(one.name for one in graph.output)
        wanted = f"no output {options.output!r} of" if options.output else "no output with"
        raise InputError(f"{origin} has {wanted} one row of numbers per image; its outputs are {known}")
    kept = next(one for one in graph.output if one.name == name)
    batch = kept.type.tensor_type.shape.dim[0]
    if not graph.input[0].type.tensor_type.shape.dim[0].dim_value:
        batch.Clear()
        batch.dim_param = BATCH
    del graph.output[:]
    graph.output.append(kept)
    return int(rows[name])


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Give a tensor another name; a tensor that has the new name already gets one more letter."""
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | {
        one.name for one in graph.initializer
    }
    if old == new:
        return
    swap: Mapping[str, str] = {old: new, **({new: f"{new}_"} if new in taken else {})}
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = swap.get(name, name)
    for one in (*graph.initializer, *graph.output):
        one.name = swap.get(one.name, one.name)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own: options and reports speak of nodes by name."""
    seen: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
        seen.add(node.name)


def _count(tensor: TensorProto) -> int:
    total = 1
    for size in tensor.dims:
        total *= size
    return total


def _type(code: int) -> str:
    return str(TensorProto.DataType.Name(code)).lower()
