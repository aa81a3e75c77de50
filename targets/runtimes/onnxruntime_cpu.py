"""ONNX Runtime on a CPU: an engine is the graph after its optimisations, for one batch.

The optimised graph is saved at build and loaded with optimisation off: same speed and same answers as optimising at
every start (docs/stages/compile.md), and what runs is what was looked at. It may hold layouts of one instruction set.
"""

import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from targets.errors import InputError, WorkerError
from targets.runtimes.runtime import (
    Array,
    Feeds,
    TensorFacts,
    check_precision,
    cpu_binding,
    product_macs,
    query_shape,
)

name = "onnxruntime"

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
EXTERNAL_ABOVE_BYTES = 2**30
"""larger models are saved with their weights beside them: a protobuf ends at 2 GiB"""

PROVIDER = "CPUExecutionProvider"
PRECISIONS = ("fp32", "int8", "int8_dynamic", "int8_weights", "fp8", "fp16")
EMULATED = ("bf16",)
"""precisions of graphs that this provider has no kernels for: never built; loaded as fp32 graphs that round alike"""
SLOW_FOR_INT8 = ["MatMulAddFusion"]
"""With a fixed batch this fusion makes a Gemm of every biased MatMul before its Q/DQ is seen, and such a Gemm
runs in fp32 with its weights dequantised at every query: 2.5 times slower on ViT-Tiny (onnxruntime 1.31)."""

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
_WEIGHTS_ONLY = ("MatMulNBits",)
"""products that read packed weights of few bits"""
_NBITS_LEVEL = "session.qdq_matmulnbits_accuracy_level"
"""1: such a product computes in fp32. The library's default is 4: it quantizes the activations too, without a word"""
_SPINNING = "session.intra_op.allow_spinning"
_PRODUCTS = ("MatMul", "Gemm", "Conv", "Attention")
"""kinds of operators that multiply matrices have one of these in their names: QLinearConv, FusedMatMul, QGemm"""


def available() -> str | None:
    """None where onnxruntime can be imported, else why not."""
    try:
        _import()
    except ImportError as error:
        return f"{error}; install one of the packages onnxruntime and onnxruntime-gpu"
    return None


def version() -> str:
    """Version of the library that runs."""
    return str(_import().__version__)


def binding(facts: dict[str, Any]) -> dict[str, str]:
    """What of this machine decides whether an engine runs here."""
    return cpu_binding(name, version(), facts)


