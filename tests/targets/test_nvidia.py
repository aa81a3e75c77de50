"""Reading NVIDIA GPUs: through a module like NVML, through what nvidia-smi prints, and where neither answers."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from targets.nvidia import read_gpus, run_command

UUID = "GPU-1b2c"
HEADER = "| NVIDIA-SMI 580.65.06    Driver Version: 580.65.06    CUDA Version: 13.0  |"
ROW = f"{UUID}, NVIDIA L4, 8.9, 580.65.06, 23034, 512, 41, 300, 2040, 0x0000000000000000"


class Nvml:
    """What nvidia-ml-py offers, for one card; `lacks`: functions that answer with an error, or are not there."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, bits: int = 0, lacks: Sequence[str] = (), broken: bool = False) -> None:
        self.bits, self.lacks, self.broken, self.closed = bits, lacks, broken, False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers = {
            "nvmlSystemGetDriverVersion": "580.65.06",
            "nvmlSystemGetCudaDriverVersion": 13000,
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetName": b"NVIDIA L4",
            "nvmlDeviceGetCudaComputeCapability": (8, 9),
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=24 * 2**30, used=2**29),
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=7), SimpleNamespace(pid=8)],
            "nvmlDeviceGetCurrentClocksEventReasons": self.bits,
            "nvmlDeviceGetCurrentClocksThrottleReasons": self.bits,
            "nvmlDeviceGetTemperature": 41,
            "nvmlDeviceGetClockInfo": 300,
            "nvmlDeviceGetMaxClockInfo": 2040,
        }

        def answer(*arguments: Any) -> Any:
            if name == "nvmlInit":
                if self.broken:
                    raise self.NVMLError("Driver Not Loaded")
                return None
            if name == "nvmlShutdown":
                self.closed = True
                return None
            if name in self.lacks:
                raise self.NVMLError("Not Supported")
            return answers[name]

        return answer


def smi(*, rows: str = ROW, apps: str = "", newest: bool = True) -> Callable[[Sequence[str]], str | None]:
    """nvidia-smi; an old one does not know clocks_event_reasons and fails."""

    def run(words: Sequence[str]) -> str | None:
        assert words[0] == "nvidia-smi"
        if len(words) == 1:
            return HEADER
        if "compute-apps" in words[1]:
            return apps
        return rows if newest or "throttle" in words[1] else None

    return run


def nothing(words: Sequence[str]) -> None:
    return None


def test_nvml_tells_everything() -> None:
    nvml = Nvml(bits=0x40 | 0x4 | 0x1)
    reading = read_gpus(nothing, lambda: nvml)
    (gpu,) = reading.gpus

    assert (reading.how, reading.driver, reading.cuda) == ("NVML", "580.65.06", "13.0")
    assert (gpu.name, gpu.compute_capability, gpu.memory_bytes) == ("NVIDIA L4", "8.9", 24 * 2**30)
    assert gpu.processes == (7, 8)
    assert gpu.slowed_by == ("power cap", "heat (hardware)")
    assert (gpu.temperature_c, gpu.clock_mhz, gpu.clock_max_mhz) == (41, 300, 2040)
    assert nvml.closed


@pytest.mark.parametrize("bits", [0x1, 0x2, 0x100, 0x0])
def test_idle_locked_and_display_clocks_are_no_throttling(bits: int) -> None:
    (gpu,) = read_gpus(nothing, lambda: Nvml(bits=bits)).gpus

    assert gpu.slowed_by == ()


def test_what_a_card_does_not_tell_is_none() -> None:
    lacks = ["nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetTemperature", "nvmlSystemGetCudaDriverVersion"]
    reasons = ["nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"]
    reading = read_gpus(nothing, lambda: Nvml(lacks=[*lacks, *reasons]))
    (gpu,) = reading.gpus

    assert (reading.cuda, gpu.processes, gpu.temperature_c, gpu.slowed_by) == (None, None, None, None)


def test_an_older_driver_calls_the_reasons_by_another_name() -> None:
    nvml = Nvml(bits=0x8, lacks=["nvmlDeviceGetCurrentClocksEventReasons"])

    assert read_gpus(nothing, lambda: nvml).gpus[0].slowed_by == ("hardware slowdown",)


@pytest.mark.parametrize("newest", [True, False])
@pytest.mark.parametrize("module", [None, Nvml(broken=True)], ids=["absent", "no driver"])
def test_nvidia_smi_answers_where_nvml_does_not(module: Any, newest: bool) -> None:
    apps = f"{UUID}, 123\nGPU-other, 9\n{UUID}, 124\n"
    reading = read_gpus(smi(apps=apps, newest=newest), lambda: module)
    (gpu,) = reading.gpus

    assert (reading.how, reading.driver, reading.cuda) == ("nvidia-smi", "580.65.06", "13.0")
    assert (gpu.name, gpu.compute_capability, gpu.memory_bytes) == ("NVIDIA L4", "8.9", 23034 * 2**20)
    assert gpu.processes == (123, 124)
    assert gpu.slowed_by == ()


def test_nvidia_smi_that_tells_little_is_read_as_far_as_it_goes() -> None:
    row = f"{UUID}, Orin (nvgpu), [N/A], 540.4.0, [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]\nhalf, a line\n"
    (gpu,) = read_gpus(smi(rows=row), lambda: None).gpus

    assert gpu.name == "Orin (nvgpu)"
    assert (gpu.compute_capability, gpu.memory_bytes, gpu.temperature_c, gpu.slowed_by) == (None, None, None, None)


def test_where_neither_answers_the_reason_is_told() -> None:
    reading = read_gpus(nothing, lambda: None)
    broken = read_gpus(nothing, lambda: Nvml(broken=True))

    assert (reading.how, reading.gpus) == ("", ())
    assert reading.why_not == "nvidia-ml-py is not installed, and nvidia-smi is not there or fails"
    assert "Driver Not Loaded" in broken.why_not


def test_a_command_that_is_not_there_or_fails_gives_none() -> None:
    assert run_command(["no-such-command-here"]) is None
    assert run_command(["false"]) is None
    assert run_command(["echo", "yes"]) == "yes\n"
