"""Every option of the runtimes `onnxruntime_cuda` and `onnxruntime_tensorrt`, in one table. Standard library only."""

from collections.abc import Mapping
from typing import Any

from targets.runtimes.nvidia.options import ORT_CUDA, ORT_TENSORRT
from targets.runtimes.options import BUILD, LOAD, Option, read_table, table_of

RUNTIMES = (ORT_CUDA, ORT_TENSORRT)
PRECISIONS = {ORT_CUDA: ("fp32", "fp16"), ORT_TENSORRT: ("fp32", "fp16", "int8")}
"""CUDA has no kernels for int8 between Q/DQ: such a graph would run in fp32. TensorRT's provider has no fp8"""
ARENA = {"next_power_of_two": "kNextPowerOfTwo", "same_as_requested": "kSameAsRequested"}
SEARCH = ("exhaustive", "heuristic", "default")
_BOTH_TIMES = (BUILD, LOAD)
_CUDA, _TENSORRT = (ORT_CUDA,), (ORT_TENSORRT,)

OPTIONS = table_of(RUNTIMES, {
    "precision": Option("fp32", "what the graph holds; nothing is converted here", choices=PRECISIONS[ORT_TENSORRT]),
    "batch": Option(1, "images per query; a dynamic batch is fixed to it", whole=(1, 65536)),
    "threads": Option(1, "threads on the host", whole=(1, 4096), when=_BOTH_TIMES),
    "device": Option(0, "number of the GPU", whole=(0, 1023), when=_BOTH_TIMES),
    "tf32": Option(
        False, "let fp32 products round their inputs to TF32 (10 bits of mantissa)", boolean=True, when=_BOTH_TIMES
    ),
    "cuda_graph": Option(False, "record a query's kernels and launch them as one", boolean=True, when=(LOAD,)),
    "memory_mib": Option(
        None, "most memory of the GPU that the arena takes; null: no limit", whole=(1, 2**20), when=_BOTH_TIMES,
        runtimes=_CUDA,
    ),
    "arena": Option(
        "next_power_of_two", "how the arena grows", choices=tuple(ARENA), when=_BOTH_TIMES, runtimes=_CUDA
    ),
    "convolution_search": Option(
        "exhaustive", "how cuDNN's algorithm is chosen: by trying, by a rule, or the default one", choices=SEARCH,
        when=_BOTH_TIMES, runtimes=_CUDA,
    ),
    "workspace_mib": Option(
        None, "most memory for scratch space of kernels; null: all there is", whole=(1, 2**20), runtimes=_TENSORRT
    ),
    "optimization_level": Option(3, "0 builds fastest, 5 searches longest", whole=(0, 5), runtimes=_TENSORRT),
    "timing_cache": Option(
        "auto", "folder for kernels' times, by GPU and version; `auto`: the user's cache; `none`", text=True,
        runtimes=_TENSORRT,
    ),
})  # fmt: skip


def read_options(runtime: str, when: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of a build or a load; returns all that apply, defaults filled in. Raises InputError."""
    return read_table(OPTIONS, runtime, when, given)


def kept_options(runtime: str, built: Mapping[str, Any]) -> dict[str, Any]:
    """Of the options an engine was built with, those that hold at loading unless others are given."""
    both = [name for name, one in OPTIONS.items() if runtime in one.runtimes and one.when == _BOTH_TIMES]
    return {name: built[name] for name in both if built.get(name) is not None}
