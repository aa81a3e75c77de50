"""TensorRT-RTX: an engine is built ahead of time, without a GPU, for one or more compute capabilities.

Kernels are compiled on the GPU at the first query. Builds are tested; running is not yet run on hardware
(docs/runtimes/tensorrt_rtx.md).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.runtimes.nvidia import builder, library, loading
from targets.runtimes.nvidia.options import RTX

if TYPE_CHECKING:
    from targets.runtimes.nvidia.session import GpuSession

name = RTX


def available() -> str | None:
    """None where the package can be imported and is recent enough, else why not; says nothing of GPUs."""
    return library.obstacle(name)


def version() -> str:
    """Version of the library that builds and runs."""
    return str(library.load_library(name).__version__)


def binding(facts: dict[str, Any]) -> dict[str, str]:
    """What of this machine decides whether an engine runs here: GPU, versions, operating system."""
    return loading.here(name, version())


def build(model: Path, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Build an engine; returns its files, inputs, outputs and what it is bound to."""
    return builder.build_engine(name, model, output, options)


def load(path: Path, options: dict[str, Any]) -> "GpuSession":
    """Load an engine that vitrim built, or build and load a plain .onnx file."""
    return loading.open_session(name, path, options)
