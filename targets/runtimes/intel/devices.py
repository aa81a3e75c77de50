"""Which devices OpenVINO finds on this machine, and why one that might be expected is missing. Standard library only.

OpenVINO is asked in a process of its own: it must not share one with torch, and a broken driver can take it along.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from ctypes.util import find_library
from dataclasses import dataclass, field
from pathlib import Path

from targets.facts import ROOT, read_text
from targets.runtimes.intel.options import CPU, DEVICES

LIMIT_SECONDS = 120
INTEL = "0x8086"
"""vendor of a PCI device"""

_LIST = """
import json, sys
sys.modules["openvino_telemetry"] = None
import openvino
core = openvino.Core()
print(json.dumps({name: str(core.get_property(name, "FULL_DEVICE_NAME")) for name in core.available_devices}))
"""


@dataclass(frozen=True)
class Listed:
    """What OpenVINO lists."""

    names: Mapping[str, str] = field(default_factory=dict)
    """device -> its full name: {"CPU": ..., "GPU.0": ...}"""
    why_not: str = ""
    """why it could not be asked; empty where it could"""

    def has(self, device: str) -> bool:
        """Whether a device is among them; several GPUs are listed as GPU.0, GPU.1."""
        return any(name.partition(".")[0] == device for name in self.names)


@dataclass(frozen=True)
class Missing:
    """Why a device is missing, and what to do."""

    why: str
    remedy: str
    seen: bool = False
    """the kernel shows the hardware; what is missing lies above it"""


@functools.cache
def list_devices() -> Listed:
    """Ask OpenVINO, once in a process of ours; takes about a second."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _LIST],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Listed(why_not=f"it did not answer within {LIMIT_SECONDS} s")
    if done.returncode == 0:
        return Listed(json.loads(done.stdout.splitlines()[-1]))
    if done.returncode < 0:
        return Listed(why_not=f"the process was ended by signal {-done.returncode}")
    words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return Listed(why_not=words[-1][:200] if words else f"the process ended with exit code {done.returncode}")


def device_obstacle(runtime: str, *, listed: Callable[[], Listed] = list_devices) -> str | None:
    """Why an OpenVINO runtime has no device here, in one line with what to do; None where it has, or needs none."""
    missing = device_missing(runtime, listed=listed)
    return None if missing is None else f"{missing.why}; {missing.remedy}"


def device_missing(
    runtime: str, *, listed: Callable[[], Listed] = list_devices, explain: Callable[[str], Missing] | None = None
) -> Missing | None:
    """Why an OpenVINO runtime has no device here: what openvino lists, and what `explain` finds of the missing one.

    None where it has one, or runs on the CPU.
    """
    device = DEVICES.get(runtime)
    if device is None or runtime == CPU:
        return None
    found = listed()
    if found.has(device):
        return None
    missing = (explain or why_missing)(device)
    return Missing(f"{not_listed(device, found)}: {missing.why}", missing.remedy, missing.seen)


def not_listed(device: str, found: Listed) -> str:
    """`openvino lists no GPU, only CPU`."""
    if found.why_not:
        return f"openvino cannot list its devices ({found.why_not})"
    return f"openvino lists no {device}, only {', '.join(found.names) or 'nothing'}"


def why_missing(
    device: str,
    *,
    root: Path = ROOT,
    may_use: Callable[[Path], bool] = lambda path: os.access(path, os.R_OK | os.W_OK),
    library: Callable[[str], str | None] = find_library,
    system: str = sys.platform,
) -> Missing:
    """Look from the hardware upwards for what keeps OpenVINO from a GPU or NPU: device, permission, driver.

    library: finds a shared library by its name. A WSL shows GPUs as /dev/dxg.
    """
    if system != "linux":
        return Missing("the system's driver for it is absent or too old", "install Intel's driver for it")
    return (_why_no_gpu if device == "GPU" else _why_no_npu)(root, may_use, library)


def _why_no_gpu(root: Path, may_use: Callable[[Path], bool], library: Callable[[str], str | None]) -> Missing:
    nodes = [*_nodes(root, "dri", "renderD", "drm"), *(path for path in [root / "dev/dxg"] if path.exists())]
    if not nodes:
        why = "no /dev/dri/renderD* is Intel's" if (root / "dev/dri").is_dir() else "there is no /dev/dri"
        return Missing(
            why, "the kernel needs the driver i915 or xe for an Intel GPU; start a container with --device /dev/dri"
        )
    if not any(may_use(node) for node in nodes):
        return _forbidden(nodes[0], root)
    if library("OpenCL") is None:
        why, packages = "libOpenCL.so.1 is not installed", "ocl-icd-libopencl1 and intel-opencl-icd"
    elif not any("intel" in path.name.lower() for path in (root / "etc/OpenCL/vendors").glob("*.icd")):
        why, packages = "no OpenCL driver of Intel is installed", "intel-opencl-icd"
    else:
        why, packages = "Intel's OpenCL driver does not know it", "a newer intel-opencl-icd"
    remedy = f"install {packages} (names in Debian and Ubuntu; elsewhere Intel's compute runtime)"
    return Missing(why, remedy, seen=True)


def _why_no_npu(root: Path, may_use: Callable[[Path], bool], library: Callable[[str], str | None]) -> Missing:
    nodes = _nodes(root, "accel", "accel", "accel")
    if not nodes:
        why = "no /dev/accel/accel* is Intel's" if (root / "dev/accel").is_dir() else "there is no /dev/accel"
        remedy = "an NPU needs the kernel's driver intel_vpu (Linux 6.8 or later) and its firmware"
        return Missing(why, f"{remedy}; start a container with --device /dev/accel")
    if not any(may_use(node) for node in nodes):
        return _forbidden(nodes[0], root)
    if library("ze_loader") is None:
        return Missing("Level Zero (libze_loader.so.1) is not installed", "install level-zero", seen=True)
    if not any(library(name) for name in ("ze_intel_npu", "ze_intel_vpu")):
        why = "Intel's NPU driver (libze_intel_npu.so.1) is not installed"
        remedy = "install intel-level-zero-npu and intel-driver-compiler-npu from github.com/intel/linux-npu-driver"
        return Missing(why, remedy, seen=True)
    return Missing(
        "Intel's NPU driver does not know it", "install newer versions of its driver and firmware", seen=True
    )


def _nodes(root: Path, folder: str, prefix: str, kind: str) -> list[Path]:
    """Device files of Intel's hardware: those whose vendor sysfs tells, and is Intel."""
    return [
        path
        for path in sorted((root / "dev" / folder).glob(f"{prefix}*"))
        if read_text(root / "sys/class" / kind / path.name / "device/vendor") == INTEL
    ]


def _forbidden(node: Path, root: Path) -> Missing:
    remedy = f"sudo usermod -a -G {_group(node)} $USER, then log in again; in a container --group-add its number"
    return Missing(f"this user may not read and write /{node.relative_to(root).as_posix()}", remedy, seen=True)


def _group(node: Path) -> str:
    """Name of the group that a file belongs to; `render` where it is root's or has no name here."""
    try:
        name = node.group()
    except (KeyError, OSError, NotImplementedError):
        return "render"
    return "render" if name == "root" else name
