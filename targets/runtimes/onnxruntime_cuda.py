"""ONNX Runtime with its CUDA provider: an engine is the graph after its optimisations, for one batch and one GPU.

Not yet run on hardware; docs/runtimes/onnxruntime.md says what was checked and how.
"""

from pathlib import Path
from typing import Any

from targets.runtimes.nvidia.options import ORT_CUDA, PROVIDERS
from targets.runtimes.ort import gpu, library
from targets.runtimes.ort.bound import BoundSession

name = ORT_CUDA

version = library.version


def available() -> str | None:
    """None where the provider, its libraries and a GPU are here, else why not and what to install."""
    return gpu.obstacle(PROVIDERS[name])


def binding(facts: dict[str, Any]) -> dict[str, str]:
    """What of this machine decides whether an engine runs here: GPU, versions, operating system."""
    return gpu.binding(name)


def build(model: Path, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Build an engine; returns its files, inputs, outputs and what it is bound to."""
    return gpu.build_engine(name, model, output, options)


def load(path: Path, options: dict[str, Any]) -> BoundSession:
    """Load an engine that vitrim built, or a plain .onnx file."""
    return gpu.open_engine(name, path, options)
