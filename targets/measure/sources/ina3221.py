"""INA3221: the power monitors of Jetson modules, through sysfs. Not yet run on hardware.

Two layouts: hwmon (in1_label, in1_input in mV, curr1_input in mA), and iio of older kernels (rail_name_0,
in_voltage0_input in mV, in_current0_input in mA).
"""

from pathlib import Path
from typing import Any

from targets.facts import ROOT, read_text

DRIVERS = "sys/bus/i2c/drivers"
TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")
"""rails that the whole module draws from; the first that is there is the total, else the sum of all rails"""


class Ina3221:
    """Watts of the module."""

    name = "ina3221"

    def __init__(self, root: Path = ROOT) -> None:
        self._rails = _rails(root / DRIVERS)
        total = next((name for name in TOTALS if name in self._rails), None)
        self._counted = [total] if total else sorted(self._rails)
        self.facts: dict[str, Any] = {}
        if self._rails:
            self.facts["board_power"] = total or (
                f"sum of {' + '.join(self._counted)}; counts twice what one of them feeds to another"
            )
        self.obstacle = None if self._rails else "no INA3221 power monitor (those of Jetson modules)"

    def read(self) -> dict[str, Any]:
        """board_power_w, board_rails_w; no total while one of its rails cannot be read."""
        watts = {name: value for name, files in self._rails.items() if (value := _watts(*files)) is not None}
        found: dict[str, Any] = {"board_rails_w": watts} if watts else {}
        if self._counted and all(name in watts for name in self._counted):
            found["board_power_w"] = sum(watts[name] for name in self._counted)
        return found


def _rails(drivers: Path) -> dict[str, tuple[Path, Path]]:
    """Files of voltage (mV) and current (mA) by the rail's name."""
    found = {}
    for label in sorted(drivers.glob("ina3221*/*/hwmon/hwmon*/in[0-9]*_label")):
        channel = label.name[2:].partition("_")[0]
        found[read_text(label)] = (label.with_name(f"in{channel}_input"), label.with_name(f"curr{channel}_input"))
    for label in sorted(drivers.glob("ina3221*/*/iio:device*/rail_name_*")):
        channel = label.name.rpartition("_")[2]
        files = (label.with_name(f"in_{kind}{channel}_input") for kind in ("voltage", "current"))
        found[read_text(label)] = (next(files), next(files))
    # "sum of shunt voltages" is a channel without a current, NC one that is not connected.
    return {name: files for name, files in found.items() if name not in ("", "NC") and _watts(*files) is not None}


def _watts(millivolts: Path, milliamperes: Path) -> float | None:
    texts = read_text(millivolts), read_text(milliamperes)
    if not all(text.lstrip("-").isdigit() for text in texts):
        return None
    return int(texts[0]) * int(texts[1]) / 1e6
