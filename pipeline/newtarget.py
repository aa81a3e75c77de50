"""A profile of this machine, as a file to start from: what `vitrim targets new` writes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from targets.atomic import write_atomic
from targets.errors import InputError
from targets.jetson import Jetson


def write_target(name: str, path: Path, *, facts: Mapping[str, Any], jetson: Jetson | None = None) -> None:
    """Write a profile of the machine that the facts (`targets.facts.probe`) tell of; refuses to overwrite.

    The file is loaded as a build would load it before it stands under its name. jetson: what `read_jetson` tells, where
    it is one.
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
    data = _profile(name, facts, jetson)
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


def _profile(name: str, facts: Mapping[str, Any], jetson: Jetson | None) -> dict[str, Any]:
    gpu = _jetson_gpu(jetson) if jetson else _card(next(iter(facts["gpus"]), None))
    runtimes = _runtimes(facts, gpu["compute_capability"]["value"] if gpu else None)
    if not runtimes:
        raise InputError('no runtime is installed that a target could name; pip install "vitrim[cpu]" first')
    card = next(iter(facts["gpus"]), None)
    description = jetson.model if jetson else card["name"] if card else facts["cpu_model"]
    board: dict[str, Any] = {
        "kind": "jetson" if jetson else "gpu" if gpu else "cpu",
        "description": str(description),
        "architecture": facts["architecture"] if facts["architecture"] in ("x86_64", "aarch64") else "any",
        "instruction_sets": list(facts["instruction_sets"]),
    }
    if gpu:
        board["gpu"] = gpu
    if jetson:
        board["part_numbers"] = _part_numbers(jetson)
    size = _memory_bytes(facts, card=None if jetson else card)
    if size:
        board["memory_gb"] = _probed(round(size / 1e9, 1))
    return {
        "format": "vitrim.target/1",
        "name": name,
        "summary": board["description"],
        "board": board,
        **(_jetson_state(jetson) if jetson else {}),
        "runtimes": runtimes,
        "onnx_opset_max": 20,
        "batch": 1,
        "threads": None,
        "reached": "local",
        "verified": "not yet",
        "budget": {"accuracy_drop_points": None, "latency_p99_ms": None},
    }


def _card(gpu: Mapping[str, str] | None) -> dict[str, Any] | None:
    """A card in a computer, as nvidia-smi tells it."""
    if gpu is None:
        return None
    name = re.sub(r"^NVIDIA |GeForce ", "", gpu["name"])
    return {"name": name, "compute_capability": _probed(gpu["compute_capability"])}


SOCS = {"tegra194": ("Xavier", "7.2"), "tegra234": ("Orin", "8.7"), "tegra264": ("Thor", "11.0")}
"""of a Jetson: the GPU's name and its compute capability"""


def _jetson_gpu(jetson: Jetson) -> dict[str, Any]:
    """The GPU of a Jetson, by its SoC: its nvidia-smi does not tell."""
    found = next((SOCS[soc] for name in jetson.compatible for soc in SOCS if soc in name), None)
    if found is None:
        known = ", ".join(f"{soc} ({name})" for soc, (name, _) in SOCS.items())
        raise InputError(
            f"this Jetson ({jetson.model}) has none of the SoCs {known}; write its profile by hand, "
            "e.g. from `vitrim targets show jetson-orin-nano`"
        )
    name, capability = found
    source = "the SoC that /proc/device-tree/compatible names"
    return {"name": name, "compute_capability": {**_probed(capability), "source": source}}


def _part_numbers(jetson: Jetson) -> list[str]:
    """Part numbers of the module, e.g. p3767-0005; that of the carrier board before it is none of them."""
    found = [re.findall(r"p\d{4}-\d{4}", name) for name in jetson.compatible]
    return list(dict.fromkeys(parts[-1] for parts in found if parts))


def _jetson_state(jetson: Jetson) -> dict[str, Any]:
    """JetPack, CUDA and power mode, as they are now."""
    software = {
        key: {**_probed(f">={found}")} for key, found in (("jetpack", jetson.jetpack), ("cuda", jetson.cuda)) if found
    }
    return {
        **({"software": software} if software else {}),
        **({"power": {"mode": _probed(jetson.power_mode), "clocks": "pinned"}} if jetson.power_mode else {}),
    }


def _memory_bytes(facts: Mapping[str, Any], card: Mapping[str, str] | None) -> int | None:
    """Of the card; of the whole machine where it has none, or shares it."""
    if card is None:
        return facts["memory_bytes"]  # type: ignore[no-any-return]  # whole bytes, or None
    mebibytes = re.match(r"\d+", card["memory"])
    return int(mebibytes.group()) * 2**20 if mebibytes else None


def _runtimes(facts: Mapping[str, Any], capability: str | None) -> list[dict[str, Any]]:
    """Those that are installed, in precisions that they run on such hardware. capability: of the GPU; None: no GPU."""
    from targets.runtimes.intel.devices import device_obstacle
    from targets.runtimes.intel.options import CPU, DEVICES, HINTS
    from targets.runtimes.nvidia.capability import LEGAL

    wide = bool({"avx512_bf16", "amx_bf16", "bf16"} & set(facts["instruction_sets"]))
    found = []
    for runtime, version in facts["runtimes"].items():
        if runtime in LEGAL:
            fit = list(LEGAL[runtime].get(capability, ())) if capability else []
        elif runtime == CPU:
            fit = [one for one in ORDER if one in HINTS[CPU] and (one != "bf16" or wide)]
        elif runtime in DEVICES:
            fit = [] if device_obstacle(runtime) else list(HINTS[runtime])
        else:
            fit = ["fp32", "int8", "int8_dynamic", "int8_weights"]
        series = ".".join(str(version).split(".")[:2])
        if fit:
            found.append({"name": runtime, "versions": f">={series}", "precisions": fit})
    return sorted(found, key=lambda one: one["name"] not in LEGAL)  # the GPU's first


ORDER = ("fp32", "bf16", "fp16", "int8", "int8_weights")
"""of OpenVINO's precisions on cores"""


def _probed(value: Any) -> dict[str, Any]:
    return {"value": value, "source": "read from this machine", "confidence": "probed"}
