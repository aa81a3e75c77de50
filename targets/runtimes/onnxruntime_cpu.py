"""ONNX Runtime on a CPU: an engine is the graph after its optimisations, for one batch.

The optimised graph is saved at build and loaded with optimisation off: same speed and same answers as optimising at
every start (docs/stages/compile.md), and what runs is what was looked at. It may hold layouts of one instruction set.
"""

from pathlib import Path
from typing import Any

from targets.runtimes.ort import library
from targets.runtimes.ort.session import OnnxRuntimeSession
from targets.runtimes.runtime import check_precision, cpu_binding

name = "onnxruntime"

PRECISIONS = ("fp32", "int8", "int8_dynamic", "int8_weights", "fp8", "fp16")
SLOW_FOR_INT8 = ("MatMulAddFusion",)
"""With a fixed batch this fusion makes a Gemm of every biased MatMul before its Q/DQ is seen, and such a Gemm
runs in fp32 with its weights dequantised at every query: 2.5 times slower on ViT-Tiny (onnxruntime 1.31)."""

version = library.version


def available() -> str | None:
    """None where onnxruntime can be imported, else why not."""
    try:
        library.load_library()
    except ImportError as error:
        return f"{error}; install one of the packages onnxruntime and onnxruntime-gpu"
    return None


def binding(facts: dict[str, Any]) -> dict[str, str]:
    """What of this machine decides whether an engine runs here."""
    return cpu_binding(name, version(), facts)


def build(model: Path, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Optimise a graph for a fixed batch and save it; returns its files."""
    check_precision(name, options["precision"], PRECISIONS)
    settings = library.new_settings(options)
    library.fix_batch(settings, model, options["batch"], runtime=name)
    library.save_optimised(settings, model, output)
    library.open_session(model, settings, [(library.CPU, {})], disabled=_left_out(options["precision"]), runtime=name)
    return {"files": library.saved_files(output)}


def load(path: Path, options: dict[str, Any]) -> OnnxRuntimeSession:
    """Load an engine's graph as it is, or optimise a plain .onnx file now."""
    precision = options.get("precision", "fp32")
    check_precision(name, precision, PRECISIONS)

    def settings() -> Any:
        made = library.new_settings(options)
        if options.get("optimized"):
            library.leave_as_it_is(made)
        elif options.get("batch"):
            library.fix_batch(made, path, options["batch"], runtime=name)
        return made

    return OnnxRuntimeSession(library.Graph(name, path, settings, ((library.CPU, {}),), _left_out(precision)))


def _left_out(precision: str) -> tuple[str, ...]:
    return SLOW_FOR_INT8 if precision == "int8" else ()
