"""What this machine is: processor, instruction sets, usable cores, memory, GPUs, versions of the runtimes.

Plain dictionaries and the standard library only, in Python 3.10: the agent on a board runs this file too.
Every reader takes the root of the file system, so that a test can show it another machine.
"""

import hashlib
import json
import math
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path("/")

INSTRUCTION_SETS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
"""the flags of /proc/cpuinfo that decide which kernels a runtime takes"""

RUNTIME_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    "openvino": ("openvino",),
    "openvino_gpu": ("openvino",),
    "openvino_npu": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "onnxruntime_cuda": ("onnxruntime-gpu",),
    "onnxruntime_tensorrt": ("onnxruntime-gpu",),
}
"""by runtime: the distributions that can provide it"""

_ARCHITECTURES = {"AMD64": "x86_64", "arm64": "aarch64"}


def probe(root: Path = ROOT) -> dict[str, Any]:
    """Look at this machine: plain JSON. Takes milliseconds; starts nothing but nvidia-smi, where there is one."""
    cpu = _cpu(root)
    return {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "cpu_model": cpu["model"],
        "instruction_sets": cpu["instruction_sets"],
        "cores": usable_cores(root),
        "cores_total": os.cpu_count() or 1,
        "memory_bytes": _memory_bytes(root),
        "os": _os(root),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "gpus": _gpus(),
        "runtimes": installed_runtimes(),
    }


def stable_facts(facts: dict[str, Any]) -> dict[str, str]:
    """The part of the facts that stays while the hardware stays: what binds engines and measurements to a device."""
    return {
        "architecture": facts["architecture"],
        "cpu_model": facts["cpu_model"],
        "instruction_sets": " ".join(facts["instruction_sets"]),
        "cores": str(facts["cores"]),
        "gpus": "; ".join(f"{gpu['name']}, driver {gpu['driver']}" for gpu in facts["gpus"]),
    }


def fingerprint(facts: dict[str, Any]) -> str:
    """Digest of the stable facts, 64 hex digits."""
    return hashlib.sha256(json.dumps(stable_facts(facts), sort_keys=True).encode()).hexdigest()


def installed_version(runtime: str) -> str | None:
    """Version of the installed distribution that provides a runtime; None where there is none. Imports nothing."""
    for distribution in RUNTIME_DISTRIBUTIONS.get(runtime, ()):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def installed_runtimes() -> dict[str, str]:
    """Version by runtime, for those that are installed."""
    found = {name: installed_version(name) for name in RUNTIME_DISTRIBUTIONS}
    return {name: one for name, one in found.items() if one is not None}


def usable_cores(root: Path = ROOT) -> int:
    """Cores that this process may use: its affinity, cut by the container's quota (os.cpu_count() knows neither)."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        allowed = os.cpu_count() or 1
    quota = cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Cores' worth of time that the control group allows; None: no limit. Reads both versions."""
    quotas = []
    for folder in _cgroups(root, "cpu"):
        version_2 = read_text(folder / "cpu.max").split()
        version_1 = [read_text(folder / "cpu.cfs_quota_us"), read_text(folder / "cpu.cfs_period_us")]
        for limit in (version_2, version_1):
            if len(limit) == 2 and limit[0].isdigit() and limit[1].isdigit():  # no limit: `max` or `-1`
                quotas.append(int(limit[0]) / int(limit[1]))
    return min(quotas, default=None)


def read_text(path: Path) -> str:
    """Content of a small file of the kernel, stripped; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _cgroups(root: Path, controller: str) -> list[Path]:
    """Folders of this process' control groups and of their parents: a limit of any of them holds."""
    mount = root / "sys/fs/cgroup"
    folders = []
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            base = mount / controllers if controllers else mount
            inner = base / path.lstrip("/")
            folders += [inner, *(parent for parent in inner.parents if parent.is_relative_to(base))]
    return [*folders, mount, mount / controller]


def _cpu(root: Path) -> dict[str, Any]:
    """Model name and the known instruction sets of the first processor in /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in read_text(root / "proc/cpuinfo").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())  # x86_64 | aarch64
    arm = f"ARM implementer {fields.get('CPU implementer')} part {fields.get('CPU part')}"
    model = fields.get("model name") or (arm if "CPU part" in fields else platform.processor() or "unknown")
    return {"model": model, "instruction_sets": [flag for flag in INSTRUCTION_SETS if flag in flags]}


def _memory_bytes(root: Path) -> int | None:
    """Physical memory, cut by the control group's limit."""
    sizes = []
    for line in read_text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            sizes.append(int(line.split()[1]) * 1024)
    for folder in _cgroups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = read_text(folder / name)
            if text.isdigit():
                sizes.append(int(text))
    return min(sizes, default=None)


def _os(root: Path) -> str:
    for line in read_text(root / "etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.platform()


def _gpus() -> list[dict[str, str]]:
    """NVIDIA GPUs as nvidia-smi tells them; none where it is absent or fails."""
    names = ("name", "driver_version", "memory.total", "compute_cap")
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    keys = ("name", "driver", "memory", "compute_capability")
    return [dict(zip(keys, row, strict=True)) for row in rows if len(row) == len(keys)]
