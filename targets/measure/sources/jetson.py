"""Jetson beside its power monitors: power mode, clock of the GPU, over-current events. Not yet run on hardware."""

import re
from pathlib import Path
from typing import Any

from targets.facts import ROOT, read_text
from targets.jetson import GPU_DEVICE
from targets.measure.sources.cpu import is_number, numbers

_MODE = re.compile(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)")


class Jetson:
    """What the board's own files tell."""

    name = "jetson"

    def __init__(self, root: Path = ROOT) -> None:
        devices = sorted((root / "sys/class/devfreq").glob("*"))
        self._clocks = [
            one / "cur_freq" for one in devices if GPU_DEVICE.search(one.name) and is_number(one / "cur_freq")
        ]
        events = sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt"))
        self._events = [file for file in events if is_number(file)]
        mode = power_mode(root)
        self.facts: dict[str, Any] = {"power_mode": mode} if mode else {}
        self.obstacle = None
        if not (self._clocks or self._events or mode):
            self.obstacle = "no Jetson: neither nvpmodel, nor a GPU in devfreq, nor over-current counters"

    def read(self) -> dict[str, Any]:
        """gpu_mhz, overcurrent_count."""
        clocks, events = numbers(self._clocks), numbers(self._events)
        found: dict[str, Any] = {"gpu_mhz": max(clocks) / 1e6} if clocks else {}
        return found | ({"overcurrent_count": sum(events)} if events else {})


def power_mode(root: Path) -> str | None:
    """Number and name of the nvpmodel mode in force: `2 MODE_15W`; only the number where its name is not known."""
    told = re.search(r"pmode:0*(\d+)", read_text(root / "var/lib/nvpmodel/status"))
    if told is None:
        return None
    names = {int(number): name for number, name in _MODE.findall(read_text(root / "etc/nvpmodel.conf"))}
    number = int(told[1])
    return f"{number} {names[number]}" if number in names else str(number)