def build(model: Path, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Optimise a graph for a fixed batch and save it; returns its files."""
    check_precision(name, options["precision"], PRECISIONS)
    settings = _settings(options)
    _fix_batch(settings, model, options["batch"])
    settings.optimized_model_filepath = str(output / MODEL)
    if (
        sum(file.stat().st_size for file in (model, model.with_name(model.name + ".data")) if file.exists())
        > EXTERNAL_ABOVE_BYTES
    ):
        settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", WEIGHTS)
        settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    _open(model, settings, options)
    return {"files": [MODEL, *([WEIGHTS] if (output / WEIGHTS).exists() else [])]}


def load(path: Path, options: dict[str, Any]) -> "OnnxRuntimeSession":
    """Load an engine's graph as it is, or optimise a plain .onnx file now."""
    precision = options.get("precision", "fp32")
    check_precision(name, precision, (*PRECISIONS, *EMULATED))
    return OnnxRuntimeSession(path, options, emulated=precision in EMULATED)


class OnnxRuntimeSession:
    """One graph on the CPU, sequential, with a fixed number of threads."""

    def __init__(self, path: Path, options: dict[str, Any], *, emulated: bool = False) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vitrim-emulated-") if emulated else None
        self._path = path if self._folder is None else _emulated(path, Path(self._folder.name))
        self._options = options
        self._session = self._start(self._settings())
        self.inputs = tuple(_tensor(one) for one in self._session.get_inputs())
        self.outputs = tuple(_tensor(one) for one in self._session.get_outputs())
        self._output_names = [one.name for one in self.outputs]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Answer one query."""
        halves = [one.name for one in self.inputs if one.dtype == "float16"]
        if halves:  # an fp16 graph that was left without casts at its ends
            feeds = {**feeds, **{one: feeds[one].astype("float16") for one in halves}}
        return dict(zip(self._output_names, self._session.run(self._output_names, feeds), strict=True))

    def layers(self, feeds: Feeds, repeats: int) -> list[dict[str, Any]]:
        """Nodes of the optimised graph, from a session of its own: profiling slows queries down."""
        found: dict[str, dict[str, Any]] = {}
        for event in self._node_events(feeds, repeats):
            told = event["args"]
            name = event["name"].removesuffix("_kernel_time")
            row = found.setdefault(
                name,
                {
                    "name": name,
                    "operator": told["op_name"],
                    "kernel": told["op_name"],
                    "precision": _precision(told),
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

    def matrix_products(self, feeds: Feeds) -> dict[str, int]:
        """Precision by the types that went into each product, from the profile of one query."""
        events = [event["args"] for event in self._node_events(feeds, 1)]
        return dict(Counter(_precision(told) for told in events if _is_product(told["op_name"])))

    def facts(self) -> dict[str, Any]:
        """Session options and providers in force."""
        settings = self._session.get_session_options()
        return {
            "providers": self._session.get_providers(),
            "provider_options": self._session.get_provider_options(),
            "threads": settings.intra_op_num_threads,
            "execution_mode": settings.execution_mode.name,
            "optimization": settings.graph_optimization_level.name,
            "spinning": settings.get_session_config_entry(_SPINNING),
            **({"emulated": self._options["precision"]} if self._folder is not None else {}),
        }

    def close(self) -> None:
        """Give the memory back."""
        del self._session
        if self._folder is not None:
            self._folder.cleanup()

    def _settings(self) -> Any:
        settings = _settings(self._options)
        if self._options.get("optimized"):
            settings.graph_optimization_level = _import().GraphOptimizationLevel.ORT_DISABLE_ALL
        elif self._options.get("batch"):
            _fix_batch(settings, self._path, self._options["batch"])
        return settings

    def _start(self, settings: Any) -> Any:
        return _open(self._path, settings, self._options)

    def _node_events(self, feeds: Feeds, repeats: int) -> list[dict[str, Any]]:
        """Run queries in a profiling session; events of all nodes of all queries but the first."""
        with tempfile.TemporaryDirectory(prefix="vitrim-profile-") as folder:
            settings = self._settings()
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder) / "profile")
            session = self._start(settings)
            for _ in range(repeats + 1):
                session.run(None, feeds)
            events = json.loads(Path(session.end_profiling()).read_text())
        first = min((one for one in events if one["name"] == "model_run"), key=lambda one: one["ts"])
        after = first["ts"] + first["dur"]
        return [one for one in events if one["cat"] == "Node" and "op_name" in one["args"] and one["ts"] >= after]


def _is_product(operator: str) -> bool:
    return any(kind in operator for kind in _PRODUCTS)


def _shapes(tensors: list[dict[str, list[int]]]) -> list[list[int]]:
    """Shapes of a node's tensors, as the profile tells them: [{type: shape}]."""
    return [shape for one in tensors for shape in one.values()]


def _precision(told: dict[str, Any]) -> str:
    """By the types that go into a node; of a product with packed weights by what it multiplies them with."""
    tensors = told["input_type_shape"]
    if told["op_name"] in _WEIGHTS_ONLY:
        tensors = tensors[:1]
    types = {kind for one in tensors for kind in one}
    return "int8" if types & {"int8", "uint8"} else "fp16" if "float16" in types else "fp32"


def _macs(told: dict[str, Any]) -> int | None:
    """Of a product. Weights that were packed beforehand are not among the inputs told, so convolutions have none."""
    operator, outputs = told["op_name"], _shapes(told.get("output_type_shape", []))
    if not _is_product(operator) or not outputs:
        return None
    return product_macs(operator, _shapes(told["input_type_shape"])[:1], outputs[0])


def _import() -> Any:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read at import: calling the API later is too late
    import onnxruntime

    return onnxruntime


def _settings(options: dict[str, Any]) -> Any:
    library = _import()
    settings = library.SessionOptions()
    settings.execution_mode = library.ExecutionMode.ORT_SEQUENTIAL  # a transformer has no branches
    settings.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.intra_op_num_threads = options["threads"]
    settings.inter_op_num_threads = 1
    settings.add_session_config_entry(_NBITS_LEVEL, "1")
    settings.add_session_config_entry(_SPINNING, "1")  # the library's default, written out
    settings.log_severity_level = (
        3  # else saving warns that the engine is bound to this machine, which engine.json says
    )
    return settings


def _emulated(path: Path, folder: Path) -> Path:
    """A copy of a bf16 graph in fp32 that rounds its tensors as the graph does."""
    try:
        from targets.runtimes.widen import write_widened
    except ImportError as error:
        raise InputError(f"onnxruntime runs no bf16 on CPUs, and to emulate it vitrim needs onnx: {error}") from error
    return write_widened(path, folder / MODEL)


def _open(path: Path, settings: Any, options: dict[str, Any]) -> Any:
    disabled = SLOW_FOR_INT8 if options.get("precision") == "int8" else None
    try:
        session = _import().InferenceSession(str(path), settings, providers=[PROVIDER], disabled_optimizers=disabled)
    except Exception as error:  # the library's exceptions share no base but RuntimeError and ValueError
        raise WorkerError(f"onnxruntime cannot load {path.name!r}: {' '.join(str(error).split())}") from error
    if session.get_providers() != [PROVIDER]:
        raise WorkerError(f"onnxruntime fell back to {session.get_providers()}, wanted {PROVIDER}")
    return session


def _fix_batch(settings: Any, model: Path, batch: int) -> None:
    """Replace the name of each input's first dimension by a number."""
    plain = _settings({"threads": 1})
    plain.graph_optimization_level = _import().GraphOptimizationLevel.ORT_DISABLE_ALL
    for one in _open(model, plain, {}).get_inputs():
        query_shape(_tensor(one).shape, batch=batch, name=one.name)
        if isinstance(one.shape[0], str):
            settings.add_free_dimension_override_by_name(one.shape[0], batch)
        elif one.shape[0] is None:
            raise InputError(f"the dynamic batch of input {one.name!r} has no name; export it with a named dimension")


def _tensor(one: Any) -> TensorFacts:
    shape = tuple(size if isinstance(size, int) else None for size in one.shape)
    return TensorFacts(name=one.name, shape=shape, dtype=_DTYPES.get(one.type, one.type))
