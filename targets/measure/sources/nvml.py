"""NVML: clocks, power, heat and throttling of an NVIDIA GPU. Not yet run on hardware.

Through the module pynvml of the package nvidia-ml-py where it can be imported. Bits of the clocks event reasons:
https://docs.nvidia.com/deploy/nvml-api (group nvmlClocksEventReasons).
"""

import os
from collections.abc import Callable
from typing import Any

REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clock",
}
REAL = frozenset(REASONS[bit] for bit in (0x4, 0x8, 0x20, 0x40, 0x80))
"""the GPU wanted to run faster and could not; the others are settings, or rest"""
_CLOCK_SM, _CLOCK_MEMORY, _TEMPERATURE_GPU = 1, 2, 0


class Nvml:
    """One GPU: the first of CUDA_VISIBLE_DEVICES, else number 0 of NVML."""

    name = "nvml"

    def __init__(self, library: Any = None) -> None:
        self.facts: dict[str, Any] = {}
        self.obstacle: str | None = None
        try:
            self._nvml = library or _import()
        except ImportError:
            self.obstacle = "pynvml is not installed (package nvidia-ml-py)"
            return
        try:
            self._nvml.nvmlInit()
            self._gpu = self._find()
        except self._nvml.NVMLError as error:
            self.obstacle = f"NVML does not start: {error}"
            return
        self._reasons = self._first(
            "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
        )
        limit = self._ask(self._nvml.nvmlDeviceGetEnforcedPowerLimit, self._gpu)
        self.facts = {
            "gpu": _text(self._ask(self._nvml.nvmlDeviceGetName, self._gpu)),
            "gpu_driver": _text(self._ask(self._nvml.nvmlSystemGetDriverVersion)),
            "gpu_power_limit_w": None if limit is None else limit / 1000,
        }

    def read(self) -> dict[str, Any]:
        """gpu_mhz, gpu_memory_mhz, gpu_power_w, gpu_energy_j, gpu_temperature_c, gpu_utilisation, gpu_reasons, ..."""
        nvml, gpu = self._nvml, self._gpu
        power_mw = self._ask(nvml.nvmlDeviceGetPowerUsage, gpu)
        energy_mj = self._ask(nvml.nvmlDeviceGetTotalEnergyConsumption, gpu)
        used = self._ask(nvml.nvmlDeviceGetUtilizationRates, gpu)
        bits = self._ask(self._reasons, gpu) if self._reasons else None
        found = {
            "gpu_mhz": self._ask(nvml.nvmlDeviceGetClockInfo, gpu, _CLOCK_SM),
            "gpu_memory_mhz": self._ask(nvml.nvmlDeviceGetClockInfo, gpu, _CLOCK_MEMORY),
            "gpu_power_w": None if power_mw is None else power_mw / 1000,
            "gpu_energy_j": None if energy_mj is None else energy_mj / 1000,
            "gpu_temperature_c": self._ask(nvml.nvmlDeviceGetTemperature, gpu, _TEMPERATURE_GPU),
            "gpu_utilisation": None if used is None else used.gpu / 100,
            "gpu_reasons": None if bits is None else decode(bits),
            "gpu_process_bytes": self._memory(),
        }
        return {name: value for name, value in found.items() if value is not None}

    def _memory(self) -> dict[str, int] | None:
        """Bytes by process id; where NVML tells none (Jetson, containers with their own ids), none is ours."""
        processes = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, self._gpu)
        if processes is None:
            return None
        return {str(one.pid): one.usedGpuMemory for one in processes if one.usedGpuMemory is not None}

    def _find(self) -> Any:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        if visible.startswith("GPU-"):
            return self._nvml.nvmlDeviceGetHandleByUUID(visible)
        return self._nvml.nvmlDeviceGetHandleByIndex(int(visible) if visible.isdigit() else 0)

    def _first(self, *names: str) -> Callable[..., Any] | None:
        """The first of these functions that this version of pynvml has."""
        return next((getattr(self._nvml, name) for name in names if hasattr(self._nvml, name)), None)

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What NVML tells; None where this GPU or driver does not."""
        try:
            return function(*arguments)
        except self._nvml.NVMLError:
            return None


def decode(bits: int) -> list[str]:
    """Words of the clocks event reasons; bits that have none keep their number."""
    unknown = bits & ~sum(REASONS)
    return [word for bit, word in REASONS.items() if bits & bit] + ([f"bits {unknown:#x}"] if unknown else [])


def _import() -> Any:
    import pynvml

    return pynvml


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
