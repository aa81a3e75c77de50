"""In what conditions something was measured: clocks, governor, load, throttling, limits of the container.

Everything is read from the kernel's files; what a machine does not tell is None.
"""

import os
import statistics
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from targets.facts import ROOT, cpu_quota, read_text, usable_cores
from targets.measure.sources.cpu import counter_files, cpu_folders, numbers
from targets.measure.sources.thermal import Thermal


def read_conditions(root: Path = ROOT) -> dict[str, Any]:
    """Look at the machine now: plain JSON."""
    cpus = cpu_folders(root)
    frequencies = [one / 1000 for one in numbers([cpu / "cpufreq/scaling_cur_freq" for cpu in cpus])]
    limits = [one / 1000 for one in numbers([cpu / "cpufreq/scaling_max_freq" for cpu in cpus])]
    governors = Counter(text for cpu in cpus if (text := read_text(cpu / "cpufreq/scaling_governor")))
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load_average": list(os.getloadavg()),
        "cores": usable_cores(root),
        "affinity": sorted(os.sched_getaffinity(0)),
        "cpu_quota": cpu_quota(root),
        "memory_available_bytes": _memory_available(root),
        "governors": dict(governors) or None,
        "frequency_mhz": _spread(frequencies or _frequencies_of_cpuinfo(root)),
        "frequency_limit_mhz": _spread(limits),
        "turbo": _turbo(root),
        "throttle_count": sum(numbers(counters)) if (counters := counter_files(cpus)) else None,
        "temperature_c": Thermal(root).read().get("temperature_c"),
    }


def _memory_available(root: Path) -> int | None:
    for line in read_text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _frequencies_of_cpuinfo(root: Path) -> list[float]:
    lines = read_text(root / "proc/cpuinfo").splitlines()
    return [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def _turbo(root: Path) -> bool | None:
    intel = read_text(root / "sys/devices/system/cpu/intel_pstate/no_turbo")
    other = read_text(root / "sys/devices/system/cpu/cpufreq/boost")
    if intel:
        return intel == "0"
    return other == "1" if other else None
