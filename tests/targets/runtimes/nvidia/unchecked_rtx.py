"""TensorRT-RTX without our table of legal pairs: what its own builder says."""

from pathlib import Path
from typing import Any

from targets.runtimes import tensorrt_rtx_gpu
from targets.runtimes.nvidia import capability

name = "unchecked_rtx"
available, version, binding, load = (
    tensorrt_rtx_gpu.available,
    tensorrt_rtx_gpu.version,
    tensorrt_rtx_gpu.binding,
    tensorrt_rtx_gpu.load,
)


def build(model: Path, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    checks = capability.check_pairs, capability.check_types
    capability.check_pairs = capability.check_types = lambda *given: None
    try:
        return tensorrt_rtx_gpu.build(model, output, options)
    finally:
        capability.check_pairs, capability.check_types = checks
