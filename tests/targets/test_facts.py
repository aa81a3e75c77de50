"""Reading what a machine is, from files of other machines."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from targets.facts import RUNTIME_DISTRIBUTIONS, cpu_quota, fingerprint, probe, stable_facts, usable_cores

Machine = Callable[..., Path]
X86 = "processor\t: 0\nmodel name\t: Some EPYC\nflags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16\n"
ARM = (
    "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimdhp asimddp i8mm bf16\n"
    "CPU implementer\t: 0x41\nCPU part\t: 0xd42\n"
)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """machine({path: content}): the root of another machine's file system."""

    def make(files: dict[str, str]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return make


def test_this_machine_can_be_probed_and_the_facts_are_json() -> None:
    facts = probe()

    assert json.loads(json.dumps(facts)) == facts
    assert 1 <= facts["cores"] <= facts["cores_total"]
    assert facts["memory_bytes"] > 2**28
    assert set(RUNTIME_DISTRIBUTIONS) >= set(facts["runtimes"])


@pytest.mark.parametrize(
    ("cpuinfo", "model", "sets"),
    [
        (X86, "Some EPYC", ["avx2", "avx512f", "avx512_vnni", "avx512_bf16"]),
        (ARM, "ARM implementer 0x41 part 0xd42", ["asimdhp", "asimddp", "i8mm", "bf16"]),
    ],
    ids=["x86", "arm"],
)
def test_processor_and_instruction_sets_are_read_on_x86_and_arm(
    cpuinfo: str, model: str, sets: list[str], machine: Machine
) -> None:
    facts = probe(machine({"proc/cpuinfo": cpuinfo}))

    assert facts["cpu_model"] == model
    assert facts["instruction_sets"] == sets


def test_a_machine_that_tells_nothing_can_be_probed(machine: Machine) -> None:
    facts = probe(machine({}))

    assert facts["instruction_sets"] == []
    assert facts["memory_bytes"] is None
    assert facts["cores"] == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/pod/box\n",
                "sys/fs/cgroup/pod/box/cpu.max": "max 100000",
                "sys/fs/cgroup/pod/cpu.max": "50000 100000",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/box\n1:memory:/other\n",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
        ({}, None),
    ],
    ids=["version 2, none", "version 2", "of the parent", "version 1", "version 1, none", "no control groups"],
)
def test_the_quota_of_a_container_is_read(files: dict[str, str], quota: float | None, machine: Machine) -> None:
    assert cpu_quota(machine(files)) == quota


def test_half_a_core_counts_as_one_and_a_large_quota_adds_none(machine: Machine) -> None:
    half = machine({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000"})
    assert usable_cores(half) == 1

    plenty = machine({"sys/fs/cgroup/cpu.max": "99900000 100000"})
    assert usable_cores(plenty) == len(os.sched_getaffinity(0))


def test_memory_is_cut_by_the_container(machine: Machine) -> None:
    root = machine({"proc/meminfo": "MemFree: 1 kB\nMemTotal:       1024 kB\n"})
    assert probe(root)["memory_bytes"] == 2**20

    root = machine({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "65536"})
    assert probe(root)["memory_bytes"] == 65536


def test_the_fingerprint_stays_while_the_hardware_stays() -> None:
    facts = probe()
    later = {**facts, "kernel": "9.9", "python": "3.99", "os": "Another", "memory_bytes": 1}

    assert fingerprint(later) == fingerprint(facts)
    for changed in ({"cores": 99}, {"cpu_model": "another"}, {"instruction_sets": ["sve"]}):
        assert fingerprint({**facts, **changed}) != fingerprint(facts)
    assert all(isinstance(value, str) for value in stable_facts(facts).values())


def test_gpus_are_told_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA Thing, 580.1, 1000 MiB, 9.0'\necho 'half a line'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    facts = probe()

    assert facts["gpus"] == [
        {"name": "NVIDIA Thing", "driver": "580.1", "memory": "1000 MiB", "compute_capability": "9.0"}
    ]
    assert stable_facts(facts)["gpus"] == "NVIDIA Thing, driver 580.1"

    tool.write_text("#!/bin/sh\nexit 9\n")
    assert probe()["gpus"] == []
