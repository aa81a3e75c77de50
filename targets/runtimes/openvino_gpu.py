"""OpenVINO on the integrated GPU of an Intel processor, or on an Arc card: fp16, int8, and fp32 where it is asked for.

Without an explicit hint the GPU plugin takes fp16, so fp32 would not be fp32. Not yet run on hardware.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.runtimes.intel import engine, library
from targets.runtimes.intel.options import GPU

if TYPE_CHECKING:
    from targets.runtimes.intel.session import OpenVinoSession

name = GPU


def available() -> str | None:
    """None where openvino can be imported and lists a GPU, else why not and what to do."""
    return library.obstacle(name)


def version() -> str:
    """Version of the library that runs, without its build number."""
    return library.version()


def binding(facts: dict[str, Any]) -> dict[str, str]:
    """What of this machine decides whether an engine runs here: architecture, name of the GPU, version."""
    return engine.binding(name, facts)


def build(model: Path, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Convert a graph to IR with a fixed batch and full-precision weights; returns its files."""
    return engine.build(name, model, output, options)


def load(path: Path, options: dict[str, Any]) -> "OpenVinoSession":
    """Compile IR or a plain .onnx file for this GPU."""
    return engine.load(name, path, options)
