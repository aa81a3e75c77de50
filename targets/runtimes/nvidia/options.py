"""Every option of the runtimes `tensorrt` and `tensorrt_rtx`, in one table, checked strictly. Standard library only."""

from collections.abc import Mapping
from typing import Any

from targets.errors import InputError
from targets.runtimes.options import BUILD as BUILD
from targets.runtimes.options import LOAD as LOAD
from targets.runtimes.options import Option, read_table, table_of

TENSORRT, RTX = "tensorrt", "tensorrt_rtx"
ORT_CUDA, ORT_TENSORRT = "onnxruntime_cuda", "onnxruntime_tensorrt"
"""ONNX Runtime with one of its providers for GPUs; their options are in `targets.runtimes.ort.options`"""
PROVIDERS = {ORT_CUDA: "CUDAExecutionProvider", ORT_TENSORRT: "TensorrtExecutionProvider"}
BOTH = (TENSORRT, RTX)
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
HARDWARE = ("none", "same_compute_capability", "ampere_plus")
REFIT = ("none", "identical", "any")
MOST_IMAGES = 16
"""of a plain ONNX file whose batch is left open"""

OPTIONS = table_of(BOTH, {
    "precision": Option("fp32", "what the graph holds; nothing is converted here", choices=PRECISIONS),
    "batch": Option(1, "images per query, for which kernels are chosen", whole=(1, 65536)),
    "batch_min": Option(None, "fewest images per query; null: `batch`", whole=(1, 65536)),
    "batch_max": Option(None, "most images per query; null: `batch`", whole=(1, 65536)),
    "threads": Option(1, "threads of the builder on the host", whole=(1, 4096), when=(BUILD, LOAD)),
    "device": Option(0, "number of the GPU", whole=(0, 1023), when=(BUILD, LOAD)),
    "workspace_mib": Option(None, "most memory for scratch space of kernels; null: all there is", whole=(1, 2**20)),
    "optimization_level": Option(3, "0 builds fastest, 5 searches longest", whole=(0, 5)),
    "tf32": Option(False, "let fp32 products round their inputs to TF32 (10 bits of mantissa)", boolean=True),
    "strip_weights": Option(False, "leave the weights out; loading takes them from the ONNX file", boolean=True),
    "refit": Option("none", "weights may be exchanged: `identical` ones only, or `any`", choices=REFIT),
    "timing_cache": Option(
        "auto", "folder for kernels' times, by GPU and version; `auto`: the user's cache; `none`", text=True,
        runtimes=(TENSORRT,),
    ),
    "version_compatible": Option(
        False, "runs on later versions of the same major number, from which it may be slower", boolean=True,
        runtimes=(TENSORRT,),
    ),
    "hardware_compatibility": Option(
        "none", "which other GPUs the engine runs on, from which it may be slower", choices=HARDWARE,
        runtimes=(TENSORRT,),
    ),
    "compute_capability": Option(
        None, "GPUs to build for, as `8.6` or a list of such; null: the GPU here", several=True, runtimes=(RTX,)
    ),
    "cuda_graph": Option(True, "record a query's kernels and launch them as one", boolean=True, when=(LOAD,)),
    "runtime_cache": Option(
        "auto", "folder for kernels that were compiled at run time; `auto`: the user's cache; `none`", text=True,
        runtimes=(RTX,), when=(LOAD,),
    ),
    "weights": Option(None, "the ONNX file of an engine built with `strip_weights`", text=True, when=(LOAD,)),
})  # fmt: skip


def read_options(runtime: str, when: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of a build or a load; returns all that apply, defaults filled in. Raises InputError."""
    found = read_table(OPTIONS, runtime, when, given)
    if when == BUILD:
        _check_batches(found)
        if found["strip_weights"] and found["refit"] == "none":
            found["refit"] = "identical"
    return found


def _check_batches(found: dict[str, Any]) -> None:
    least = found["batch_min"] = found["batch_min"] or found["batch"]
    most = found["batch_max"] = found["batch_max"] or found["batch"]
    if not least <= found["batch"] <= most:
        raise InputError(
            f"batch_min {least}, batch {found['batch']} and batch_max {most} are out of order; "
            "each may be at most the next"
        )
