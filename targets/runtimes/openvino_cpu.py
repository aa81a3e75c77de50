"""OpenVINO on a CPU: an engine is the graph in OpenVINO's own format (IR) for one batch, its precision written out.

Without an explicit hint the CPU plugin takes bf16 where the processor has it, so fp32 would not be fp32.
"""

import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from targets.errors import WorkerError
from targets.runtimes.runtime import (
    Array,
    Feeds,
    TensorFacts,
    check_precision,
    cpu_binding,
    product_macs,
    query_shape,
)

name = "openvino"

MODEL = "model.xml"
WEIGHTS = "model.bin"
HINTS = {"fp32": "f32", "int8": "f32", "int8_weights": "f32", "bf16": "bf16"}
"""int8: what is between quantizers runs in integers whatever the hint, the rest in fp32"""

_PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "ScaledDotProductAttention", "MHA")
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}


def available() -> str | None:
    """None where openvino can be imported and sees a CPU, else why not."""
    try:
        devices = _import().Core().available_devices
    except ImportError as error:
        return f"{error}; install the package openvino"
    return None if "CPU" in devices else f"openvino sees no CPU, only {devices}"


def version() -> str:
    """Version of the library that runs, without its build number."""
    return str(_import().__version__).split("-")[0]


def binding(facts: dict[str, Any]) -> dict[str, str]:
    """What of this machine decides whether an engine runs here."""
    return cpu_binding(name, version(), facts)


def build(model: Path, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Convert a graph to IR with a fixed batch and full-precision weights; returns its files."""
    check_precision(name, options["precision"], tuple(HINTS))
    graph = _read(model)
    _fix_batch(graph, options["batch"])
    _import().save_model(graph, str(output / MODEL), compress_to_fp16=False)
    return {"files": [MODEL, WEIGHTS]}


def load(path: Path, options: dict[str, Any]) -> "OpenVinoSession":
    """Compile IR or a plain .onnx file for this CPU."""
    check_precision(name, options.get("precision", "fp32"), tuple(HINTS))
    return OpenVinoSession(path, options)


class OpenVinoSession:
    """One compiled graph with one request: the shortest latency."""

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        self._path, self._options = path, options
        self._compiled = self._compile(profiling=False)
        self._request = self._compiled.create_infer_request()
        self.inputs = tuple(_tensor(one) for one in self._compiled.inputs)
        self.outputs = tuple(_tensor(one) for one in self._compiled.outputs)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Answer one query; inputs are read in place, as ONNX Runtime does."""
        answers = self._request.infer(feeds, share_inputs=True)
        return {one.name: answers[index] for index, one in enumerate(self.outputs)}

    def layers(self, feeds: Feeds, repeats: int) -> list[dict[str, Any]]:
        """Nodes of the execution graph, from a graph compiled with counters, which slow queries down.

        A counter is the mean over all queries so far, in whole microseconds; the first query, which packs weights, is
        taken out again. What takes less than a microsecond counts as not run.
        """
        compiled = self._compile(profiling=True)
        request = compiled.create_infer_request()
        request.infer(feeds)
        first = {node.node_name: node.real_time.total_seconds() for node in request.profiling_info}
        for _ in range(repeats):
            request.infer(feeds)
        nodes = {one.get_friendly_name(): one for one in compiled.get_runtime_model().get_ops()}
        found = []
        for node in request.profiling_info:
            if node.status != node.Status.EXECUTED:
                continue
            total = (repeats + 1) * node.real_time.total_seconds() - first[node.node_name]
            executed = nodes.get(node.node_name)
            precision = _computes(executed)[1] if executed is not None else ""
            found.append(
                {
                    "name": node.node_name,
                    "operator": node.node_type,
                    "kernel": node.exec_type,
                    "precision": _PRECISIONS.get(precision, precision or "unknown"),
                    "provider": "CPU",
                    "macs": _macs(node.node_type, executed),
                    "seconds": max(0.0, total) / repeats,
                    "calls": 1,
                }
            )
        return sorted(found, key=lambda row: -float(row["seconds"]))

    def matrix_products(self, feeds: Feeds) -> dict[str, int]:
        """Precision of each product in the execution graph."""
        return dict(
            Counter(
                _PRECISIONS.get(precision, precision)
                for kind, precision in self._executed()
                if any(product in kind for product in _PRODUCTS)
            )
        )

    def facts(self) -> dict[str, Any]:
        """Properties in force and the precisions of the execution graph."""
        asked = (
            "INFERENCE_NUM_THREADS",
            "NUM_STREAMS",
            "PERFORMANCE_HINT",
            "EXECUTION_MODE_HINT",
            "ENABLE_CPU_PINNING",
            "EXECUTION_DEVICES",
        )
        properties = {key.lower(): _plain(self._compiled.get_property(key)) for key in asked}
        precisions = Counter(precision for _, precision in self._executed())
        hint = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        return {**properties, "inference_precision_hint": hint, "execution_precisions": dict(precisions)}

    def close(self) -> None:
        """Give the memory back."""
        del self._request, self._compiled

    def _compile(self, *, profiling: bool) -> Any:
        graph = _read(self._path)
        if self._options.get("batch"):
            _fix_batch(graph, self._options["batch"])
        properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": HINTS[self._options.get("precision", "fp32")],
            "INFERENCE_NUM_THREADS": self._options["threads"],
            "PERF_COUNT": profiling,
        }
        if self._options.get("precision") == "int8_weights":
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0  # else activations are quantized too where VNNI is
        try:
            return _import().Core().compile_model(graph, "CPU", properties)
        except RuntimeError as error:
            raise WorkerError(f"openvino cannot compile {self._path.name!r}: {_reason(error)}") from error

    def _executed(self) -> list[tuple[str, str]]:
        """(kind, precision) of each node of the execution graph that computes."""
        found = [_computes(one) for one in self._compiled.get_runtime_model().get_ops()]
        return [(kind, precision) for kind, precision in found if kind not in ("Input", "Output", "Const")]


