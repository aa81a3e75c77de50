"""OpenVINO on a CPU: an engine is the graph in OpenVINO's own format (IR) for one batch, its precision written out.

Without an explicit hint the CPU plugin takes bf16 where the processor has it, so fp32 would not be fp32.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.runtimes.intel import engine, library
from targets.runtimes.intel.options import CPU

if TYPE_CHECKING:
    from targets.runtimes.intel.session import OpenVinoSession

name = CPU


def available() -> str | None:
    """None where openvino can be imported and sees a CPU, else why not."""
    return library.obstacle(name)


def version() -> str:
    """Version of the library that runs, without its build number."""
    return library.version()


def binding(facts: dict[str, Any]) -> dict[str, str]:
    """What of this machine decides whether an engine runs here: architecture, instruction sets, version."""
    return engine.binding(name, facts)


def build(model: Path, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Convert a graph to IR with a fixed batch and full-precision weights; returns its files."""
    return engine.build(name, model, output, options)


def load(path: Path, options: dict[str, Any]) -> "OpenVinoSession":
    """Compile IR or a plain .onnx file for this CPU."""
    return engine.load(name, path, options)
