"""What the engine inspector tells of the layers that were made, in the dialects of TensorRT 10 and 11.

10: {"Layers": [{"Name", "LayerType", "Inputs": [{"Format/Datatype": "Row major linear FP16 format"}], "TacticName",
"Metadata": "[ONNX Layer: a] [ONNX Layer: b]"}], "Bindings": [...]}. 11: "Format" and "DataType" instead of the one,
"I/O Tensors" instead of "Bindings".
https://docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/tensorrt-10x-to-11x-IEngineInspector.html
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from targets.errors import WorkerError

UNKNOWN = "unknown"

_WORDS = (
    ("int8", ("int8",)),
    ("fp8", ("fp8", "e4m3", "float8")),
    ("bf16", ("bf16", "bfloat")),
    ("fp16", ("fp16", "half", "float16")),
    ("fp32", ("fp32", "float", "tf32")),
)
"""precision by words in the name of a type, the first that fits; lowest first"""
_MOVING = ("reformat", "shuffle", "constant", "cast", "noop", "slice", "copy", "identity", "quantize", "dequantize")
"""kinds of layers that multiply nothing"""


def read_layers(text: str) -> list[dict[str, Any]]:
    """Layers of an engine; raises WorkerError where it was built without details."""
    layers = json.loads(text).get("Layers", [])
    if not layers or not all(isinstance(one, dict) for one in layers):
        raise WorkerError("the engine tells only names of its layers: it was built without details; build it again")
    return list(layers)


def count_products(layers: list[dict[str, Any]], products: list[str]) -> dict[str, int]:
    """Precision of each product by the types that go into the layer that it became; `unknown`: it is in none."""
    ran: dict[str, str] = {}
    moved: dict[str, str] = {}
    for layer in layers:
        precision = _precision(layer)
        found = moved if str(layer.get("LayerType", "")).lower() in _MOVING else ran
        for node in _nodes(layer):
            if node in products:
                found[node] = _lower(precision, found.get(node, precision))
    ran = {**moved, **ran}  # what only converts numbers is named after a product, too
    return dict(Counter(ran.get(one, UNKNOWN) for one in products))


def share_macs(layers: list[dict[str, Any]], macs: Mapping[str, int]) -> dict[str, float]:
    """Multiply-accumulates by name of a layer: those of the products that it was made of.

    A product that several layers name is shared out equally among those that compute; what only moves or converts
    numbers is named after a product, too.
    """
    names: dict[str, list[str]] = {}
    for layer in layers:
        for node in set(_nodes(layer)):
            names.setdefault(node, []).append(str(layer.get("Name", "")))
    moving = {str(one.get("Name", "")) for one in layers if str(one.get("LayerType", "")).lower() in _MOVING}
    found: dict[str, float] = {}
    for node, count in macs.items():
        among = names.get(node, [])
        among = [one for one in among if one not in moving] or among
        for one in among:
            found[one] = found.get(one, 0.0) + count / len(among)
    return found


def describe_layer(layer: dict[str, Any]) -> dict[str, str]:
    """Kind, kernel and precision of a layer; what the engine does not tell is `unknown`."""
    return {
        "operator": str(layer.get("LayerType", UNKNOWN)),
        "kernel": str(layer.get("TacticName", layer.get("TacticValue", UNKNOWN))),
        "precision": _precision(layer),
    }


def _precision(layer: dict[str, Any]) -> str:
    """Lowest precision among the inputs of a layer."""
    found = [_named(str(one.get("DataType", one.get("Format/Datatype", "")))) for one in layer.get("Inputs", [])]
    order = [name for name, _ in _WORDS]
    return min((one for one in found if one in order), key=order.index, default=UNKNOWN)


def _named(text: str) -> str:
    return next((name for name, words in _WORDS if any(word in text.lower() for word in words)), UNKNOWN)


def _lower(one: str, other: str) -> str:
    order = [*(name for name, _ in _WORDS), UNKNOWN]
    return min(one, other, key=order.index)


def _nodes(layer: dict[str, Any]) -> list[str]:
    """Names of the ONNX nodes that a layer was made of."""
    named = re.findall(r"\[ONNX Layer: ([^\]]*)\]", str(layer.get("Metadata", "")))
    return [one.strip() for one in named] or [str(layer.get("Name", ""))]
