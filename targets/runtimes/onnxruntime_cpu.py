"""ONNX Runtime on a CPU: an engine is the graph after its optimisations, for one batch.

The optimised graph is saved at build and loaded with optimisation off: same speed and same answers as optimising at
every start (docs/stages/compile.md), and what runs is what was looked at. It may hold layouts of one instruction set.
"""

import tempfile
from pathlib import Path
from typing import Any

from targets.errors import InputError
from targets.runtimes.nvidia.onnx_file import read_contents
from targets.runtimes.ort import library
from targets.runtimes.ort.session import OnnxRuntimeSession
from targets.runtimes.runtime import check_precision, cpu_binding

name = "onnxruntime"

PRECISIONS = ("fp32", "int8", "int8_dynamic", "int8_weights", "fp8", "fp16")
EMULATED = ("bf16",)
"""precisions of graphs that this provider has no kernels for: never built; loaded as fp32 graphs that round alike"""
HALVED = ("int8", "fp8", "fp16")
"""precisions whose graphs may hold 16 bits: a plain graph is loaded as one that rounds alike, because this provider
runs halves in fp32 without rounding, so that what overflows on a GPU would not here, and bf16 not at all"""
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
    check_precision(name, precision, (*PRECISIONS, *EMULATED))
    if precision in EMULATED or (precision in HALVED and not options.get("optimized") and _has_halves(path)):
        return EmulatedSession(path, options)
    return OnnxRuntimeSession(_graph(path, options))


class EmulatedSession(OnnxRuntimeSession):
    """A graph in a precision that this provider has no kernels for, run in fp32 with the same rounding."""

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vitrim-emulated-")
        self._emulated = options["precision"]
        try:
            super().__init__(_graph(_widened(path, Path(self._folder.name)), options))
        except BaseException:
            self._folder.cleanup()
            raise

    def facts(self) -> dict[str, Any]:
        """What is in force, and what is emulated."""
        return {**super().facts(), "emulated": self._emulated}

    def close(self) -> None:
        """Give memory and disk back."""
        super().close()
        self._folder.cleanup()


def _graph(path: Path, options: dict[str, Any]) -> library.Graph:
    def settings() -> Any:
        made = library.new_settings(options)
        if options.get("optimized"):
            library.leave_as_it_is(made)
        elif options.get("batch"):
            library.fix_batch(made, path, options["batch"], runtime=name)
        return made

    return library.Graph(name, path, settings, ((library.CPU, {}),), _left_out(options.get("precision", "fp32")))


def _has_halves(path: Path) -> bool:
    held = read_contents(name, path)
    return held.halves or held.bfloats


def _widened(path: Path, folder: Path) -> Path:
    """A copy of a graph of 16 bits in fp32 that rounds its tensors as the graph does."""
    try:
        from targets.runtimes.widen import write_widened
    except ImportError as error:
        raise InputError(
            f"onnxruntime does not round to 16 bits on CPUs, and to emulate it vitrim needs onnx: {error}"
        ) from error
    return write_widened(path, folder / "model.onnx")


def _left_out(precision: str) -> tuple[str, ...]:
    return SLOW_FOR_INT8 if precision == "int8" else ()
