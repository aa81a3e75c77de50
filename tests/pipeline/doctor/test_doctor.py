"""The doctor on machines of every kind: what it names, with which remedy, and what needs fixing."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.doctor import Finding, Sources
from targets.nvidia import Reading
from targets.runtimes.intel.devices import Listed, Missing

Machine = Callable[..., Sources]
Look = Callable[..., dict[str, Finding]]


def to_fix(found: dict[str, Finding]) -> set[str]:
    return {name for name, finding in found.items() if finding.state == "fix"}


def test_a_machine_in_good_order_needs_no_fixing(machine: Machine, look: Look) -> None:
    for target in (None, "cpu", "x86-avx2", "l4"):
        found = look(target, machine())

        assert to_fix(found) == set(), target
        assert all(finding.remedy == "" for finding in found.values() if finding.state == "ok")
    assert {"GPU", "NVIDIA driver", "CUDA", "GPU throttling", "GPU processes"} <= set(look("l4", machine()))


def test_everything_that_needs_fixing_has_a_remedy(machine: Machine, look: Look) -> None:
    sick = machine(
        facts={"architecture": "aarch64", "instruction_sets": [], "gpus": []},
        gpu={"slowed_by": ("heat (hardware)",)},
        package=lambda name: None,
        runtime=lambda name: None,
        free=lambda folder: 1000,
    )
    found = look("l4", sick)

    assert to_fix(found) >= {"architecture", "torch", "disk for the store", "GPU throttling", "l4: tensorrt"}
    assert all(found[name].remedy for name in to_fix(found) if not name.startswith("l4:"))


# Processor and runtimes.


def test_another_architecture_is_named(machine: Machine, look: Look) -> None:
    finding = look("raspberry-pi-5", machine())["architecture"]

    assert (finding.state, finding.found) == ("fix", "x86_64, the target is aarch64")


def test_instruction_sets_that_lack_are_named(machine: Machine, look: Look) -> None:
    finding = look("x86-amx", machine(facts={"instruction_sets": ["avx2", "avx512f", "avx512_vnni"]}))

    assert finding["instruction sets"].state == "fix"
    assert finding["instruction sets"].found == "Some Xeon lacks amx_bf16, amx_int8"


def test_a_runtime_that_is_too_old_names_both_versions(machine: Machine, look: Look) -> None:
    finding = look("l4", machine(runtime={"tensorrt": "8.6.1"}.get))

    assert finding["l4: tensorrt"].found == "version 8.6.1 is installed, the target needs >=10.3"
    assert finding["l4: tensorrt"].remedy == 'pip install "vitrim[tensorrt]"'
    assert finding["l4: tensorrt"].state == "fix", "no other runtime of the target works either"


def test_one_runtime_that_works_is_enough(machine: Machine, look: Look) -> None:
    found = look("cpu", machine(runtime={"onnxruntime": "1.32.0"}.get))

    assert found["cpu: onnxruntime"].state == "ok"
    assert found["cpu: openvino"].state == "warning"
    assert to_fix(found) == set()


ORT = {"onnxruntime_cuda": "1.31.1", "onnxruntime_tensorrt": "1.31.1"}


@pytest.mark.parametrize(
    ("providers", "state", "found"),
    [
        ({"CUDAExecutionProvider": None}, "ok", "1.31.1 usable in fp32, fp16"),
        ({"CUDAExecutionProvider": "it needs libcuda.so.1"}, "fix", "it needs libcuda.so.1"),
        ({"CPUExecutionProvider": None}, "fix", "this onnxruntime has no CUDAExecutionProvider: pip uninstall onnx"),
    ],
)
def test_onnx_runtime_on_a_gpu_is_tried_not_believed(
    machine: Machine, look: Look, providers: dict[str, str | None], state: str, found: str
) -> None:
    finding = look("l4", machine(runtime=ORT.get, providers=lambda: providers))["l4: onnxruntime_cuda"]

    assert finding.state == state
    assert finding.found.startswith(found)


def test_a_package_for_gpus_that_is_absent_is_named(machine: Machine, look: Look) -> None:
    finding = look("l4", machine())["l4: onnxruntime_tensorrt"]

    assert finding.state == "warning", "TensorRT itself works"
    assert "pip install 'onnxruntime-gpu>=1.24'" in finding.found
    assert finding.remedy == 'pip install "vitrim[cuda]"'


def test_an_unsupported_board_gives_its_reason(machine: Machine, look: Look) -> None:
    finding = look("jetson-xavier-nx", machine())["jetson-xavier-nx"]

    assert finding.state == "fix"
    assert "TensorRT 8.5" in finding.remedy


def test_two_onnxruntime_packages_are_refused(machine: Machine, look: Look) -> None:
    finding = look("cpu", machine(package=lambda name: "1.0"))["onnxruntime packages"]

    assert finding.state == "fix"
    assert "overwrite each other" in finding.found


@pytest.mark.parametrize(("name", "state"), [("CUDAExecutionProvider", "warning"), ("CPUExecutionProvider", "fix")])
def test_a_provider_that_is_listed_and_broken_is_named(machine: Machine, look: Look, name: str, state: str) -> None:
    found = look("cpu", machine(providers=lambda: {name: "libcudnn.so.9: cannot open"}))
    finding = found[name.removesuffix("ExecutionProvider") + " provider"]

    assert finding.state == state
    assert finding.found == "listed, but cannot be used: libcudnn.so.9: cannot open"


def test_the_devices_of_openvino_are_listed_by_name(machine: Machine, look: Look) -> None:
    found = look("cpu", machine(openvino=lambda: Listed({"CPU": "Some Core", "GPU": "Some Arc"})))

    assert found["OpenVINO devices"].found == "CPU (Some Core), GPU (Some Arc)"
    assert found["OpenVINO devices"].state == "ok"
    assert "OpenVINO NPU" not in found, "nobody asked for one, and the kernel shows none"


def test_a_device_that_the_target_names_and_openvino_lacks_has_reason_and_remedy(machine: Machine, look: Look) -> None:
    here = machine(facts={"instruction_sets": ["avx2", "avx_vnni"]}, openvino=lambda: Listed({"CPU": "a", "NPU": "b"}))
    found = look("core-ultra", here)

    assert found["core-ultra: openvino_gpu"].found == "openvino lists no GPU, only CPU, NPU: no GPU here"
    assert found["core-ultra: openvino_gpu"].remedy == "buy one"
    assert found["core-ultra: openvino_gpu"].state == "warning", "the cores can stand in"
    assert found["core-ultra: openvino_npu"].state == "ok"
    assert to_fix(found) == set()


def test_a_device_that_the_kernel_shows_and_openvino_does_not_find_is_told(machine: Machine, look: Look) -> None:
    hidden = Missing("this user may not read and write /dev/accel/accel0", "join the group", seen=True)
    finding = look("cpu", machine(no_device=lambda device: hidden))["OpenVINO NPU"]

    assert finding.state == "warning"
    assert finding.found.endswith("only CPU: this user may not read and write /dev/accel/accel0")
    assert finding.remedy == "join the group"


def test_an_openvino_that_breaks_stands_in_the_way_of_targets_that_name_it(machine: Machine, look: Look) -> None:
    broken = machine(openvino=lambda: Listed(why_not="the process was ended by signal 11"))

    assert look("cpu", broken)["OpenVINO devices"].state == "fix"
    assert look("l4", broken)["OpenVINO devices"].state == "warning"


# NVIDIA.


def test_where_no_driver_answers_the_doctor_says_that_it_cannot_tell(machine: Machine, look: Look) -> None:
    nothing = Reading(how="", why_not="nvidia-ml-py is not installed, and nvidia-smi is not there or fails")
    finding = look("l4", machine(gpus=lambda: nothing))["GPU"]

    assert finding.state == "fix", "nvidia-smi comes with every driver"
    assert finding.found.startswith("cannot tell: nvidia-ml-py is not installed")


@pytest.mark.parametrize(
    ("gpu", "target", "state"),
    [
        ({}, "l4", "ok"),
        ({}, "t4", "fix"),
        ({"name": "NVIDIA GeForce RTX 4090"}, "l4", "warning"),
        ({"name": "NVIDIA GeForce RTX 4090"}, "rtx-4090", "ok"),
        ({"name": "NVIDIA GeForce RTX 4090 Laptop GPU"}, "rtx-4090", "warning"),
        ({"name": "NVIDIA GeForce RTX 4090 D"}, "rtx-4090", "warning"),
        ({"name": "NVIDIA L40S"}, "l4", "warning"),
        ({"name": "NVIDIA A100-SXM4-80GB", "compute_capability": "8.0"}, "a100", "ok"),
        ({"name": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0"}, "h100", "ok"),
        ({"name": "NVIDIA H200", "compute_capability": "9.0"}, "h100", "warning"),
        ({"compute_capability": None}, "l4", "fix"),
    ],
    ids=str,
)
def test_a_card_of_another_kind_is_told(
    machine: Machine, look: Look, gpu: dict[str, Any], target: str, state: str
) -> None:
    assert look(target, machine(gpu=gpu))["GPU"].state == state


def test_the_right_one_of_several_cards_is_looked_at(machine: Machine, look: Look) -> None:
    good = machine().gpus().gpus[0]
    hot = replace(good, name="NVIDIA T4", compute_capability="7.5", slowed_by=("heat (hardware)",))
    reading = Reading(how="NVML", driver="580.65", cuda="13.0", gpus=(hot, good))

    assert look("l4", machine(gpus=lambda: reading))["GPU throttling"].state == "ok"
    assert look("t4", machine(gpus=lambda: reading))["GPU throttling"].state == "fix"


@pytest.mark.parametrize(
    ("driver", "cuda", "states"),
    [("470.82", "11.4", ("fix", "fix")), ("525.60", "12.0", ("ok", "ok")), (None, None, ("warning", "warning"))],
)
def test_driver_and_cuda_are_held_against_the_target(
    machine: Machine, look: Look, driver: str | None, cuda: str | None, states: tuple[str, str]
) -> None:
    reading = replace(machine().gpus(), driver=driver, cuda=cuda)
    found = look("l4", machine(gpus=lambda: reading))

    assert (found["NVIDIA driver"].state, found["CUDA"].state) == states


def test_a_throttled_card_needs_fixing(machine: Machine, look: Look) -> None:
    gpu = {"slowed_by": ("power cap", "heat (software)"), "temperature_c": 91, "clock_mhz": 600}
    finding = look("l4", machine(gpu=gpu))["GPU throttling"]

    assert finding.state == "fix"
    assert finding.found == "slowed down by power cap, heat (software), 91 °C, 600 of 2040 MHz"


def test_processes_of_others_are_told_and_our_own_are_not(machine: Machine, look: Look) -> None:
    ours = machine(gpu={"processes": (7,)}, own_pids=frozenset({7}))
    theirs = machine(gpu={"processes": (7, 99)}, own_pids=frozenset({7}))

    assert look("l4", ours)["GPU processes"].state == "ok"
    assert look("l4", theirs)["GPU processes"].state == "warning"
    assert "99" in look("l4", theirs)["GPU processes"].found


@pytest.mark.parametrize(("memory_bytes", "state"), [(23034 * 2**20, "ok"), (12 * 2**30, "warning"), (None, "warning")])
def test_the_memory_of_a_card_is_held_against_the_target_s(
    machine: Machine, look: Look, memory_bytes: int | None, state: str
) -> None:
    finding = look("l4", machine(gpu={"memory_bytes": memory_bytes}))["GPU memory"]

    assert finding.state == state
    assert "the target has 24 GB" in finding.found


def test_a_tensorrt_that_is_installed_and_does_not_work_is_named(machine: Machine, look: Look) -> None:
    asked: list[tuple[str, str | None]] = []

    def tried(runtime: str, capability: str | None) -> str | None:
        asked.append((runtime, capability))
        return "cudaGetDeviceCount failed" if runtime == "tensorrt" else None

    found = look("l4", machine(tensorrt=tried))

    assert found["l4: tensorrt"].found == "cudaGetDeviceCount failed"
    assert found["l4: tensorrt_rtx"].state == "ok"
    assert ("tensorrt_rtx", "8.9") in asked


@pytest.mark.parametrize(("allowed", "state"), [({0, 1, 2, 3}, "ok"), ({0, 1}, "fix"), (set(), "fix")])
def test_cores_that_engines_are_pinned_to_have_to_be_there(
    machine: Machine, look: Look, tmp_path: Path, allowed: set[int], state: str
) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("name: mine\nsummary: pinned\nextends: cpu\ncores: [2, 3]\nverified: not yet\n")
    finding = look(own, machine(allowed=lambda: allowed))["cores"]

    assert finding.state == state
    assert finding.found.startswith("engines run on 2-3")


# Disk, memory, clocks.


@pytest.mark.parametrize(("gib", "state"), [(0.5, "fix"), (3, "warning"), (50, "ok")])
def test_a_full_disk_needs_fixing(machine: Machine, look: Look, gib: float, state: str) -> None:
    finding = look("cpu", machine(free=lambda folder: int(gib * 2**30)))["disk for the store"]

    assert finding.state == state


@pytest.mark.parametrize(
    ("facts", "conditions", "state"),
    [
        ({}, {}, "ok"),
        ({"memory_bytes": 2 * 2**30}, {}, "warning"),
        ({}, {"memory_available_bytes": 2**28}, "warning"),
        ({"memory_bytes": None}, {}, "warning"),
    ],
    ids=str,
)
def test_little_memory_is_told(
    machine: Machine, look: Look, facts: dict[str, Any], conditions: dict[str, Any], state: str
) -> None:
    assert look("cpu", machine(facts=facts, conditions=conditions))["memory"].state == state


@pytest.mark.parametrize(("target", "state"), [("cpu", "warning"), ("raspberry-pi-5", "fix")])
def test_a_governor_that_follows_the_load_matters_where_clocks_are_to_be_pinned(
    machine: Machine, look: Look, target: str, state: str
) -> None:
    slow = machine(conditions={"governors": {"powersave": 4}})

    assert look(target, slow)["CPU governor"].state == state
    assert look(target, machine(conditions={"governors": None}))["CPU governor"].state == "ok"


@pytest.mark.parametrize(("counts", "state"), [((5, 9), "fix"), ((5, 5), "ok"), ((None, None), "ok")])
def test_a_processor_that_slows_itself_down_now_needs_fixing(
    machine: Machine, look: Look, counts: tuple[int | None, int | None], state: str
) -> None:
    readings = iter(counts)
    given = machine().conditions()
    sources = machine(conditions=None)
    sources = replace(sources, conditions=lambda: {**given, "throttle_count": next(readings)})

    assert look("cpu", sources)["throttling"].state == state


@pytest.mark.parametrize(
    ("answer", "state", "word"),
    [
        ("throttled=0x0", "ok", "none"),
        ("throttled=0x50000", "warning", "under-voltage, throttling"),
        ("throttled=0x50005", "fix", "under-voltage, throttling"),
        ("", "ok", "does not tell"),
    ],
)
def test_a_raspberry_pi_tells_of_power_and_heat(
    machine: Machine, look: Look, tmp_path: Path, answer: str, state: str, word: str
) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("Raspberry Pi 5 Model B Rev 1.0\0")

    def run(words: Sequence[str]) -> str:
        assert words == ["vcgencmd", "get_throttled"]
        return answer

    finding = look("cpu", machine(run=run, conditions={"throttle_count": None}))["throttling"]

    assert finding.state == state
    assert word in finding.found


def test_other_programs_are_told(machine: Machine, look: Look) -> None:
    busy = machine(conditions={"load_average": [7.5, 1, 1]})

    assert look("cpu", busy)["other programs"].state == "warning"
