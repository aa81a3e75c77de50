"""Sources read other machines from files and injected libraries; what is not told is left out, with the reason."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from targets.measure.sampler import all_sources
from targets.measure.sources.cpu import Cpu
from targets.measure.sources.ina3221 import Ina3221
from targets.measure.sources.jetson import Jetson, power_mode
from targets.measure.sources.nvml import REAL, REASONS, Nvml, decode
from targets.measure.sources.rapl import Rapl
from targets.measure.sources.thermal import Thermal

Machine = Callable[[dict[str, object]], Path]
ORIN = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
XAVIER = "sys/bus/i2c/drivers/ina3221x/1-0040/iio:device0"


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


def rail(folder: str, channel: int, label: str, millivolts: int, milliamperes: int) -> dict[str, object]:
    return {
        f"{folder}/in{channel}_label": label,
        f"{folder}/in{channel}_input": millivolts,
        f"{folder}/curr{channel}_input": milliamperes,
    }


class Gpu:
    """Stands for pynvml: what is missing raises, as on hardware that does not support it."""

    class NVMLError(Exception):
        pass

    def __init__(self, **told: Any) -> None:
        self.told = told

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name == "nvmlDeviceGetCurrentClocksEventReasons" and "old" in self.told:
            raise AttributeError(name)

        def answer(*arguments: Any) -> Any:
            if name in ("nvmlInit", "nvmlDeviceGetHandleByIndex"):
                return None
            key = f"{name}_{arguments[1]}" if name == "nvmlDeviceGetClockInfo" else name
            if key not in self.told:
                raise self.NVMLError(f"{name} is not supported")
            return self.told[key]

        return answer


FULL_GPU: dict[str, Any] = {
    "nvmlDeviceGetName": b"NVIDIA L4",
    "nvmlSystemGetDriverVersion": "580.1",
    "nvmlDeviceGetEnforcedPowerLimit": 72_000,
    "nvmlDeviceGetPowerUsage": 61_500,
    "nvmlDeviceGetTotalEnergyConsumption": 1_234_567,
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97),
    "nvmlDeviceGetCurrentClocksEventReasons": 0x24,
    "nvmlDeviceGetClockInfo_1": 1500,
    "nvmlDeviceGetClockInfo_2": 6251,
    "nvmlDeviceGetTemperature": 71,
    "nvmlDeviceGetComputeRunningProcesses": [
        SimpleNamespace(pid=7, usedGpuMemory=2**20),
        SimpleNamespace(pid=8, usedGpuMemory=None),
    ],
}


def test_a_machine_that_tells_nothing_has_a_reason_for_every_source(machine: Machine) -> None:
    for source in all_sources(machine({})):
        if source.name != "nvml":
            assert source.obstacle, source.name
            assert source.read() == {}
            assert source.facts == {}


def test_the_clock_is_that_of_the_fastest_usable_core(machine: Machine) -> None:
    mine = min(os.sched_getaffinity(0))
    cpu = "sys/devices/system/cpu"
    source = Cpu(
        machine(
            {
                f"{cpu}/cpu{mine}/cpufreq/scaling_cur_freq": 1_800_000,
                f"{cpu}/cpu4095/cpufreq/scaling_cur_freq": 5_000_000,
                f"{cpu}/cpu4095/thermal_throttle/core_throttle_count": 4,
            }
        )
    )

    assert source.obstacle is None
    assert source.read() == {"cpu_mhz": 1800, "cpu_throttle_count": 4}


def test_the_hottest_zone_counts_and_one_that_is_off_does_not(machine: Machine) -> None:
    zones = "sys/class/thermal"
    source = Thermal(
        machine(
            {
                f"{zones}/thermal_zone0/temp": 45_500,
                f"{zones}/thermal_zone0/type": "cpu-thermal",
                f"{zones}/thermal_zone1/temp": 51_000,
                f"{zones}/thermal_zone2/temp": "",
            }
        )
    )

    assert source.read() == {"temperature_c": 51.0}
    assert source.facts == {"thermal_zones": ["cpu-thermal", "thermal_zone1"]}


def test_energy_counters_are_added_up_and_wrap_around(machine: Machine) -> None:
    first, second = "sys/class/powercap/intel-rapl:0", "sys/class/powercap/intel-rapl:1"
    start: dict[str, object] = {f"{first}/name": "package-0", f"{second}/name": "package-1"}
    start |= {f"{one}/max_energy_range_uj": 10_000_000 for one in (first, second)}
    start |= {"sys/class/powercap/intel-rapl:0:0/name": "core", "sys/class/powercap/intel-rapl:0:0/energy_uj": 5}
    root = machine({**start, f"{first}/energy_uj": 9_000_000, f"{second}/energy_uj": 1_000_000})
    source = Rapl(root)

    assert source.read() == {"cpu_energy_j": 0}
    machine({f"{first}/energy_uj": 500_000, f"{second}/energy_uj": 1_250_000})
    assert source.read() == {"cpu_energy_j": pytest.approx(1.5 + 0.25)}
    machine({f"{first}/energy_uj": 1_500_000})
    assert source.read() == {"cpu_energy_j": pytest.approx(2.75)}


def test_energy_counters_that_only_root_may_read_are_said_to_be_so(machine: Machine) -> None:
    source = Rapl(machine({"sys/class/powercap/intel-rapl:0/name": "package-0"}))

    assert source.obstacle is not None
    assert "root" in source.obstacle


def test_a_module_with_a_total_rail_has_its_power_from_there(machine: Machine) -> None:
    files = rail(ORIN, 1, "VDD_IN", 5000, 2400) | rail(ORIN, 2, "VDD_CPU_GPU_CV", 5000, 1000)
    files |= rail(ORIN, 3, "NC", 5000, 9) | {f"{ORIN}/in7_label": "sum of shunt voltages", f"{ORIN}/in7_input": 3}
    source = Ina3221(machine(files))

    assert source.read() == {"board_power_w": 12.0, "board_rails_w": {"VDD_IN": 12.0, "VDD_CPU_GPU_CV": 5.0}}
    assert source.facts == {"board_power": "VDD_IN"}


def test_a_module_without_a_total_rail_has_the_sum_and_says_so(machine: Machine) -> None:
    source = Ina3221(machine(rail(ORIN, 1, "VDD_GPU_SOC", 5000, 2000) | rail(ORIN, 2, "VDD_CPU_CV", 5000, 400)))

    assert source.read()["board_power_w"] == pytest.approx(12.0)
    assert "sum of VDD_CPU_CV + VDD_GPU_SOC" in source.facts["board_power"]


def test_rails_of_older_kernels_are_read(machine: Machine) -> None:
    names = {"rail_name_0": "POM_5V_IN", "in_voltage0_input": 5000, "in_current0_input": 700}
    source = Ina3221(machine({f"{XAVIER}/{name}": content for name, content in names.items()}))

    assert source.read()["board_power_w"] == pytest.approx(3.5)


def test_a_jetson_tells_its_power_mode_gpu_clock_and_over_current_events(machine: Machine) -> None:
    root = machine(
        {
            "var/lib/nvpmodel/status": "pmode:0002",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=MODE_15W >",
            "sys/class/devfreq/17000000.gpu/cur_freq": 612_000_000,
            "sys/class/devfreq/15340000.vic/cur_freq": 115_200_000,
            "sys/class/hwmon/hwmon1/oc1_event_cnt": 2,
            "sys/class/hwmon/hwmon1/oc3_event_cnt": 3,
        }
    )
    source = Jetson(root)

    assert source.facts == {"power_mode": "2 MODE_15W"}
    assert source.read() == {"gpu_mhz": 612.0, "overcurrent_count": 5}
    (root / "etc/nvpmodel.conf").unlink()
    assert power_mode(root) == "2"


def test_a_gpu_tells_everything_in_its_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    source = Nvml(Gpu(**FULL_GPU))

    assert source.facts == {"gpu": "NVIDIA L4", "gpu_driver": "580.1", "gpu_power_limit_w": 72}
    assert source.read() == {
        "gpu_mhz": 1500,
        "gpu_memory_mhz": 6251,
        "gpu_power_w": 61.5,
        "gpu_energy_j": pytest.approx(1234.567),
        "gpu_temperature_c": 71,
        "gpu_utilisation": 0.97,
        "gpu_reasons": ["software power cap", "software thermal slowdown"],
        "gpu_process_bytes": {"7": 2**20},
    }


def test_an_older_pynvml_tells_throttle_reasons_by_their_former_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    source = Nvml(Gpu(old=True, nvmlDeviceGetCurrentClocksThrottleReasons=0x1))

    assert source.read() == {"gpu_reasons": ["idle"]}


def test_a_driver_that_does_not_start_is_a_reason_and_not_an_error() -> None:
    class Broken(Gpu):
        def nvmlInit(self) -> None:  # noqa: N802  # NVML's name
            raise self.NVMLError("Driver Not Loaded")

    assert Nvml(Broken()).obstacle == "NVML does not start: Driver Not Loaded"


def test_only_what_the_gpu_did_not_want_is_throttling() -> None:
    assert {bit for bit, word in REASONS.items() if word in REAL} == {0x4, 0x8, 0x20, 0x40, 0x80}
    assert decode(0x48) == ["hardware slowdown", "hardware thermal slowdown"]
    assert decode(0x200) == ["bits 0x200"]
    assert decode(0) == []
