"""RAPL: energy counters of x86 packages, without memory. Most kernels let only root read them; they wrap around."""

from pathlib import Path
from typing import Any

from targets.facts import ROOT, read_text


class Rapl:
    """Joules that all packages used since this object was made: a number that only grows."""

    name = "rapl"

    def __init__(self, root: Path = ROOT) -> None:
        zones = sorted((root / "sys/class/powercap").glob("*rapl:[0-9]*"))
        packages = [
            zone for zone in zones if zone.name.count(":") == 1 and read_text(zone / "name").startswith("package")
        ]
        self._zones = [zone for zone in packages if read_text(zone / "energy_uj").isdigit()]
        self._range = [int(read_text(zone / "max_energy_range_uj") or 0) for zone in self._zones]
        self._last = [int(read_text(zone / "energy_uj")) for zone in self._zones]
        self._used_uj = 0
        self.facts: dict[str, Any] = {"cpu_energy": "packages, without memory (RAPL)"} if self._zones else {}
        self.obstacle = None
        if not packages:
            self.obstacle = "the kernel shows no RAPL packages"
        elif not self._zones:
            self.obstacle = "energy_uj of RAPL may be read by root only; run as root, or make it readable"

    def read(self) -> dict[str, Any]:
        """cpu_energy_j; nothing while any package cannot be read, for a sum without it would be wrong."""
        texts = [read_text(zone / "energy_uj") for zone in self._zones]
        if not texts or not all(text.isdigit() for text in texts):
            return {}
        for index, now in enumerate(map(int, texts)):
            step = now - self._last[index]
            self._used_uj += step if step >= 0 else step + self._range[index]
            self._last[index] = now
        return {"cpu_energy_j": self._used_uj / 1e6}
