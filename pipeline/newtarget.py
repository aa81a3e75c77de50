"""A profile of this machine, as a file to start from: what `vitrim targets new` writes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from targets.atomic import write_atomic
from targets.errors import InputError


def write_target(name: str, path: Path, *, facts: Mapping[str, Any]) -> None:
    """Write a profile of the machine that the facts (`targets.facts.probe`) tell of; refuses to overwrite.

    The file is loaded as a build would load it before it stands under its name.
    """
    import yaml

    from targets.profile import TargetProfile

    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise InputError(f"a target's name has small letters, digits and hyphens, got {name!r}")
    if path.name not in (f"{name}.yaml", f"{name}.yml"):
        raise InputError(f"target {name!r} must stand in a file {name}.yaml, got {str(path)!r}")
    if path.exists():
        raise InputError(f"{str(path)!r} exists; choose another name, or delete it first")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {str(path.parent)!r}; make it first")
    data = _profile(name, facts)
    TargetProfile.model_validate(data)
    text = _HEAD + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)
    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


_HEAD = """\
# A target of vitrim, written from what this machine tells of itself; edit it as you like.
# `vitrim targets show FILE` prints what is in force, `vitrim doctor --target FILE` what this machine lacks for it.
"""


def _profile(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    gpu = next(iter(facts["gpus"]), None)
    runtimes = _runtimes(facts, gpu)
    if not runtimes:
        raise InputError('no runtime is installed that a target could name; pip install "vitrim[cpu]" first')
    board: dict[str, Any] = {
        "kind": "gpu" if gpu else "cpu",
        "description": str(gpu["name"] if gpu else facts["cpu_model"]),
        "architecture": facts["architecture"] if facts["architecture"] in ("x86_64", "aarch64") else "any",
        "instruction_sets": list(facts["instruction_sets"]),
    }
    if gpu:
        board["gpu"] = {
            "name": re.sub(r"^NVIDIA |GeForce ", "", gpu["name"]),
            "compute_capability": _probed(gpu["compute_capability"]),
        }
        mebibytes = re.match(r"\d+", gpu["memory"])
        if mebibytes:
            board["memory_gb"] = _probed(round(int(mebibytes.group()) * 2**20 / 1e9, 1))
    elif facts["memory_bytes"]:
        board["memory_gb"] = _probed(round(facts["memory_bytes"] / 1e9, 1))
    return {
        "format": "vitrim.target/1",
        "name": name,
        "summary": board["description"],
        "board": board,
        "runtimes": runtimes,
        "onnx_opset_max": 20,
        "batch": 1,
        "threads": None,
        "reached": "local",
        "verified": "not yet",
        "budget": {"accuracy_drop_points": None, "latency_p99_ms": None},
    }


def _runtimes(facts: Mapping[str, Any], gpu: Mapping[str, str] | None) -> list[dict[str, Any]]:
    """Those that are installed, in precisions that they run on such hardware."""
    from targets.runtimes.intel.devices import device_obstacle
    from targets.runtimes.intel.options import CPU, DEVICES, HINTS
    from targets.runtimes.nvidia.capability import LEGAL

    found = []
    for runtime, version in facts["runtimes"].items():
        if runtime in LEGAL:
            fit = list(LEGAL[runtime].get(gpu["compute_capability"], ())) if gpu else []
        elif runtime in DEVICES and runtime != CPU:
            fit = [] if device_obstacle(runtime) else list(HINTS[runtime])
        else:
            wide = runtime == "openvino" and {"avx512_bf16", "amx_bf16"} & set(facts["instruction_sets"])
            fit = ["fp32", "bf16", "int8"] if wide else ["fp32", "int8"]
        series = ".".join(str(version).split(".")[:2])
        if fit:
            found.append({"name": runtime, "versions": f">={series}", "precisions": fit})
    return found


def _probed(value: Any) -> dict[str, Any]:
    return {"value": value, "source": "read from this machine", "confidence": "probed"}
