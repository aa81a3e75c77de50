"""A graph compiled by OpenVINO for one device: one query after the other, or several at once from a pool."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from targets.errors import InputError, WorkerError
from targets.runtimes.intel.library import fix_batch, load_library, read_graph, reason, tensor
from targets.runtimes.intel.options import DEVICES, NPU, properties
from targets.runtimes.intel.pool import RequestPool
from targets.runtimes.runtime import Answered, Array, Feeds, product_macs

ASKED = (
    "INFERENCE_NUM_THREADS",
    "NUM_STREAMS",
    "PERFORMANCE_HINT",
    "EXECUTION_MODE_HINT",
    "ENABLE_CPU_PINNING",
    "EXECUTION_DEVICES",
    "OPTIMAL_NUMBER_OF_INFER_REQUESTS",
)
"""properties that are told as facts, where the device has them"""
DEVICE_ASKED = ("FULL_DEVICE_NAME", "DEVICE_ARCHITECTURE", "GPU_EXECUTION_UNITS_COUNT", "NPU_DRIVER_VERSION")

_PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "ScaledDotProductAttention", "MHA")
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
_HINT = "INFERENCE_PRECISION_HINT"


class OpenVinoSession:
    """One compiled graph. `run` answers with one request; `submit` with as many as the hint and the device want."""

    def __init__(self, runtime: str, path: Path, options: dict[str, Any]) -> None:
        self._runtime, self._path, self._options = runtime, path, options
        self._device = DEVICES[runtime]
        self._core = load_library().Core()
        self._compiled = self._compile(profiling=False)
        self._check_streams()
        self._request = self._compiled.create_infer_request()
        self._pool: RequestPool | None = None
        self.inputs = tuple(tensor(one) for one in self._compiled.inputs)
        self.outputs = tuple(tensor(one) for one in self._compiled.outputs)
        self.requests = self._requests()

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Answer one query; inputs are read in place, as ONNX Runtime does."""
        return self._answer(self._request, feeds)

    def submit(self, feeds: Feeds, answered: Answered) -> None:
        """Start a query, waiting for a free request where all are busy; `answered` is called from another thread."""
        if self._pool is None:
            self._pool = RequestPool(self._compiled, self.requests, self._answer)
        self._pool.submit(feeds, answered)

    def wait(self) -> None:
        """Wait until all queries are answered; raises what one of them raised."""
        if self._pool is not None:
            self._pool.wait()

    def layers(self, feeds: Feeds, repeats: int) -> list[dict[str, Any]]:
        """Nodes of the execution graph, from a graph compiled with counters, which slow queries down.

        A counter is the mean over all queries so far, in whole microseconds; the first query, which packs weights, is
        taken out again. What takes less than a microsecond counts as not run.
        """
        compiled = self._compile(profiling=True)
        request = compiled.create_infer_request()
        self._answer(request, feeds)
        first = {node.node_name: node.real_time.total_seconds() for node in request.profiling_info}
        for _ in range(repeats):
            self._answer(request, feeds)
        nodes = {one.get_friendly_name(): one for one in self._nodes(compiled)}
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
                    "provider": self._device,
                    "macs": _macs(node.node_type, executed),
                    "seconds": max(0.0, total) / repeats,
                    "calls": 1,
                }
            )
        return sorted(found, key=lambda row: -float(row["seconds"]))

    def matrix_products(self, feeds: Feeds) -> dict[str, int]:
        """Precision of each product in the execution graph; empty on an NPU, which does not tell."""
        return dict(
            Counter(
                _PRECISIONS.get(precision, precision)
                for kind, precision in self._executed()
                if any(product in kind for product in _PRODUCTS)
            )
        )

    def facts(self) -> dict[str, Any]:
        """Device, properties in force and the precisions of the execution graph."""
        there = set(self._compiled.get_property("SUPPORTED_PROPERTIES"))
        found = {key.lower(): _plain(self._compiled.get_property(key)) for key in ASKED if key in there}
        there_on_device = set(self._core.get_property(self._device, "SUPPORTED_PROPERTIES"))
        found |= {
            key.lower(): _plain(self._core.get_property(self._device, key))
            for key in DEVICE_ASKED
            if key in there_on_device
        }
        hint = self._compiled.get_property(_HINT).to_string() if _HINT in there else "the device takes none"
        precisions = Counter(precision for _, precision in self._executed())
        return {
            **found,
            "requests": self.requests,
            "inference_precision_hint": hint,
            "execution_precisions": dict(precisions),
        }

    def close(self) -> None:
        """Give the memory back; a second time does nothing."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        self._request = self._compiled = None

    def _answer(self, request: Any, feeds: Feeds) -> dict[str, Array]:
        """Answers are copied out of the request's memory, inputs are not copied into it."""
        try:
            answers = request.infer(feeds, share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            raise WorkerError(f"{self._runtime} cannot run: {reason(error)}") from error
        return {one.name: answers[index] for index, one in enumerate(self.outputs)}

    def _requests(self) -> int:
        """How many queries it answers at once: one for the shortest latency."""
        if self._options["hint"] == "latency":
            return 1
        return max(1, int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")))

    def _compile(self, *, profiling: bool) -> Any:
        graph = read_graph(self._path)
        if self._options.get("batch"):
            fix_batch(graph, self._options["batch"])
        told = properties(self._runtime, self._options, profiling=profiling)
        if self._runtime == NPU:
            _refuse_dynamic(graph)
            if _HINT not in self._core.get_property(self._device, "SUPPORTED_PROPERTIES"):
                del told[_HINT]  # its driver's compiler has no such option; floats are f16 on an NPU in any case
        try:
            return self._core.compile_model(graph, self._device, told)
        except RuntimeError as error:
            raise WorkerError(f"{self._runtime} cannot compile {self._path.name!r}: {reason(error)}") from error

    def _check_streams(self) -> None:
        """OpenVINO makes fewer streams than it was told to where threads are lacking, without a word."""
        asked = self._options["streams"]
        if asked is None:
            return
        made = int(self._compiled.get_property("NUM_STREAMS"))
        if made != asked:
            threads = f" on {self._options['threads']} threads" if "threads" in self._options else ""
            raise InputError(f"asked for {asked} streams, {self._runtime} made {made}{threads}; set streams: {made}")

    def _nodes(self, compiled: Any) -> list[Any]:
        """Nodes of the execution graph; none of an NPU, whose compiler keeps it."""
        return [] if self._runtime == NPU else list(compiled.get_runtime_model().get_ops())

    def _executed(self) -> list[tuple[str, str]]:
        """(kind, precision) of each node of the execution graph that computes."""
        found = [_computes(one) for one in self._nodes(self._compiled)]
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
    return kind, precision.lower()


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


def _refuse_dynamic(graph: Any) -> None:
    for port in graph.inputs:
        one = tensor(port)
        if None in one.shape:
            raise InputError(f"input {one.name!r} has shape {list(one.shape)}: an NPU takes fixed shapes; give a batch")


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, list)) else getattr(value, "name", str(value))
