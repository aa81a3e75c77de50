"""The rest of a quantized graph in 16 bits: what is between its quantized products, too, runs as the graph holds it.

A strongly typed engine runs in fp32 whatever the graph holds in fp32. Nodes that would overflow float16 stay fp32, as
in a graph that is fp16 as a whole (`half`), and products that stay because of it are still quantized.
"""

import json
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from stages.quantize.calibrate import Job
from stages.quantize.candidates import make_candidates
from stages.quantize.graph import WEIGHTED
from stages.quantize.half import HALVES, Half, Risk, convert, nodes_at_risk
from targets.errors import InputError
from targets.preprocess import Preprocess

log = logging.getLogger("vitrim.quantize")

RESTS = {"float16": "fp16", "bfloat16": "bf16"}
"""what the option says -> precision"""
SCALES_OPSET = 19
"""first operator set whose scales may have 16 bits"""
LEAST_STEP = {"fp16": 2.0**-14, "bf16": 2.0**-126}
"""least scale of activations: its reciprocal is still a number"""
NAMED = 6
"""nodes that a line of the log names; the facts name all"""


def narrow_rest(model: onnx.ModelProto, keep: Collection[str], half: Half) -> onnx.ModelProto:
    """Return a quantized fp32 graph in 16 bits between its products; it is used up. keep: nodes that stay fp32.

    Raises InputError where the operator set has no scales of 16 bits and cannot be raised.
    """
    model = _raise_opset(model)
    kept = {*keep, *_own_dequantizers(model.graph, keep)}
    _settle_scales(model.graph, half)
    convert(model, kept, half)
    return model


def _raise_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    found = next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    if found >= SCALES_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, SCALES_OPSET)
    except Exception as error:  # the converter's own exceptions, which have no public name
        raise InputError(
            f"scales of 16 bits need opset {SCALES_OPSET}, the graph has {found} and cannot be raised to it; "
            f"export with opset {SCALES_OPSET} or later, or say `rest: float32`"
        ) from error


def _own_dequantizers(graph: onnx.GraphProto, keep: Collection[str]) -> set[str]:
    """Give every product to keep DequantizeLinears of its own, in place; returns their names.

    In fp32 with the product, they leave it a quantized one: a Cast between would not.
    """
    made_by = {output: node for node in graph.node for output in node.output}
    own: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for index, name in enumerate(node.input[:2] if node.op_type in WEIGHTED and node.name in keep else ()):
            before = made_by.get(name)
            if before is None or before.op_type != "DequantizeLinear":
                continue
            copy = onnx.NodeProto()
            copy.CopyFrom(before)
            copy.name, copy.output[0] = f"{node.name}/{index}/DequantizeLinear", f"{node.name}/{index}/dequantized"
            node.input[index] = copy.output[0]
            own.add(copy.name)
            nodes.append(copy)
        nodes.append(node)
    read = {name for node in nodes for name in node.input} | {one.name for one in graph.output}
    left = [node for node in nodes if node.op_type != "DequantizeLinear" or read.intersection(node.output)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in left]
    graph.ClearField("node")
    graph.node.extend(copies)
    return own


def _settle_scales(graph: onnx.GraphProto, half: Half) -> None:
    """Round scales up, in place, to what 16 bits hold, and the weights' codes with them.

    Up, so that nothing is cut off. Quantizer and dequantizer stay of one mind, whichever of them stays fp32.
    """
    tensors = {one.name: one for one in graph.initializer}
    quantizers = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    of_activations = {node.input[1] for node in quantizers if node.op_type == "QuantizeLinear"}
    settled: dict[str, NDArray[np.float32]] = {}
    for name in dict.fromkeys(node.input[1] for node in quantizers if node.input[1] in tensors):
        exact = numpy_helper.to_array(tensors[name])
        least = LEAST_STEP[half.name] if name in of_activations else 0.0
        settled[name] = exact
        tensors[name].CopyFrom(numpy_helper.from_array(_rounded_up(np.maximum(exact, np.float32(least)), half), name))
    for codes in dict.fromkeys(node.input[0] for node in quantizers if node.input[0] in tensors):
        node = next(one for one in quantizers if one.input[0] == codes)
        if node.input[1] in settled:
            _follow(graph, tensors, node, settled[node.input[1]])


