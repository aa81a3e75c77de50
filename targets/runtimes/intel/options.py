"""Every option of the OpenVINO runtimes, checked strictly, and the properties they become. Standard library only.

The precision is always said: left alone, OpenVINO takes bf16 on processors that have it and fp16 on GPUs.
"""

from typing import Any

from targets.errors import InputError, suggest

CPU, GPU, NPU = "openvino", "openvino_gpu", "openvino_npu"
DEVICES = {CPU: "CPU", GPU: "GPU", NPU: "NPU"}
"""runtime -> device, as OpenVINO calls it; of several GPUs the first, which is the integrated one"""
HINTS = {
    CPU: {"fp32": "f32", "int8": "f32", "int8_weights": "f32", "bf16": "bf16"},
    GPU: {"fp32": "f32", "fp16": "f16", "int8": "f16"},
    NPU: {"fp16": "f16", "int8": "f16"},
}
"""runtime -> precision -> INFERENCE_PRECISION_HINT. int8: what is between quantizers runs in integers whatever the
hint, which is for the rest. An NPU also takes i8; f16 is its default, with which graphs that are in part int8 run"""
BY_HINT = {CPU: ("bf16",), GPU: ("fp16",), NPU: ("fp16",)}
"""runtime -> precisions in which it computes an fp32 graph when told to"""
PERFORMANCE = ("latency", "throughput")

_KNOWN = ("precision", "batch", "threads", "hint", "streams", "optimized")
_MOST_STREAMS = 1024
_MOST = {"batch": 65536, "threads": 4096}


def read_options(runtime: str, given: dict[str, Any]) -> dict[str, Any]:
    """Check the options of a build or a load, defaults filled in; raises InputError."""
    for name in given:
        if name not in _KNOWN:
            raise InputError(f"runtime {runtime!r} has no option {name!r}; {suggest(name, _KNOWN)}")
    found = {"precision": "fp32", "hint": "latency", "streams": None, **given}
    found["hint"] = found["hint"] or "latency"
    for name, most in _MOST.items():
        value = found.get(name)
        if value is not None and not _is_whole(value, most):
            raise InputError(f"option {name!r} is a whole number from 1 to {most}, got {value!r}")
    known = HINTS[runtime]
    if found["precision"] not in known:
        raise InputError(f"runtime {runtime!r} does not run {found['precision']!r}; it runs {', '.join(known)}")
    reason = hint_obstacle(runtime, found["hint"], found["streams"])
    if reason is not None:
        raise InputError(reason)
    return found


def hint_obstacle(runtime: str, hint: Any, streams: Any) -> str | None:
    """Why a runtime does not take a performance hint or a number of streams, with what it takes; None where it does."""
    if hint not in PERFORMANCE:
        return f"option 'hint' is one of {', '.join(PERFORMANCE)}, got {hint!r}"
    if runtime not in DEVICES:
        if hint == "latency" and streams is None:
            return None
        name = "streams" if hint == "latency" else "hint"
        return f"option {name!r} is one of {', '.join(DEVICES)}, not of {runtime!r}; leave it out"
    if streams is None:
        return None
    if not _is_whole(streams, _MOST_STREAMS):
        return f"option 'streams' is a whole number from 1 to {_MOST_STREAMS}, got {streams!r}"
    if hint == "latency":
        return f"option 'streams' goes with hint 'throughput', got {streams} with 'latency'; set hint, or leave it out"
    if runtime == NPU:
        return f"option 'streams' is one of {CPU}, {GPU}, not of {NPU!r}: an NPU has no streams; leave it out"
    return None


def properties(runtime: str, options: dict[str, Any], *, profiling: bool = False) -> dict[str, Any]:
    """What OpenVINO is told when it compiles. options: as `read_options` gives them."""
    precision = options["precision"]
    found: dict[str, Any] = {
        "PERFORMANCE_HINT": options["hint"].upper(),
        "INFERENCE_PRECISION_HINT": HINTS[runtime][precision],
        "PERF_COUNT": profiling,
    }
    if runtime == CPU:
        found["INFERENCE_NUM_THREADS"] = options["threads"]
    if options["streams"] is not None:
        found["NUM_STREAMS"] = options["streams"]
    if precision == "int8_weights":
        found["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0  # else activations are quantized too where VNNI is
    return found


def _is_whole(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
