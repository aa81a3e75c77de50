"""A target is at hand only where its engines can be measured."""

from typing import Any

import pytest

from targets.athand import away, left_to_do
from targets.jetson import Jetson
from targets.profile import RuntimeChoice, TargetProfile, load_profile

PC: dict[str, Any] = {"architecture": "x86_64", "instruction_sets": ["avx2"], "gpus": []}
ORIN = Jetson(
    model="NVIDIA Jetson Orin Nano Developer Kit",
    compatible=("nvidia,p3768-0000+p3767-0005", "nvidia,tegra234"),
    l4t="36.4.3",
    jetpack="6.2",
    power_mode="15W",
    cuda="12.6",
)


def with_gpu(name: str, capability: str) -> dict[str, Any]:
    return {**PC, "gpus": [{"name": name, "driver": "590.1", "memory": "24564 MiB", "compute_capability": capability}]}


def test_a_card_is_at_hand_where_nvml_calls_it_so() -> None:
    target = load_profile("rtx-4090")

    assert away(target, with_gpu("NVIDIA GeForce RTX 4090", "8.9")) is None
    assert "no NVIDIA GPU" in str(away(target, PC))


@pytest.mark.parametrize("name", ["NVIDIA L4", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4080"])
def test_another_card_of_the_same_capability_is_not_the_target(name: str) -> None:
    reason = away(load_profile("rtx-4090"), with_gpu(name, "8.9"))

    assert reason is not None
    assert name in reason


def test_a_jetson_is_at_hand_by_its_module() -> None:
    arm = {**PC, "architecture": "aarch64", "instruction_sets": ["asimddp"]}

    assert away(load_profile("jetson-orin-nano"), arm, jetson=ORIN) is None
    assert "Orin Nano" in str(away(load_profile("jetson-agx-orin"), arm, jetson=ORIN))
    assert away(load_profile("jetson-orin-nano"), arm) == "this machine is no Jetson"
    assert "the target is aarch64" in str(away(load_profile("jetson-orin-nano"), PC))


def test_a_processor_is_at_hand_by_architecture_and_instruction_sets() -> None:
    assert away(load_profile("cpu"), PC) is None
    assert away(load_profile("x86-avx2"), PC) is None
    assert "lacks avx512" in str(away(load_profile("x86-avx512-vnni"), PC))
    assert "the target is aarch64" in str(away(load_profile("raspberry-pi-5"), PC))


def choice_of(profile: TargetProfile, runtime: str) -> RuntimeChoice:
    return next(one for one in profile.runtimes if one.name == runtime)


def test_only_tensorrt_rtx_builds_ahead_of_time() -> None:
    ada, pi = load_profile("rtx-4090"), load_profile("raspberry-pi-5")

    built, left = left_to_do(ada, choice_of(ada, "tensorrt_rtx"))
    assert (built, "built ahead of time" in left) == (True, True)
    built, left = left_to_do(ada, choice_of(ada, "tensorrt"))
    assert (built, "TensorRT builds on the GPU that runs it" in left) == (False, True)
    built, left = left_to_do(ada, choice_of(ada, "onnxruntime_tensorrt"))
    assert (built, "TensorRT builds on the GPU that runs it" in left) == (False, True)
    built, left = left_to_do(ada, choice_of(ada, "onnxruntime_cuda"))
    assert (built, "ONNX Runtime optimises the graph on the GPU that runs it" in left) == (False, True)
    built, left = left_to_do(pi, pi.runtimes[0])
    assert (built, "load the graph" in left) == (False, True)


def test_a_version_of_the_builder_that_will_not_do_is_told() -> None:
    ada = load_profile("rtx-4090")
    built, left = left_to_do(ada, choice_of(ada, "tensorrt_rtx").replace(versions=">=99"))

    assert not built
    assert "the target needs >=99" in left
