"""Processor: clocks and throttle counters, from cpufreq and thermal_throttle of the kernel."""

import os
from pathlib import Path
from typing import Any

from targets.facts import ROOT, read_text

_COUNTERS = ("core_throttle_count", "package_throttle_count")


class Cpu:
    """Clock of the fastest core that this process may use, and how often any core was throttled since the start.

    /proc/cpuinfo is not read: on large machines it takes milliseconds and wakes every core.
    """

    name = "cpu"

    def __init__(self, root: Path = ROOT) -> None:
        folders = cpu_folders(root)
        usable = [folder for folder in folders if int(folder.name[3:]) in _affinity()] or folders
        self._clocks = [path for folder in usable if is_number(path := folder / "cpufreq/scaling_cur_freq")]
        self._counters = counter_files(folders)
        self.facts: dict[str, Any] = {}
        self.obstacle = None
        if not self._clocks and not self._counters:
            self.obstacle = "the kernel shows neither clocks nor throttle counters (cpufreq, thermal_throttle)"

    def read(self) -> dict[str, Any]:
        """cpu_mhz, cpu_throttle_count."""
        found: dict[str, Any] = {}
        clocks = numbers(self._clocks)
        if clocks:
            found["cpu_mhz"] = max(clocks) / 1000
        counts = numbers(self._counters)
        if counts:
            found["cpu_throttle_count"] = sum(counts)
        return found


def cpu_folders(root: Path) -> list[Path]:
    """Folder of each core."""
    return sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*"))


def counter_files(folders: list[Path]) -> list[Path]:
    """Files that count how often a core or its package was throttled."""
    return [path for folder in folders for name in _COUNTERS if is_number(path := folder / "thermal_throttle" / name)]


def is_number(path: Path) -> bool:
    """Whether a file of the kernel holds a whole number now."""
    return read_text(path).lstrip("-").isdigit()


def numbers(paths: list[Path]) -> list[int]:
    """What the files hold, without those that cannot be read now."""
    texts = [read_text(path) for path in paths]
    return [int(text) for text in texts if text.lstrip("-").isdigit()]


def _affinity() -> set[int]:
    try:
        return set(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return set()
