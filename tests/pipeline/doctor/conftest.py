"""Machines that the doctor is shown in place of this one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.doctor import Finding, Sources, examine
from targets.jetson import JetsonNow
from targets.nvidia import GpuNow, Reading
from targets.runtimes.intel.devices import Listed, Missing

FACTS: dict[str, Any] = {
    "architecture": "x86_64",
    "cpu_model": "Some Xeon",
    "instruction_sets": ["avx2"],
    "cores": 8,
    "cores_total": 8,
    "memory_bytes": 32 * 2**30,
    "gpus": [{"name": "NVIDIA L4", "driver": "580.65", "memory": "23034 MiB", "compute_capability": "8.9"}],
    "runtimes": {"onnxruntime": "1.32.0"},
}
CONDITIONS: dict[str, Any] = {
    "load_average": [0.1, 0.1, 0.1],
    "cores": 8,
    "memory_available_bytes": 16 * 2**30,
    "governors": {"performance": 8},
    "throttle_count": 0,
}
VERSIONS = {
    "onnxruntime": "1.32.0",
    **dict.fromkeys(("openvino", "openvino_gpu", "openvino_npu"), "2026.4.1"),
    "tensorrt": "10.16.1",
    "tensorrt_rtx": "1.7.1",
}
L4 = GpuNow(
    name="NVIDIA L4",
    compute_capability="8.9",
    memory_bytes=24 * 2**30,
    memory_used_bytes=2**29,
    processes=(),
    slowed_by=(),
    temperature_c=41,
    clock_mhz=2040,
    clock_max_mhz=2040,
)
NOW = JetsonNow(gpu_mhz=(1020.0, 1020.0, 1020.0), overcurrents=0, capped_by=(), gpu_users=(), hidden=0)
GOOD = Reading(how="NVML", driver="580.65", cuda="13.0", gpus=(L4,))

Machine = Callable[..., Sources]
Look = Callable[..., dict[str, Finding]]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """machine(facts={...}, gpu={...}, ...): a machine in good order with one L4, some of it changed."""

    def make(
        *,
        facts: dict[str, Any] | None = None,
        conditions: dict[str, Any] | None = None,
        gpu: dict[str, Any] | None = None,
        **sources: Any,
    ) -> Sources:
        reading = replace(GOOD, gpus=(replace(L4, **(gpu or {})),))
        given: dict[str, Any] = {
            "probe": lambda: {**FACTS, **(facts or {})},
            "conditions": lambda: {**CONDITIONS, **(conditions or {})},
            "gpus": lambda: reading,
            "jetson": lambda: None,
            "jetson_now": lambda: NOW,
            "tensorrt": lambda runtime, capability: None,
            "allowed": lambda: set(range(8)),
            "package": lambda name: None if name in ("onnxruntime-gpu", "onnxruntime-openvino") else "1.0",
            "runtime": VERSIONS.get,
            "providers": lambda: {"CPUExecutionProvider": None},
            "openvino": lambda: Listed({"CPU": "Some Xeon"}),
            "no_device": lambda device: Missing(f"no {device} here", "buy one"),
            "free": lambda folder: 100 * 2**30,
            "run": lambda words: None,
            "wait": lambda seconds: None,
            "root": tmp_path,
        }
        return Sources(**{**given, **sources})

    return make


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """look(target, sources): findings by what was looked at, as if all runtimes had modules here."""
    from targets.runtimes import catalog

    for name in VERSIONS:
        monkeypatch.setitem(catalog.CATALOG, name, catalog.CATALOG.get(name, "targets.runtimes.none"))

    def run(target: str | Path | None, sources: Sources) -> dict[str, Finding]:
        found = examine(str(target) if target else None, store_root=tmp_path / "store", sources=sources)
        worst = {"ok": 0, "warning": 1, "fix": 2}
        by_name: dict[str, Finding] = {}
        for one in sorted(found, key=lambda finding: worst[finding.state]):
            by_name[one.what] = one  # the worst of one name
        return by_name

    return run
