"""Contract over all targets that ship: figures have sources, and nothing is promised that the hardware cannot do."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from targets.board import Board
from targets.profile import PROFILES, TargetProfile, base_of, list_profiles, load_profile, usable_runtimes
from targets.runtimes.nvidia.capability import LEGAL, pair_obstacle

SHIPPED = [load_profile(name) for name in list_profiles()]
GPUS = [profile for profile in SHIPPED if profile.board.gpu is not None]
ASKED_FOR = {
    *("jetson-xavier-nx", "jetson-agx-xavier", "jetson-orin-nano", "jetson-orin-nano-super", "jetson-orin-nx"),
    *("jetson-agx-orin", "jetson-thor", "t4", "a2", "l4", "a100", "h100", "h200", "rtx-3060", "rtx-4090", "rtx-5090"),
    *("cpu", "x86-avx2", "x86-avx512-vnni", "x86-amx", "arm-server", "raspberry-pi-5", "core-ultra"),
}


def name_of(profile: TargetProfile) -> str:
    return profile.name


def numbers(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every number below a mapping that stands by itself, without a source beside it, and every sourced value."""
    if isinstance(value, dict) and "value" in value:
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from numbers(inner, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


def test_the_boards_that_people_have_are_there() -> None:
    assert set(list_profiles()) >= ASKED_FOR


@pytest.mark.parametrize("profile", SHIPPED, ids=name_of)
def test_name_and_file_agree_and_the_summary_is_short(profile: TargetProfile) -> None:
    assert (PROFILES / f"{profile.name}.yaml").is_file()
    assert 0 < len(profile.summary) <= 40


@pytest.mark.parametrize("profile", SHIPPED, ids=name_of)
def test_every_figure_of_the_hardware_says_where_it_is_from(profile: TargetProfile) -> None:
    facts = profile.model_dump(mode="json", exclude_none=True)
    found = [pair for part in ("board", "software", "power") for pair in numbers(facts[part])]

    assert [key for key, value in found if not isinstance(value, dict)] == [], "numbers without a source"
    assert all(value["source"] and value["confidence"] for _, value in found)


@pytest.mark.parametrize("profile", GPUS, ids=name_of)
def test_precisions_are_those_of_the_compute_capability(profile: TargetProfile) -> None:
    assert profile.board.gpu is not None
    capability = profile.board.gpu.capability
    by_runtime = {choice.name: set(choice.precisions) for choice in profile.runtimes}
    promised = set().union(*by_runtime.values()) | set(profile.board.peak_tera_ops_s)

    assert ("fp8" in promised) == (capability >= (8, 9))
    assert "bf16" not in promised or capability >= (8, 0)
    assert by_runtime["tensorrt"] >= {"fp32", "fp16", "int8"}
    if capability == (7, 5):
        assert by_runtime["tensorrt_rtx"] == {"fp16"}
    here = profile.board.gpu.compute_capability.value
    assert ("tensorrt_rtx" in by_runtime) == (here in LEGAL["tensorrt_rtx"])


@pytest.mark.parametrize(
    ("runtime", "precision", "capability", "legal"),
    [
        ("tensorrt", "fp8", "8.9", True),
        ("tensorrt", "fp8", "8.7", False),
        ("tensorrt", "bf16", "7.5", False),
        ("tensorrt", "bf16", "8.0", True),
        ("tensorrt", "fp8", "11.0", True),
        ("tensorrt_rtx", "fp32", "7.5", False),
        ("tensorrt_rtx", "int8", "7.5", False),
        ("tensorrt_rtx", "fp16", "7.5", True),
        ("tensorrt_rtx", "fp16", "9.0", False),
        ("tensorrt_rtx", "fp16", "8.0", False),
        ("tensorrt_rtx", "fp16", "8.7", False),
        ("tensorrt_rtx", "fp8", "8.6", False),
        ("tensorrt_rtx", "fp8", "12.0", True),
    ],
)
def test_what_a_gpu_can_run(runtime: str, precision: Any, capability: str, legal: bool) -> None:
    assert (pair_obstacle(runtime, capability, precision) is None) == legal


@pytest.mark.parametrize("profile", [one for one in GPUS if one.board.kind == "jetson"], ids=name_of)
def test_peaks_of_a_jetson_are_dense_and_of_the_gpu_alone(profile: TargetProfile) -> None:
    """Multiprocessors x clock x operations per clock: Volta 2048 in int8, Orin 4096; fp16 half of it."""
    gpu, peaks = profile.board.gpu, profile.board.peak_tera_ops_s
    assert gpu is not None
    assert gpu.multiprocessors is not None
    assert gpu.clock_mhz is not None
    per_clock = {(7, 2): 1024, (8, 7): 2048, (11, 0): 8192}[gpu.capability]
    expected = gpu.multiprocessors.value * gpu.clock_mhz.value * per_clock / 1e6

    assert peaks["fp16"].value == pytest.approx(expected, rel=0.01)
    if gpu.capability < (11, 0):
        assert peaks["int8"].value == pytest.approx(2 * expected, rel=0.01)


@pytest.mark.parametrize(
    ("target", "precision", "compute_ms", "memory_ms"),
    [
        ("jetson-orin-nano-super", "fp16", 0.55, 0.43),
        ("jetson-orin-nano-super", "int8", 0.28, 0.22),
        ("jetson-agx-orin", "fp16", 0.22, 0.22),
        ("l4", "fp16", 0.08, 0.15),
        ("l4", "int8", 0.04, 0.07),
    ],
)
def test_the_figures_give_the_known_floors_of_vit_small(
    target: str, precision: Any, compute_ms: float, memory_ms: float
) -> None:
    """4.6 GMAC and 22.1 million parameters at 224 x 224, batch 1."""
    board: Board = load_profile(target).board
    assert board.memory_bandwidth_gb_s is not None
    weight_bytes = 22.1e6 * {"fp16": 2, "int8": 1}[precision]

    assert 2 * 4.6e9 / board.peak_tera_ops_s[precision].value / 1e9 == pytest.approx(compute_ms, abs=0.006)
    assert weight_bytes / board.memory_bandwidth_gb_s.value / 1e6 == pytest.approx(memory_ms, abs=0.006)


def test_xavier_is_not_supported_and_says_what_to_do() -> None:
    unsupported = [profile for profile in SHIPPED if profile.status == "unsupported"]

    assert {profile.name for profile in unsupported} == {"jetson-xavier-nx", "jetson-agx-xavier"}
    assert all("TensorRT 8.5" in str(one.reason) and "Orin" in str(one.reason) for one in unsupported)


@pytest.mark.parametrize("profile", SHIPPED, ids=name_of)
def test_shapes_of_tensorrt_are_those_of_its_fused_attention(profile: TargetProfile) -> None:
    if profile.runtimes[0].name == "tensorrt":
        rules = profile.shapes

        assert rules.equal_head_widths
        assert rules.widths_of_heads(64) == (16, 24, 32, 40, 48, 56, 64)


@pytest.mark.parametrize("profile", SHIPPED, ids=name_of)
def test_only_the_targets_that_were_run_say_so(profile: TargetProfile) -> None:
    assert (profile.verified == "on hardware") == (profile.name in ("cpu", "x86-avx2"))
    assert profile.reached == ("none yet" if profile.board.kind == "jetson" else "local")


def test_what_another_profile_extends_is_only_written_where_it_differs() -> None:
    extending = {name: base_of(name) for name in list_profiles() if base_of(name)}

    assert extending == {"h200": "h100", "jetson-orin-nano-super": "jetson-orin-nano", "core-ultra-258v": "core-ultra"}
    for name, base in extending.items():
        own = yaml.safe_load((PROFILES / f"{name}.yaml").read_text())
        assert "runtimes" not in own
        assert load_profile(name).runtimes == load_profile(str(base)).runtimes


def test_the_card_that_extends_another_has_its_own_figures() -> None:
    h100, h200 = load_profile("h100").board, load_profile("h200").board

    assert (h200.memory_gb, h200.peak_tera_ops_s) != (h100.memory_gb, h100.peak_tera_ops_s)
    assert h200.peak_tera_ops_s == h100.peak_tera_ops_s
    assert h200.gpu is not None
    assert (h200.gpu.name, h200.gpu.capability) == ("H200", (9, 0))


@pytest.mark.parametrize("name", ["jetson-orin-nano", "raspberry-pi-5", "arm-server"])
def test_a_board_of_another_architecture_is_told_in_one_line(name: str) -> None:
    facts = {"architecture": "x86_64", "instruction_sets": ["avx2"], "gpus": []}
    reasons = [reason for _, reason in usable_runtimes(load_profile(name), facts=facts, installed=lambda _: "99")]

    assert all(reason and "\n" not in reason for reason in reasons)
    if name != "jetson-orin-nano":
        assert set(reasons) == {"the target is aarch64, this machine is x86_64"}
