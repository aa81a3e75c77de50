"""Which precisions a GPU's runtimes may run, by compute capability; and which runtimes there are at all."""

from targets.board import Precision

GPU_DISTRIBUTIONS = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt-rtx",)}
"""runtimes that compute on an NVIDIA GPU -> distributions that provide them"""

_LEAST: dict[Precision, tuple[int, int]] = {"fp16": (5, 3), "int8": (6, 1), "bf16": (8, 0), "fp8": (8, 9)}
"""lowest compute capability of each precision (CUDA and TensorRT support matrices)"""
_RTX = ((7, 5), (8, 6), (8, 9), (12, 0), (12, 1))
"""what TensorRT-RTX 1.5 supports (its support matrix)"""
_RTX_ON_TURING = ("fp16",)
"""fp32 matrix products and int8 are refused for 7.5 (tried with TensorRT-RTX 1.7; its support matrix says the same)"""


def obstacle(runtime: str, precision: Precision, capability: tuple[int, int]) -> str | None:
    """Why a runtime cannot run a precision on a GPU of this compute capability; None where it can."""
    here = f"{capability[0]}.{capability[1]}"
    if runtime not in GPU_DISTRIBUTIONS:
        return None
    if runtime == "tensorrt_rtx":
        if capability not in _RTX:
            known = ", ".join(f"{major}.{minor}" for major, minor in _RTX)
            return f"tensorrt_rtx does not support compute capability {here}; it supports {known}"
        if capability == (7, 5) and precision not in _RTX_ON_TURING:
            return f"tensorrt_rtx runs {' and '.join(_RTX_ON_TURING)} alone on compute capability 7.5, not {precision}"
    least = _LEAST.get(precision)
    if least is not None and capability < least:
        return f"{precision} needs compute capability {least[0]}.{least[1]}, the board has {here}"
    return None
