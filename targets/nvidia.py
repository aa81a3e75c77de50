"""What NVIDIA's driver tells of its GPUs now: through NVML, else through nvidia-smi, else nothing, with the reason.

Standard library only; nvidia-ml-py (module pynvml) is used where it is installed. Where a value is not told it is None.
"""

import importlib
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Run = Callable[[Sequence[str]], str | None]
"""standard output of a command; None where it is not there or fails"""

SLOWED = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}
"""bits of NVML's clocks event reasons that make a measurement void; idle, locked and display clocks are normal"""

_QUERY = (
    "uuid,name,compute_cap,driver_version,memory.total,memory.used,temperature.gpu,clocks.sm,clocks.max.sm,"
    "clocks_{}_reasons.active"
)
_OLDER = "throttle"
"""what drivers before 535 call `event`"""


@dataclass(frozen=True, kw_only=True)
class GpuNow:
    """One GPU, as it is now."""

    name: str
    compute_capability: str | None
    memory_bytes: int | None
    memory_used_bytes: int | None
    processes: tuple[int, ...] | None
    """ids of the processes that compute on it"""
    slowed_by: tuple[str, ...] | None
    temperature_c: int | None
    clock_mhz: int | None
    clock_max_mhz: int | None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What could be read, and how."""

    how: str
    """NVML or nvidia-smi; empty where neither answered"""
    why_not: str = ""
    driver: str | None = None
    cuda: str | None = None
    """newest CUDA that the driver supports"""
    gpus: tuple[GpuNow, ...] = ()


def run_command(words: Sequence[str]) -> str | None:
    """Standard output of a command; None where it is not there, fails, or takes longer than ten seconds."""
    try:
        return subprocess.run(list(words), capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def import_nvml() -> Any | None:
    """The module pynvml; None where it is not installed."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


def is_called(device: str, name: str) -> bool:
    """Whether NVML's name of a device holds the words, and not those of a variant: 4090, not 4090 Laptop or 4090 D."""
    words = re.escape(name).replace(r"\ ", r"[\s-]+")
    return (
        re.search(rf"(?<![\w-]){words}(?![\w])(?![\s-]+(?:laptop|ti|super|d|max-q)\b)", device, re.IGNORECASE)
        is not None
    )


def read_gpus(run: Run = run_command, nvml: Callable[[], Any | None] = import_nvml) -> Reading:
    """Look at the GPUs now."""
    module = nvml()
    if module is None:
        reason = "nvidia-ml-py is not installed"
    else:
        try:
            return _through_nvml(module)
        except (module.NVMLError, AttributeError) as error:  # no driver; or a module of that name that is not NVIDIA's
            reason = f"NVML does not answer ({error})"
    reading = _through_smi(run)
    return reading or Reading(how="", why_not=f"{reason}, and nvidia-smi is not there or fails")


def _through_nvml(nvml: Any) -> Reading:
    nvml.nvmlInit()
    try:
        version = _told(nvml, nvml.nvmlSystemGetCudaDriverVersion)  # 13000: 13.0
        return Reading(
            how="NVML",
            driver=_told(nvml, nvml.nvmlSystemGetDriverVersion),
            cuda=f"{version // 1000}.{version % 1000 // 10}" if version else None,
            gpus=tuple(
                _gpu_of_nvml(nvml, nvml.nvmlDeviceGetHandleByIndex(index)) for index in range(nvml.nvmlDeviceGetCount())
            ),
        )
    finally:
        nvml.nvmlShutdown()


def _gpu_of_nvml(nvml: Any, handle: Any) -> GpuNow:
    def told(name: str, *arguments: Any) -> Any:
        return _told(nvml, getattr(nvml, name, None), handle, *arguments)

    capability, memory = told("nvmlDeviceGetCudaComputeCapability"), told("nvmlDeviceGetMemoryInfo")
    processes = told("nvmlDeviceGetComputeRunningProcesses")
    bits = told("nvmlDeviceGetCurrentClocksEventReasons")
    if bits is None:
        bits = told("nvmlDeviceGetCurrentClocksThrottleReasons")  # drivers before 535
    name = told("nvmlDeviceGetName")
    return GpuNow(
        name=name.decode() if isinstance(name, bytes) else str(name or "unknown"),
        compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        memory_bytes=None if memory is None else int(memory.total),
        memory_used_bytes=None if memory is None else int(memory.used),
        processes=None if processes is None else tuple(int(one.pid) for one in processes),
        slowed_by=None if bits is None else _slowed_by(int(bits)),
        temperature_c=told("nvmlDeviceGetTemperature", 0),  # NVML_TEMPERATURE_GPU
        clock_mhz=told("nvmlDeviceGetClockInfo", 1),  # NVML_CLOCK_SM
        clock_max_mhz=told("nvmlDeviceGetMaxClockInfo", 1),
    )


def _told(nvml: Any, ask: Callable[..., Any] | None, *arguments: Any) -> Any:
    """What a function of NVML answers; None where this driver or board does not."""
    if ask is None:
        return None
    try:
        return ask(*arguments)
    except nvml.NVMLError:
        return None


def _through_smi(run: Run) -> Reading | None:
    table, header = None, run(["nvidia-smi"])
    for word in ("event", _OLDER):
        query = f"--query-gpu={_QUERY.format(word)}"
        table = table or run(["nvidia-smi", query, "--format=csv,noheader,nounits"])
    if table is None:
        return None
    rows = [[cell.strip() for cell in line.split(",")] for line in table.splitlines() if line.strip()]
    rows = [row for row in rows if len(row) == _QUERY.count(",") + 1]
    apps = run(["nvidia-smi", "--query-compute-apps=gpu_uuid,pid", "--format=csv,noheader,nounits"])
    cuda = re.search(r"CUDA Version:\s*(\d+\.\d+)", header or "")
    return Reading(
        how="nvidia-smi",
        driver=rows[0][3] if rows else None,
        cuda=cuda.group(1) if cuda else None,
        gpus=tuple(_gpu_of_smi(row, apps) for row in rows),
    )


def _gpu_of_smi(row: list[str], apps: str | None) -> GpuNow:
    uuid, name, capability, _, total, used, temperature, clock, clock_max, bits = row
    pids = None if apps is None else re.findall(rf"^{re.escape(uuid)}\s*,\s*(\d+)", apps, re.MULTILINE)
    return GpuNow(
        name=name,
        compute_capability=capability if re.fullmatch(r"\d+\.\d+", capability) else None,
        memory_bytes=_number(total, 2**20),
        memory_used_bytes=_number(used, 2**20),
        processes=None if pids is None else tuple(map(int, pids)),
        slowed_by=_slowed_by(int(bits, 16)) if re.fullmatch(r"0x[0-9a-fA-F]+", bits) else None,
        temperature_c=_number(temperature),
        clock_mhz=_number(clock),
        clock_max_mhz=_number(clock_max),
    )


def _number(text: str, unit: int = 1) -> int | None:
    """A whole number; None for `[N/A]` and the like, which boards answer that do not tell."""
    return int(text) * unit if text.isdigit() else None


def _slowed_by(bits: int) -> tuple[str, ...]:
    return tuple(reason for bit, reason in SLOWED.items() if bits & bit)
