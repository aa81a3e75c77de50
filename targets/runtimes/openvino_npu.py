"""OpenVINO on the NPU of an Intel Core Ultra: fp16 and int8, fixed shapes only.

An NPU computes in fp16 and integers, and does not tell which layer ran in which. Not yet run on hardware.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.runtimes.intel import engine, library
from targets.runtimes.intel.options import NPU

if TYPE_CHECKING:
    from targets.runtimes.intel.session import OpenVinoSession

name = NPU


def available() -> str | None:
    """None where openvino can be imported and lists an NPU, else why not and what to do."""
    return library.obstacle(name)


def version() -> str:
    """Version of the library that runs, without its build number."""
    return library.version()


def binding(facts: dict[str, Any]) -> dict[str, str]:
    """What of this machine decides whether an engine runs here: architecture, name of the NPU, version."""
    return engine.binding(name, facts)


def build(model: Path, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Convert a graph to IR with a fixed batch and full-precision weights; returns its files."""
    return engine.build(name, model, output, options)


def load(path: Path, options: dict[str, Any]) -> "OpenVinoSession":
    """Compile IR or a plain .onnx file for this NPU; its batch must be fixed."""
    return engine.load(name, path, options)
