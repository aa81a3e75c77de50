"""What ONNX Runtime's profile tells, as pure functions over its events: layers, precisions, nodes that fell elsewhere.

An event of a node: {"cat": "Node", "name": "NAME_kernel_time", "ts", "dur": microseconds, "args": {"op_name",
"provider", "input_type_shape": [{type: shape}], "output_type_shape"}}.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from targets.runtimes.runtime import product_macs

Event = dict[str, Any]

_SUFFIX = "_kernel_time"
_PRODUCTS = ("MatMul", "Gemm", "Conv", "Attention")
"""kinds of operators that multiply matrices have one of these in their names: QLinearConv, FusedMatMul, QGemm"""
_WEIGHTS_ONLY = ("MatMulNBits",)
"""products that read packed weights of few bits"""
_ASK_SHAPES = ("Shape", "Size")
_WHOLE = {"int64", "int32", "bool"}
SHAPE_ELEMENTS = 64
"""a node that handles whole numbers only, and no more of them, computes shapes"""


@dataclass(frozen=True)
class Fallen:
    """A node that ran elsewhere than it should have."""

    name: str
    operator: str
    provider: str


def node_events(events: Iterable[Event], *, skip_queries: int = 0) -> list[Event]:
    """Events of the nodes of all queries but the first ones, each with its operator."""
    events = list(events)
    queries = sorted((one for one in events if one["name"] == "model_run"), key=lambda one: float(one["ts"]))
    after = max((one["ts"] + one["dur"] for one in queries[:skip_queries]), default=-math.inf)
    return [
        one
        for one in events
        if one["cat"] == "Node" and one["name"].endswith(_SUFFIX) and "op_name" in one["args"] and one["ts"] >= after
    ]


def describe_layers(events: Iterable[Event], repeats: int) -> list[dict[str, Any]]:
    """Rows of `Session.layers`, slowest first, from the events of so many queries."""
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        told = event["args"]
        name = event["name"].removesuffix(_SUFFIX)
        row = found.setdefault(
            name,
            {
                "name": name,
                "operator": told["op_name"],
                "kernel": told["op_name"],
                "precision": precision_of(told),
                "provider": told.get("provider", ""),
                "macs": _macs(told),
                "seconds": 0.0,
                "calls": 0,
            },
        )
        row["seconds"] += event["dur"] / 1e6 / repeats
        row["calls"] += 1
    for row in found.values():
        row["calls"] //= repeats
    return sorted(found.values(), key=lambda row: -float(row["seconds"]))


def count_products(events: Iterable[Event]) -> dict[str, int]:
    """Products by precision, from the events of one query."""
    told = [event["args"] for event in events]
    return dict(Counter(precision_of(one) for one in told if is_product(one["op_name"])))


def is_product(operator: str) -> bool:
    """Whether a kind of operator multiplies matrices."""
    return any(kind in operator for kind in _PRODUCTS)


def precision_of(told: dict[str, Any]) -> str:
    """By the types that go into a node; of a product with packed weights by what it multiplies them with."""
    tensors = told["input_type_shape"]
    if told["op_name"] in _WEIGHTS_ONLY:
        tensors = tensors[:1]
    types = {kind for one in tensors for kind in one}
    return "int8" if types & {"int8", "uint8"} else "fp16" if "float16" in types else "fp32"


def find_fallen(events: Iterable[Event], wanted: Sequence[str]) -> list[Fallen]:
    """Nodes that ran on another provider than the ones wanted, each once, in their order.

    Nodes that only compute shapes do not count: the library itself leaves those to the CPU, where their numbers are.
    """
    found = {
        one["name"]: Fallen(one["name"].removesuffix(_SUFFIX), one["args"]["op_name"], one["args"].get("provider", ""))
        for one in events
        if one["args"].get("provider", "") not in wanted and not _computes_shapes(one["args"])
    }
    return list(found.values())


def _computes_shapes(told: dict[str, Any]) -> bool:
    inputs = [] if told["op_name"] in _ASK_SHAPES else told.get("input_type_shape", [])
    tensors = [pair for one in (*inputs, *told.get("output_type_shape", [])) for pair in one.items()]
    return bool(tensors) and all(kind in _WHOLE and math.prod(shape) <= SHAPE_ELEMENTS for kind, shape in tensors)


def _shapes(tensors: list[dict[str, list[int]]]) -> list[list[int]]:
    """Shapes of a node's tensors, as the profile tells them: [{type: shape}]."""
    return [shape for one in tensors for shape in one.values()]


def _macs(told: dict[str, Any]) -> int | None:
    """Of a product. Weights that were packed beforehand are not among the inputs told, so convolutions have none."""
    operator, outputs = told["op_name"], _shapes(told.get("output_type_shape", []))
    if not is_product(operator) or not outputs:
        return None
    return product_macs(operator, _shapes(told["input_type_shape"])[:1], outputs[0])
