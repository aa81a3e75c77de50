"""What a Jetson tells of itself: module, L4T and with it JetPack, power mode; and how it is now. Standard library only.

Files: L4T's documentation of power and thermal management. Not yet run on hardware.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from targets.facts import ROOT, read_text
from targets.nvidia import Run, run_command

JETPACKS = (
    ("32.6.1", "4.6"),
    ("32.7.1", "4.6.1"),
    ("35.1", "5.0.2"),
    ("35.2.1", "5.1"),
    ("36.3", "6.0"),
    ("36.4", "6.1"),
    ("36.4.3", "6.2"),
    ("36.4.4", "6.2.1"),
    ("36.5", "6.2.2"),
    ("38.2", "7.0"),
    ("38.4", "7.1"),
    ("39.2", "7.2"),
)
"""first L4T of each JetPack (NVIDIA's JetPack pages); a later one of the same series belongs to the last before it"""
GPU_DEVICE = re.compile(r"gpu|g[vabp]\d+b")
"""names of the GPU in devfreq: 17000000.gpu, 17000000.ga10b, 17000000.gv11b, 57000000.gpu"""
GPU_NODE = re.compile(r"/dev/(nvhost-gpu|nvhost-as-gpu|nvgpu/|nvidia\d)")
"""devices that whoever computes on the GPU has open"""


@dataclass(frozen=True, kw_only=True)
class Jetson:
    """A module and what runs on it."""

    model: str
    compatible: tuple[str, ...]
    """names of board and SoC, e.g. nvidia,p3768-0000+p3767-0005-super, nvidia,tegra234"""
    l4t: str | None
    jetpack: str | None
    power_mode: str | None
    """name of nvpmodel's mode"""
    cuda: str | None


def read_jetson(root: Path = ROOT, run: Run = run_command) -> Jetson | None:
    """Look at this machine; None where it is no Jetson."""
    compatible = tuple(filter(None, read_text(root / "proc/device-tree/compatible").split("\0")))
    release = read_text(root / "etc/nv_tegra_release")
    if not release and not any("tegra" in name for name in compatible):
        return None
    found = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", release)
    l4t = f"{found.group(1)}.{found.group(2)}" if found else None
    mode = re.search(r"NV Power Mode:\s*(\S+)", run(["nvpmodel", "-q"]) or "")
    cuda = re.search(r'"cuda"\s*:\s*{[^}]*"version"\s*:\s*"(\d+\.\d+)', read_text(root / "usr/local/cuda/version.json"))
    return Jetson(
        model=read_text(root / "proc/device-tree/model").strip("\0") or "unknown",
        compatible=compatible,
        l4t=l4t,
        jetpack=jetpack_of(l4t) if l4t else None,
        power_mode=mode.group(1) if mode else None,
        cuda=cuda.group(1) if cuda else None,
    )


@dataclass(frozen=True, kw_only=True)
class JetsonNow:
    """What changes while it works; None where the board does not tell."""

    gpu_mhz: tuple[float, float, float] | None
    """of the GPU: least that is allowed, now, most that is allowed"""
    overcurrents: int | None
    """times that a rail drew too much and clocks were cut, since the start"""
    capped_by: tuple[str, ...] | None
    """cooling devices that cap clocks now, without fans"""
    gpu_users: tuple[int, ...]
    """processes that have the GPU open, of those that may be looked at"""
    hidden: int
    """processes that may not be looked at"""


def read_jetson_now(root: Path = ROOT) -> JetsonNow:
    """Look at clocks, limits and users of the GPU now."""
    users, hidden = _gpu_users(root)
    cooling = [
        one for one in sorted((root / "sys/class/thermal").glob("cooling_device*")) if _number(one / "cur_state")
    ]
    events = [_number(file) for file in (root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")]
    known = [one for one in events if one is not None]
    there = any((root / "sys/class/thermal").glob("cooling_device*"))
    named = [read_text(one / "type") or one.name for one in cooling]
    return JetsonNow(
        gpu_mhz=_gpu_mhz(root),
        overcurrents=sum(known) if known else None,
        capped_by=tuple(one for one in named if "fan" not in one.lower()) if there else None,
        gpu_users=users,
        hidden=hidden,
    )


def _gpu_mhz(root: Path) -> tuple[float, float, float] | None:
    """Least, present and most clock of the GPU by devfreq; the widest range where there are several."""
    found = []
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        clocks = [_number(folder / name) for name in ("min_freq", "cur_freq", "max_freq")]
        if GPU_DEVICE.search(folder.name) and None not in clocks:
            found.append(tuple(float(one or 0) / 1e6 for one in clocks))
    return max(found, key=lambda one: one[2] - one[0], default=None)  # type: ignore[return-value]  # three each


def _gpu_users(root: Path) -> tuple[tuple[int, ...], int]:
    """Processes that have the GPU's device open, and how many may not be looked at."""
    found, hidden = [], 0
    for folder in sorted((root / "proc").glob("[0-9]*")):
        try:
            opened = [os.readlink(one) for one in (folder / "fd").iterdir()]
        except PermissionError:
            hidden += 1
            continue
        except OSError:  # it ended meanwhile
            continue
        if any(GPU_NODE.search(one) for one in opened):
            found.append(int(folder.name))
    return tuple(found), hidden


def _number(path: Path) -> int | None:
    text = read_text(path)
    return int(text) if text.isdigit() else None


def jetpack_of(l4t: str) -> str | None:
    """JetPack that a release of L4T belongs to; None for a series that is not known."""
    here = _numbers(l4t)
    before = [(first, jetpack) for first, jetpack in JETPACKS if _numbers(first) <= here]
    if not before or _numbers(before[-1][0])[0] != here[0]:
        return None
    return before[-1][1]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
