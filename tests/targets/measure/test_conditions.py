"""Conditions of a measurement, read from files of other machines."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from targets.measure.conditions import read_conditions

Machine = Callable[..., Path]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """machine({path: content}): the root of another machine's file system."""

    def make(files: dict[str, object]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        return tmp_path

    return make


def test_this_machine_tells_its_conditions_as_json() -> None:
    found = read_conditions()

    assert json.loads(json.dumps(found)) == found
    assert len(found["load_average"]) == 3
    assert found["memory_available_bytes"] > 0


def test_a_machine_that_tells_nothing_has_conditions_of_none(machine: Machine) -> None:
    found = read_conditions(machine({}))

    for name in ("governors", "frequency_mhz", "frequency_limit_mhz", "turbo", "throttle_count", "temperature_c"):
        assert found[name] is None, name


def test_clocks_governors_and_heat_are_read(machine: Machine) -> None:
    cpu = "sys/devices/system/cpu"
    found = read_conditions(
        machine(
            {
                f"{cpu}/cpu0/cpufreq/scaling_cur_freq": 1_000_000,
                f"{cpu}/cpu1/cpufreq/scaling_cur_freq": 3_000_000,
                f"{cpu}/cpu2/cpufreq/scaling_cur_freq": 1_500_000,
                f"{cpu}/cpu0/cpufreq/scaling_max_freq": 4_000_000,
                f"{cpu}/cpu0/cpufreq/scaling_governor": "powersave",
                f"{cpu}/cpu1/cpufreq/scaling_governor": "performance",
                f"{cpu}/cpu2/cpufreq/scaling_governor": "powersave",
                "sys/class/thermal/thermal_zone0/temp": 41_500,
                "sys/class/thermal/thermal_zone1/temp": 77_000,
                "proc/meminfo": "MemAvailable:    2048 kB",
            }
        )
    )

    assert found["frequency_mhz"] == {"min": 1000, "median": 1500, "max": 3000}
    assert found["frequency_limit_mhz"] == {"min": 4000, "median": 4000, "max": 4000}
    assert found["governors"] == {"powersave": 2, "performance": 1}
    assert found["temperature_c"] == 77
    assert found["memory_available_bytes"] == 2 * 2**20


@pytest.mark.parametrize(
    ("file", "content", "turbo"),
    [("intel_pstate/no_turbo", 0, True), ("intel_pstate/no_turbo", 1, False), ("cpufreq/boost", 1, True)],
)
def test_turbo_is_read_on_intel_and_elsewhere(file: str, content: int, turbo: bool, machine: Machine) -> None:
    assert read_conditions(machine({f"sys/devices/system/cpu/{file}": content}))["turbo"] is turbo


def test_how_often_a_processor_slowed_itself_down_is_read(machine: Machine) -> None:
    folder = "sys/devices/system/cpu/cpu0/thermal_throttle"
    found = read_conditions(machine({f"{folder}/core_throttle_count": 5, f"{folder}/package_throttle_count": 2}))

    assert found["throttle_count"] == 7
