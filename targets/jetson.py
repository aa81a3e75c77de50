"""What a Jetson tells of itself: module, L4T and with it JetPack, power mode. Standard library only."""

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


def jetpack_of(l4t: str) -> str | None:
    """JetPack that a release of L4T belongs to; None for a series that is not known."""
    here = _numbers(l4t)
    before = [(first, jetpack) for first, jetpack in JETPACKS if _numbers(first) <= here]
    if not before or _numbers(before[-1][0])[0] != here[0]:
        return None
    return before[-1][1]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
