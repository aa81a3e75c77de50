"""Where the doctor gets its facts: this machine's, which a test replaces by those of another one."""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.doctor.providers import try_providers
from targets.agent.cores import allowed_cores
from targets.facts import ROOT, installed_version, probe
from targets.jetson import Jetson, JetsonNow, read_jetson, read_jetson_now
from targets.measure.conditions import read_conditions
from targets.nvidia import Reading, Run, read_gpus, run_command
from targets.runtimes.intel.devices import Listed, Missing, list_devices, why_missing
from targets.runtimes.nvidia.trial import tensorrt_obstacle


def package_version(distribution: str) -> str | None:
    """Version of an installed distribution; None where there is none. Imports nothing."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def free_bytes(folder: Path) -> int:
    """Free space of the disk that holds a folder, or would."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@dataclass(frozen=True, kw_only=True)
class Sources:
    """One function for each kind of fact."""

    probe: Callable[[], dict[str, Any]] = probe
    conditions: Callable[[], dict[str, Any]] = read_conditions
    gpus: Callable[[], Reading] = read_gpus
    jetson: Callable[[], Jetson | None] = read_jetson
    jetson_now: Callable[[], JetsonNow] = read_jetson_now
    tensorrt: Callable[[str, str | None], str | None] = tensorrt_obstacle
    """why a TensorRT does not work, by runtime and compute capability; None for other runtimes"""
    allowed: Callable[[], set[int]] = allowed_cores
    """logical processors that this process may use"""
    package: Callable[[str], str | None] = package_version
    runtime: Callable[[str], str | None] = installed_version
    """installed version by runtime"""
    providers: Callable[[], Mapping[str, str | None]] = try_providers
    openvino: Callable[[], Listed] = list_devices
    no_device: Callable[[str], Missing] = why_missing
    """why OpenVINO lists no GPU or NPU"""
    free: Callable[[Path], int] = free_bytes
    run: Run = run_command
    wait: Callable[[float], None] = time.sleep
    own_pids: frozenset[int] = frozenset((os.getpid(), os.getppid()))
    root: Path = ROOT
