"""Thermal zones of the kernel: the hottest one."""

from pathlib import Path
from typing import Any

from targets.facts import ROOT, read_text
from targets.measure.sources.cpu import is_number, numbers


class Thermal:
    """Degrees Celsius of the hottest zone; zones of what is switched off cannot be read and are left out."""

    name = "thermal"

    def __init__(self, root: Path = ROOT) -> None:
        zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
        self._files = [zone / "temp" for zone in zones if is_number(zone / "temp")]
        self.facts: dict[str, Any] = {}
        if self._files:
            self.facts["thermal_zones"] = [read_text(file.parent / "type") or file.parent.name for file in self._files]
        self.obstacle = None if self._files else "the kernel shows no thermal zone"

    def read(self) -> dict[str, Any]:
        """temperature_c."""
        found = numbers(self._files)
        return {"temperature_c": max(found) / 1000} if found else {}
