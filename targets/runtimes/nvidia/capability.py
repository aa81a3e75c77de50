"""Which GPUs the two TensorRTs run on, in which precisions, by compute capability. Standard library only.

TensorRT-RTX: what version 1.7 builds without a GPU (tests/targets/runtimes/nvidia/test_rtx_builds.py), cut by NVIDIA's
support matrix: it builds for 8.0, and int8 for 7.5, which the matrix does not name. TensorRT: NVIDIA's support matrix
of versions 10 and 11. ONNX Runtime's CUDA provider: what onnxruntime-gpu 1.31.1 has kernels for; its TensorRT provider:
where TensorRT runs.
"""

from collections.abc import Iterable, Sequence

from targets.errors import InputError
from targets.runtimes.nvidia.options import ORT_CUDA, ORT_TENSORRT, RTX, TENSORRT

_TURING = ("fp32", "fp16", "int8")
_AMPERE = ("fp32", "fp16", "bf16", "int8")
_ADA = (*_AMPERE, "fp8")
_ORT = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "12.0")
_ALL = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.1", "10.3", "11.0", "12.0", "12.1")

LEGAL: dict[str, dict[str, tuple[str, ...]]] = {
    RTX: {
        "7.5": ("fp16",),
        "8.6": _AMPERE,
        "8.9": _ADA,
        "12.0": _ADA,
        "12.1": _ADA,
    },
    TENSORRT: {
        "7.5": _TURING,
        "8.0": _AMPERE,
        "8.6": _AMPERE,
        "8.7": _AMPERE,
        "8.9": _ADA,
        "9.0": _ADA,
        "10.0": _ADA,
        "10.1": _ADA,
        "10.3": _ADA,
        "11.0": _ADA,
        "12.0": _ADA,
        "12.1": _ADA,
    },
    ORT_CUDA: dict.fromkeys(_ORT, ("fp32", "fp16")),
    ORT_TENSORRT: dict.fromkeys(_ALL, _TURING),
}
"""runtime -> compute capability -> precisions"""

GPUS = {
    "5.3": "Jetson Nano, TX1",
    "6.1": "Pascal",
    "6.2": "Jetson TX2",
    "7.0": "Volta",
    "7.2": "Jetson Xavier",
    "7.5": "Turing",
    "8.0": "A100",
    "8.6": "Ampere",
    "8.7": "Jetson Orin",
    "8.9": "Ada Lovelace",
    "9.0": "Hopper",
    "10.0": "Blackwell B200",
    "10.1": "Jetson Thor in CUDA 12",
    "10.3": "Blackwell B300",
    "11.0": "Jetson Thor",
    "12.0": "Blackwell RTX",
    "12.1": "Blackwell GB10",
}
PRODUCTS = {
    RTX: "TensorRT-RTX",
    TENSORRT: "TensorRT",
    ORT_CUDA: "ONNX Runtime's CUDA provider",
    ORT_TENSORRT: "ONNX Runtime's TensorRT provider",
}
_WHY = {
    (RTX, "7.5", "fp32"): "its builder has no fp32 matrix products there; make the graph fp16",
    (RTX, "7.5", "int8"): "its builder takes such a graph, but NVIDIA's support matrix has no int8 there; use fp16",
}


def check_pairs(runtime: str, capabilities: Iterable[str], precision: str) -> None:
    """Raise InputError where a runtime does not know a GPU, or does not run a precision on it."""
    for capability in capabilities:
        reason = pair_obstacle(runtime, capability, precision)
        if reason is not None:
            raise InputError(reason)


def pair_obstacle(runtime: str, capability: str, precision: str) -> str | None:
    """Why one of these runtimes does not run a precision on a GPU, with what to do instead; None where it does."""
    legal = LEGAL[runtime].get(capability)
    where = f"compute capability {capability}{_gpu(capability)}"
    if legal is None:
        return f"{PRODUCTS[runtime]} does not run on {where}; {_instead(runtime, capability)}"
    if precision in legal:
        return None
    why = _WHY.get((runtime, capability, precision))
    return f"{PRODUCTS[runtime]} does not run {precision!r} on {where}: {why or 'use ' + ' or '.join(legal)}"


def check_types(runtime: str, capabilities: Iterable[str], types: dict[str, str], wide: Sequence[str]) -> None:
    """Raise InputError for a graph that holds what a GPU does not have, whatever precision it was called.

    types: a tensor's layer by the tensor's type. wide: names of the matrix products of fp32 numbers.
    """
    for capability in capabilities:
        legal = LEGAL[runtime][capability]
        where = f"{PRODUCTS[runtime]} on compute capability {capability}{_gpu(capability)}"
        for precision in ("bf16", "fp8"):
            if precision in types and precision not in legal:
                raise InputError(f"{where} has no {precision}, which node {types[precision]!r} makes; use {legal[0]}")
        if wide and "fp32" not in legal:
            raise InputError(f"{where} has no fp32 matrix products, as node {wide[0]!r} is one; make the graph fp16")


def _gpu(capability: str) -> str:
    return f" ({GPUS[capability]})" if capability in GPUS else ""


def _instead(runtime: str, capability: str) -> str:
    if runtime == RTX and capability in LEGAL[TENSORRT]:
        return "use runtime 'tensorrt' there, and build on that machine"
    if capability in GPUS:
        return "use runtime 'onnxruntime' there"
    return f"it runs on {', '.join(LEGAL[runtime])}"
