"""`vitrim targets`: what is listed, shown and written; targets that cannot be built say so in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.doctor import Finding
from targets.profile import list_profiles, load_profile

Command = Callable[..., Any]
Recipe = Callable[..., Path]


def fits(text: str) -> bool:
    return max((len(line) for line in text.splitlines()), default=0) <= 80


def refused(answer: Any, *parts: str) -> None:
    assert answer.code == 2, answer
    assert len(answer.err.strip().splitlines()) == 1, answer.err
    assert all(part in answer.err for part in parts), answer.err


def test_the_list_names_every_target_with_its_kind_in_80_columns(command: Command) -> None:
    told = command("targets", "list").out

    assert fits(told)
    for name in list_profiles():
        (line,) = [line for line in told.splitlines() if line.split()[:1] == [name]]
        assert line.split()[1] == load_profile(name).board.kind
    assert told.count("unsupported") == 2


def test_the_list_as_json_is_the_profiles(command: Command) -> None:
    told = json.loads(command("targets", "list", "--json").out)

    assert [one["name"] for one in told] == list_profiles()


@pytest.mark.parametrize("name", list_profiles())
def test_what_is_shown_is_a_profile_that_stands_for_itself(command: Command, tmp_path: Path, name: str) -> None:
    shown = command("targets", "show", name)
    (tmp_path / f"{name}.yaml").write_text(shown.out)

    assert fits(shown.out)
    assert load_profile(tmp_path / f"{name}.yaml") == load_profile(name)
    assert "extends" not in yaml.safe_load(shown.out)


def test_show_tells_sources_and_what_was_merged(command: Command) -> None:
    text, told = command("targets", "show", "h200").out, json.loads(command("targets", "show", "h200", "--json").out)

    assert text.startswith("# extends h100")
    assert "# not yet run on hardware" in text
    assert told["extends"] == "h100"
    assert told["board"]["memory_bandwidth_gb_s"]["value"] == 4800
    assert told["board"]["peak_tera_ops_s"]["fp8"]["source"]


def test_new_writes_a_profile_of_this_machine_that_loads(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    answer = command("targets", "new", "lab", "--output", path)
    found = load_profile(path)

    assert answer.code == 0, answer
    assert found.board.memory_gb is not None
    assert found.board.memory_gb.confidence == "probed"
    assert found.verified == "not yet"
    assert {choice.name for choice in found.runtimes} >= {"onnxruntime"}


def test_a_new_profile_stands_in_the_current_folder_unless_told(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert command("targets", "new", "lab").code == 0
    assert (tmp_path / "lab.yaml").is_file()


def test_new_does_not_overwrite(command: Command, tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text("mine")

    refused(command("targets", "new", "lab", "-o", tmp_path / "lab.yaml"), "exists")
    assert (tmp_path / "lab.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "file", "parts"),
    [
        ("Lab", "Lab.yaml", ("small letters", "'Lab'")),
        ("lab", "other.yaml", ("lab.yaml",)),
        ("lab", "none/lab.yaml", ("there is no folder",)),
        ("../lab", "lab.yaml", ("small letters",)),
    ],
)
def test_new_refuses_in_one_line(
    command: Command, tmp_path: Path, name: str, file: str, parts: tuple[str, ...]
) -> None:
    refused(command("targets", "new", name, "-o", tmp_path / file), *parts)


def test_a_new_profile_of_a_machine_with_a_gpu_names_what_the_gpu_runs(tmp_path: Path) -> None:
    from pipeline.newtarget import write_target

    facts = {
        "architecture": "x86_64",
        "cpu_model": "Some Xeon",
        "instruction_sets": ["avx2"],
        "memory_bytes": 2**35,
        "gpus": [{"name": "NVIDIA T4", "driver": "580", "memory": "15360 MiB", "compute_capability": "7.5"}],
        "runtimes": {"tensorrt": "10.16.1", "tensorrt_rtx": "1.7.1.116", "onnxruntime": "1.32.0"},
    }
    write_target("lab", tmp_path / "lab.yaml", facts=facts)
    found = load_profile(tmp_path / "lab.yaml")
    precisions = {choice.name: choice.precisions for choice in found.runtimes}

    assert (found.board.kind, found.board.gpu and found.board.gpu.name) == ("gpu", "T4")
    assert found.board.memory_gb is not None
    assert found.board.memory_gb.value == 16.1
    assert precisions["tensorrt"] == ("fp32", "fp16", "int8")
    assert precisions["tensorrt_rtx"] == ("fp16",)


def test_a_new_profile_of_a_jetson_is_one_with_its_module_and_state(tmp_path: Path) -> None:
    from pipeline.newtarget import write_target
    from targets.jetson import Jetson

    facts = {
        "architecture": "aarch64",
        "cpu_model": "ARM implementer 0x41 part 0xd42",
        "instruction_sets": ["asimdhp", "asimddp"],
        "memory_bytes": 7_800_000_000,
        "gpus": [],
        "runtimes": {"onnxruntime": "1.32.0", "tensorrt": "10.3.0"},
    }
    board = Jetson(
        model="NVIDIA Jetson Orin Nano Developer Kit Super",
        compatible=("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"),
        l4t="36.4.3",
        jetpack="6.2",
        power_mode="MAXN_SUPER",
        cuda="12.6",
    )
    write_target("bench", tmp_path / "bench.yaml", facts=facts, jetson=board)
    found = load_profile(tmp_path / "bench.yaml")

    assert (found.board.kind, found.board.part_numbers) == ("jetson", ("p3767-0005",))
    assert found.board.gpu is not None
    assert (found.board.gpu.name, found.board.gpu.compute_capability.value) == ("Orin", "8.7")
    assert found.board.memory_gb is not None
    assert found.board.memory_gb.value == 7.8
    assert found.software.jetpack is not None
    assert found.software.jetpack.value == ">=6.2"
    assert found.power.mode is not None
    assert (found.power.mode.value, found.power.clocks) == ("MAXN_SUPER", "pinned")
    assert [choice.name for choice in found.runtimes] == ["tensorrt", "onnxruntime"]
    assert found.runtimes[0].precisions == ("fp32", "fp16", "bf16", "int8")


def test_a_jetson_of_an_unknown_kind_is_refused_with_what_to_do(tmp_path: Path) -> None:
    from pipeline.newtarget import write_target
    from targets.errors import InputError
    from targets.facts import probe
    from targets.jetson import Jetson

    odd = Jetson(model="X", compatible=("nvidia,tegra999",), l4t=None, jetpack=None, power_mode=None, cuda=None)
    with pytest.raises(InputError, match="has none of the SoCs tegra194"):
        write_target("odd", tmp_path / "odd.yaml", facts=probe(), jetson=odd)
    assert not (tmp_path / "odd.yaml").exists()


def test_a_new_profile_names_all_precisions_that_its_runtimes_have(tmp_path: Path) -> None:
    from pipeline.newtarget import write_target

    facts = {
        "architecture": "x86_64",
        "cpu_model": "Some Xeon",
        "instruction_sets": ["avx2", "amx_bf16"],
        "memory_bytes": 2**35,
        "gpus": [],
        "runtimes": {"onnxruntime": "1.32.0", "openvino": "2026.4.1"},
    }
    write_target("lab", tmp_path / "lab.yaml", facts=facts)

    new, shipped = load_profile(tmp_path / "lab.yaml"), load_profile("cpu")
    assert {one.name: one.precisions for one in new.runtimes} == {one.name: one.precisions for one in shipped.runtimes}


def test_show_tells_memory_clock_and_power_in_one_line(command: Command) -> None:
    text = command("targets", "show", "jetson-orin-nano").out

    assert "# 8 GB, 68 GB/s, 8 multiprocessors at up to 625 MHz, 7 to 15 W" in text


def test_a_machine_without_runtimes_gets_no_profile(tmp_path: Path) -> None:
    from pipeline.newtarget import write_target
    from targets.errors import InputError
    from targets.facts import probe

    with pytest.raises(InputError, match="no runtime is installed"):
        write_target("lab", tmp_path / "lab.yaml", facts={**probe(), "runtimes": {}})
    assert not (tmp_path / "lab.yaml").exists()


# Targets that cannot be built.


@pytest.mark.parametrize("verb", ["plan", "build"])
def test_a_board_that_is_not_supported_is_refused_with_its_reason(
    command: Command, write_recipe: Recipe, tmp_path: Path, verb: str
) -> None:
    more = ("-o", tmp_path / "out") if verb == "build" else ()

    refused(command(verb, write_recipe(), "--target", "jetson-xavier-nx", *more), "not supported", "TensorRT 8.5")


def test_a_recipe_is_not_begun_for_a_board_that_is_not_supported(command: Command, tmp_path: Path) -> None:
    refused(command("init", tmp_path / "a.yaml", "--target", "jetson-agx-xavier"), "not supported")


def test_a_runtime_that_vitrim_does_not_know_is_told_with_its_line(
    command: Command, write_recipe: Recipe, tmp_path: Path
) -> None:
    facts = {"name": "mine", "summary": "mine", "verified": "not yet", "extends": "cpu"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**facts, "runtimes": [{"name": "coreml"}]}))

    answer = command("plan", write_recipe(), "--target", tmp_path / "mine.yaml")

    refused(answer, "runtimes[0].name: unknown runtime 'coreml'; known: onnxruntime, onnxruntime_cuda")


def test_the_plan_for_a_board_that_is_not_at_hand_says_so(command: Command, write_recipe: Recipe) -> None:
    told = command("plan", write_recipe(), "--target", "jetson-orin-nano")

    assert told.code == 0, told
    assert "not at hand: the target is aarch64" in " ".join(told.out.split())
    assert "nothing is measured" in told.out
    assert fits(told.out)


def test_a_target_of_another_image_size_is_refused(command: Command, write_recipe: Recipe, tmp_path: Path) -> None:
    facts = {"name": "mine", "summary": "mine", "verified": "not yet", "extends": "cpu", "input": {"image_size": 224}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(facts))

    refused(command("plan", write_recipe(), "--target", tmp_path / "mine.yaml"), "224 x 224", "16 x 16")


def test_a_profile_that_extends_another_is_a_target(command: Command, write_recipe: Recipe, tmp_path: Path) -> None:
    facts = {"name": "mine", "summary": "mine", "verified": "not yet", "extends": "cpu", "batch": 2}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(facts))
    told = command("plan", write_recipe(), "--target", tmp_path / "mine.yaml")

    assert told.code == 0, told
    assert "batch 2" in told.out


# The doctor.


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warning", 0), ("fix", 1)])
def test_the_doctor_ends_with_1_where_something_needs_fixing(
    command: Command, monkeypatch: pytest.MonkeyPatch, state: Any, code: int
) -> None:
    finding = Finding(what="GPU", state=state, found="[red]hot[/red]", remedy="cool it")
    monkeypatch.setattr("pipeline.doctor.examine", lambda target, store_root: [finding])

    answer = command("doctor", "--target", "l4")

    assert answer.code == code
    assert "[red]hot[/red]" in answer.out, "what a driver says is no markup"


def test_the_doctor_of_a_foreign_target_needs_fixing_and_fits(command: Command) -> None:
    for target in ("jetson-orin-nano", "x86-amx", "jetson-xavier-nx"):
        answer = command("doctor", "--target", target)

        assert answer.code == 1
        assert fits(answer.out)
