"""Every option of the runtimes `tensorrt` and `tensorrt_rtx`, in one table, checked strictly. Standard library only."""

from dataclasses import dataclass
from typing import Any

from targets.errors import InputError, suggest

BUILD, LOAD = "build", "load"
TENSORRT, RTX = "tensorrt", "tensorrt_rtx"
BOTH = (TENSORRT, RTX)
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
HARDWARE = ("none", "same_compute_capability", "ampere_plus")
REFIT = ("none", "identical", "any")


@dataclass(frozen=True)
class Option:
    """One option: what it may be, where it counts, what it means."""

    default: Any
    meaning: str
    whole: tuple[int, int] | None = None
    """least and most, where it is a whole number"""
    choices: tuple[str, ...] = ()
    boolean: bool = False
    text: bool = False
    several: bool = False
    """a text, or a list of them"""
    runtimes: tuple[str, ...] = BOTH
    when: tuple[str, ...] = (BUILD,)


OPTIONS = {
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
    "timing_cache": Option(None, "folder for kernels' times, by GPU and version", text=True, runtimes=(TENSORRT,)),
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
        None, "folder for kernels that were compiled at run time", text=True, runtimes=(RTX,), when=(LOAD,)
    ),
    "weights": Option(None, "the ONNX file of an engine built with `strip_weights`", text=True, when=(LOAD,)),
}  # fmt: skip

_OURS = {"optimized": (LOAD,), "batch": (LOAD,), "precision": (LOAD,)}
"""what the agent adds at loading, where it says nothing to an engine"""


def read_options(runtime: str, when: str, given: dict[str, Any]) -> dict[str, Any]:
    """Check the options of a build or a load; returns all that apply, defaults filled in. Raises InputError."""
    known = {name: one for name, one in OPTIONS.items() if runtime in one.runtimes and when in one.when}
    for name in given:
        if name not in known and when not in _OURS.get(name, ()):
            raise InputError(_unknown(runtime, when, name, list(known)))
    found = {}
    for name, option in known.items():
        value = given.get(name)
        found[name] = option.default if value is None else _checked(name, option, value)
    if when == BUILD:
        _check_batches(found)
        if found["strip_weights"] and found["refit"] == "none":
            found["refit"] = "identical"
    return found


def _unknown(runtime: str, when: str, name: str, known: list[str]) -> str:
    if name not in OPTIONS:
        return f"runtime {runtime!r} has no option {name!r} at {when}; {suggest(name, known)}"
    option = OPTIONS[name]
    if runtime not in option.runtimes:
        return f"option {name!r} is one of runtime {option.runtimes[0]!r}, not of {runtime!r}; leave it out"
    return f"option {name!r} counts at {option.when[0]}, not at {when}; give it there"


def _checked(name: str, option: Option, value: Any) -> Any:
    if option.boolean:
        if not isinstance(value, bool):
            raise InputError(f"option {name!r} is true or false, got {value!r}")
    elif option.choices:
        if value not in option.choices:
            raise InputError(f"option {name!r} is one of {', '.join(option.choices)}, got {value!r}")
    elif option.whole:
        least, most = option.whole
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InputError(f"option {name!r} is a whole number from {least} to {most}, got {value!r}")
    elif option.several:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, (list, tuple)) or not values or not all(isinstance(one, str) for one in values):
            raise InputError(f"option {name!r} is a text like '8.6' or a list of such, got {value!r}")
        return list(dict.fromkeys(values))
    elif not isinstance(value, str) or not value:
        raise InputError(f"option {name!r} is a path, got {value!r}")
    return value


def _check_batches(found: dict[str, Any]) -> None:
    least = found["batch_min"] = found["batch_min"] or found["batch"]
    most = found["batch_max"] = found["batch_max"] or found["batch"]
    if not least <= found["batch"] <= most:
        raise InputError(
            f"batch_min {least}, batch {found['batch']} and batch_max {most} are out of order; "
            "each may be at most the next"
        )