def _rounded_up(values: NDArray[np.float32], half: Half) -> NDArray[np.float32]:
    near = np.atleast_1d(values).astype(half.dtype)
    bits = near.view(np.uint16)
    up = np.where(near.astype(np.float32) < np.atleast_1d(values), bits + 1, bits)  # scales are positive
    return np.asarray(up.astype(np.uint16).view(half.dtype).astype(np.float32).reshape(values.shape))


def _follow(
    graph: onnx.GraphProto, tensors: dict[str, onnx.TensorProto], node: onnx.NodeProto, before: NDArray[np.float32]
) -> None:
    """Write a weight's codes anew for its settled scale."""
    tensor = tensors[node.input[0]]
    ratio = before / numpy_helper.to_array(tensors[node.input[1]])
    if np.all(ratio == 1):
        return
    codes = numpy_helper.to_array(tensor)
    if ratio.ndim:
        block = next((one.i for one in node.attribute if one.name == "block_size"), 0)
        axis = next((one.i for one in node.attribute if one.name == "axis"), 1) % codes.ndim
        wide = [1] * codes.ndim
        wide[axis] = -1
        ratio = np.repeat(ratio, block, axis=axis) if block else ratio.reshape(wide)
    values = codes.astype(np.float32) * ratio
    whole = np.issubdtype(codes.dtype, np.integer)
    made = (np.rint(values) if whole else values).astype(codes.dtype)
    tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, tensor.data_type, codes.shape, made.tobytes(), raw=True))


@dataclass(frozen=True, kw_only=True)
class Narrowed:
    """A quantized graph whose rest has 16 bits."""

    graph: Path
    emulated: Path
    """the same in fp32, every tensor rounded: what is compared on a CPU"""
    facts: dict[str, Any]


def narrow_graph(
    graph: Path,
    rest: str,
    *,
    keep: Collection[str],
    share: float,
    pixels: Path,
    preprocess: Preprocess,
    scratch: Path,
    tell: Callable[[str, float | None], None],
) -> Narrowed:
    """Look at what a quantized graph's tensors reach on images, and write it with a rest of 16 bits.

    rest: float16 or bfloat16. keep: nodes that stay fp32 anyway. share: of 65504 that may be reached (float16). pixels:
    images of `fit`, as `calibrate` reads them.
    """
    half = HALVES[RESTS[rest]]

    def job(name: str, **changes: Any) -> Job:
        usual: dict[str, Any] = {"model": graph, "pixels": pixels, "preprocess": preprocess, "title": f"rest in {rest}"}
        output = scratch / f"rest_{name}" / "model.onnx"
        output.parent.mkdir(exist_ok=True)
        return Job(**{**usual, "output": output, "progress": scratch / f"rest_{name}.share", **changes})

    risks: list[Risk] = []
    if half.name == "fp16":
        scan = job("scan", work="scan")
        make_candidates([scan], model_bytes=0, tell=lambda message, _: tell(message, None), what="scanning ranges")
        risks = nodes_at_risk(onnx.load(graph), json.loads(scan.output.read_bytes()), share=share)
    if risks:
        log.warning(
            "rest: %d nodes would exceed %g of 65504 on the fit images and stay fp32: %s%s",
            len(risks),
            share,
            ", ".join(f"{one.node} ({one.largest:.0f})" for one in risks[:NAMED]),
            " and more" if len(risks) > NAMED else "",
        )
    names = tuple(sorted({*keep, *(one.node for one in risks)}))
    settings = {"precision": half.name, "quantized": True, "keep_io": False}
    made, emulated = (
        job(name, work="half", keep_float=names, settings={**settings, "emulate": name == "emulated"})
        for name in ("narrow", "emulated")
    )
    make_candidates([made, emulated], model_bytes=graph.stat().st_size, tell=lambda message, _: tell(message, None))
    kept = [{"node": one.node, "what": one.what, "largest": one.largest} for one in risks]
    return Narrowed(graph=made.output, emulated=emulated.output, facts={"rest": rest, "rest_kept_float": kept})