def _computes(node: Any) -> tuple[str, str]:
    """Kind of a node of the execution graph, and in which type it computes.

    With compressed weights `runtimePrecision` is that of the weights; the kernel's name ends with what it multiplies.
    """
    told = node.get_rt_info()
    kind, precision = told["layerType"].astype(str), told["runtimePrecision"].astype(str)
    kernel = told["primitiveType"].astype(str).rpartition("_")[2].lower()
    if _PRECISIONS.get(precision) == "int8" and kernel in ("f32", "f16", "bf16"):
        precision = kernel
    return kind, precision


def _macs(kind: str, node: Any) -> int | None:
    """Of a product in the execution graph; fused attention is two products over the same sequence."""
    if node is None or not any(product in kind for product in _PRODUCTS):
        return None
    shapes = [[int(size) for size in one.get_shape()] for one in node.inputs()]
    output = [int(size) for size in node.outputs()[0].get_shape()]
    if kind == "ScaledDotProductAttention" and len(shapes) >= 3:
        queries, keys = shapes[0], shapes[1]  # [N, heads, L, d]
        return math.prod(queries) * keys[-2] + math.prod(output) * keys[-2]
    return product_macs(kind, shapes, output)


def _import() -> Any:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: openvino takes its own stub
    import openvino

    return openvino


def _read(path: Path) -> Any:
    try:
        return _import().Core().read_model(str(path))
    except RuntimeError as error:
        raise WorkerError(f"openvino cannot read {path.name!r}: {_reason(error)}") from error


def _reason(error: RuntimeError) -> str:
    """One line of its several, without the places in its source code."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("Exception from ", "Check ")))


def _fix_batch(graph: Any, batch: int) -> None:
    shapes = {}
    for port in graph.inputs:
        one = _tensor(port)
        shapes[port] = query_shape(one.shape, batch=batch, name=one.name)
    graph.reshape(shapes)


def _tensor(port: Any) -> TensorFacts:
    shape = tuple(int(size.get_length()) if size.is_static else None for size in port.partial_shape)
    return TensorFacts(name=port.any_name, shape=shape, dtype=str(port.element_type.to_dtype()))


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, list)) else getattr(value, "name", str(value))
