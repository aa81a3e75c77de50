"""The doctor on Jetsons: module, software, power mode, and the state that they are measured in."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pipeline.doctor import Finding, Sources
from targets.jetson import Jetson, JetsonNow

Machine = Callable[..., Sources]
Look = Callable[..., dict[str, Finding]]

NANO = Jetson(
    model="NVIDIA Jetson Orin Nano Developer Kit Super",
    compatible=("nvidia,p3768-0000+p3767-0005-super", "nvidia,tegra234"),
    l4t="36.4.3",
    jetpack="6.2",
    power_mode="MAXN_SUPER",
    cuda="12.6",
)


def to_fix(found: dict[str, Finding]) -> set[str]:
    return {name for name, finding in found.items() if finding.state == "fix"}


def board(machine: Machine, **changes: Any) -> Sources:
    facts = {"architecture": "aarch64", "instruction_sets": ["asimdhp"], "gpus": []}
    return machine(facts=facts, jetson=lambda: replace(NANO, **changes), runtime={"tensorrt": "10.3.0"}.get)


def test_a_jetson_in_good_order_needs_no_fixing(machine: Machine, look: Look) -> None:
    found = look("jetson-orin-nano-super", board(machine))

    assert to_fix(found) == set()
    assert all(found[name].state == "ok" for name in ("Jetson", "JetPack", "CUDA", "power mode"))


@pytest.mark.parametrize(
    ("changes", "what", "state"),
    [
        ({"power_mode": "15W"}, "power mode", "fix"),
        ({"power_mode": None}, "power mode", "warning"),
        ({"jetpack": "6.1"}, "JetPack", "fix"),
        ({"jetpack": None, "l4t": None}, "JetPack", "warning"),
        ({"cuda": None}, "CUDA", "warning"),
        ({"compatible": ("nvidia,p3767-0000", "nvidia,tegra234")}, "Jetson", "fix"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_jetson_is_named(
    machine: Machine, look: Look, changes: dict[str, Any], what: str, state: str
) -> None:
    finding = look("jetson-orin-nano-super", board(machine, **changes))[what]

    assert finding.state == state
    assert finding.remedy


def now(**changes: Any) -> JetsonNow:
    calm = JetsonNow(gpu_mhz=(1020.0, 1020.0, 1020.0), overcurrents=0, capped_by=(), gpu_users=(), hidden=0)
    return replace(calm, **changes)


@pytest.mark.parametrize(
    ("changes", "what", "state", "words"),
    [
        ({}, "GPU clocks", "ok", "pinned at 1020 MHz"),
        ({"gpu_mhz": (306.0, 612.0, 1020.0)}, "GPU clocks", "fix", "float from 306 to 1020 MHz, now 612"),
        ({"gpu_mhz": None}, "GPU clocks", "warning", "no GPU in devfreq"),
        ({"capped_by": ("gpu-throttle-alert",)}, "GPU throttling", "fix", "capped now by gpu-throttle-alert"),
        ({"overcurrents": 3}, "GPU throttling", "warning", "3 over-current events since the start"),
        ({"overcurrents": None, "capped_by": None}, "GPU throttling", "warning", "does not tell"),
        ({"gpu_users": (7, 99)}, "GPU processes", "warning", "1 others have the GPU open (99)"),
        ({"hidden": 4}, "GPU processes", "ok", "4 processes of others cannot be looked at"),
    ],
    ids=str,
)
def test_the_state_of_a_jetson_is_looked_at(
    machine: Machine, look: Look, changes: dict[str, Any], what: str, state: str, words: str
) -> None:
    sources = replace(board(machine), jetson_now=lambda: now(**changes), own_pids=frozenset({7}))
    finding = look("jetson-orin-nano-super", sources)[what]

    assert finding.state == state
    assert words in finding.found
    assert bool(finding.remedy) == (state != "ok")


def test_over_current_events_that_rise_now_need_fixing(machine: Machine, look: Look) -> None:
    readings = iter([now(overcurrents=3), now(overcurrents=5)])
    sources = replace(board(machine), jetson_now=lambda: next(readings))
    finding = look("jetson-orin-nano-super", sources)["GPU throttling"]

    assert finding.state == "fix"
    assert finding.found.startswith("2 over-current events just now")


@pytest.mark.parametrize(("gb", "state"), [(7.8, "ok"), (3.9, "warning")])
def test_the_memory_of_a_module_is_held_against_the_target_s(
    machine: Machine, look: Look, gb: float, state: str
) -> None:
    facts = {**board(machine).probe(), "memory_bytes": int(gb * 1e9)}

    assert look("jetson-orin-nano-super", replace(board(machine), probe=lambda: facts))["board memory"].state == state


def test_a_machine_that_is_no_jetson_is_told(machine: Machine, look: Look) -> None:
    assert look("jetson-thor", machine())["Jetson"].found == "this machine is none"
