"""Targets: what ships is sound; one's own file is checked as a whole; what cannot be used here says why."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from targets.errors import InputError, RecipeError, UnknownNameError
from targets.facts import probe
from targets.profile import (
    PROFILES,
    Board,
    RuntimeChoice,
    TargetProfile,
    list_profiles,
    load_profile,
    names_file,
    usable_runtimes,
)


def own(folder: Path, name: str = "mine", **changes: Any) -> Path:
    facts = yaml.safe_load((PROFILES / "cpu.yaml").read_text())
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**facts, "name": name, **changes}))
    return path


def profile(**changes: Any) -> TargetProfile:
    return load_profile("cpu").replace(**changes)


@pytest.mark.parametrize("name", list_profiles())
def test_every_target_that_ships_loads_by_its_name(name: str) -> None:
    found = load_profile(name)

    assert found.name == name
    assert any("fp32" in choice.precisions for choice in found.runtimes), "the baseline needs a runtime in fp32"


@pytest.mark.parametrize("name", list_profiles())
def test_a_target_written_out_is_the_same_target(name: str, tmp_path: Path) -> None:
    found = load_profile(name)
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(found.model_dump(mode="json")))

    assert load_profile(path) == found


def test_one_s_own_file_is_a_target(tmp_path: Path) -> None:
    assert load_profile(own(tmp_path, batch=4)).batch == 4
    assert load_profile(str(own(tmp_path, batch=4))).batch == 4


def test_a_path_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    own(tmp_path)

    assert load_profile("~/mine.yaml").name == "mine"


@pytest.mark.parametrize("name", ["cpuu", "CPU", "", "..", "x" * 300])
def test_an_unknown_name_lists_what_is_known(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown target .*cpu.*path of your own YAML file"):
        load_profile(name)


@pytest.mark.parametrize("path", ["none.yaml", "~nobody-of-this-name/a.yaml", "a/b", "cpu/", f"{'x' * 300}.yaml"])
def test_a_file_that_is_not_there_is_named(path: str) -> None:
    with pytest.raises(InputError, match=r"^target '.*' cannot be read: "):
        load_profile(path)


def test_every_problem_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    path = own(
        tmp_path,
        batch=0,
        boord={},
        runtimes=[{"name": "onnxruntime", "versions": "1.2 or so", "precision": ["fp32"]}],
        budget={"latency_p50_ms": "fast"},
    )

    with pytest.raises(RecipeError) as caught:
        load_profile(path)
    told = [problem.rpartition(" (line")[0] for problem in caught.value.problems]
    assert sorted(told) == [
        "batch: must be a whole number above 0, got 0",
        "boord: unknown key; did you mean 'board'?",
        "budget.latency_p50_ms: must be a number above 0, or null, got 'fast'",
        "runtimes[0].precision: unknown key; did you mean 'precisions'?",
        "runtimes[0].versions: is no range of versions; write it like >=1.23,<2, got '1.2 or so'",
    ]


def test_options_of_a_runtime_are_checked_by_its_own_table(tmp_path: Path) -> None:
    gpu = {"name": "L4", "compute_capability": {"value": "8.9", "source": "a test", "confidence": "probed"}}
    board = {"kind": "gpu", "description": "a card", "gpu": gpu}

    def written(options: Any) -> Path:
        return own(tmp_path, board=board, runtimes=[{"name": "tensorrt", "precisions": ["fp32"], "options": options}])

    assert load_profile(written({"workspace_mib": 512})).runtimes[0].options == {"workspace_mib": 512}
    for options, words in (
        ({"workspace_mib": "much"}, r"runtimes\[0\].options: option 'workspace_mib' is a whole number"),
        ({"strip": True}, r"runtimes\[0\].options: runtime 'tensorrt' has no option 'strip'"),
        ({"batch_min": 2}, r"runtimes\[0\].options: batch_min 2, batch 1 and batch_max 1 are out of order"),
    ):
        with pytest.raises(RecipeError, match=words):
            load_profile(written(options))


def test_a_target_that_is_reached_by_ssh_names_its_device(tmp_path: Path) -> None:
    assert load_profile(own(tmp_path, reached="ssh", device="shelf-1")).device == "shelf-1"
    for changes, words in (
        ({"reached": "ssh"}, "device: is missing; a target that is reached by ssh names a device of devices.yaml"),
        ({"device": "shelf-1"}, "device: goes with reached: ssh, got 'shelf-1' with 'local'"),
        ({"reached": "ssh", "device": "-oProxy"}, "device: must be a text that matches"),
    ):
        with pytest.raises(RecipeError, match=words):
            load_profile(own(tmp_path, **changes))


def test_cores_say_how_many_threads_there_are_and_each_is_named_once(tmp_path: Path) -> None:
    assert load_profile(own(tmp_path, cores=[4, 5, 6, 7])).threads == 4
    assert load_profile(own(tmp_path, cores=[4, 5, 6, 7], threads=2)).threads == 2
    for changes, words in (
        ({"cores": [1, 1]}, r"cores: names one twice, got \[1, 1\]"),
        ({"cores": [1, 2], "threads": 3}, "threads: must be at most the 2 cores, got 3"),
        ({"cores": [-1]}, r"cores\[0\]: must be a whole number at least 0, got -1"),
    ):
        with pytest.raises(RecipeError, match=words):
            load_profile(own(tmp_path, **changes))


def test_a_file_and_what_it_holds_have_one_name(tmp_path: Path) -> None:
    own(tmp_path, "mine").rename(tmp_path / "yours.yaml")

    with pytest.raises(InputError, match="is called 'mine' inside"):
        load_profile(tmp_path / "yours.yaml")


@pytest.mark.parametrize(
    ("target", "is_file"), [("cpu", False), ("a.yaml", True), ("a.yml", True), ("./cpu", True), ("my/cpu", True)]
)
def test_a_target_is_a_name_or_a_file(target: str, is_file: bool) -> None:
    assert names_file(target) == is_file


def test_what_can_be_used_here_comes_without_a_reason() -> None:
    found = usable_runtimes(profile(runtimes=(RuntimeChoice(name="onnxruntime", precisions=("fp32",)),)))

    assert [(choice.name, reason) for choice, reason in found] == [("onnxruntime", None)]


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        (RuntimeChoice(name="onnxruntime", versions="<1"), "is installed, the target needs <1"),
    ],
    ids=["version"],
)
def test_a_runtime_that_cannot_be_used_says_why(choice: RuntimeChoice, reason: str) -> None:
    [(_, said)] = usable_runtimes(profile(runtimes=(choice,)))

    assert said is not None
    assert reason in said


def test_a_board_of_another_kind_cannot_be_used() -> None:
    other = "aarch64" if probe()["architecture"] == "x86_64" else "x86_64"
    foreign = profile(board={"kind": "cpu", "description": "another", "architecture": other})
    exotic = profile(board=Board(kind="cpu", description="another", instruction_sets=("quantum",)))

    assert all(reason and other in reason for _, reason in usable_runtimes(foreign))
    assert all(reason == "this processor lacks quantum" for _, reason in usable_runtimes(exotic))


def test_only_the_precisions_that_the_processor_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.profile.probe", lambda: {**probe(), "instruction_sets": ()})
    choice = RuntimeChoice(name="onnxruntime", precisions=("fp32", "bf16"))
    usable, lacking = usable_runtimes(profile(runtimes=(choice,)))

    assert usable == (choice.replace(precisions=("fp32",)), None)
    assert lacking[0].precisions == ("bf16",)
    assert lacking[1] == "bf16 needs avx512_bf16 or amx_bf16 or bf16, this processor has none of them"


@pytest.mark.parametrize(
    ("runtime", "told"),
    [
        ({"name": "onnxruntime", "hint": "throughput"}, "runtimes[0].hint: option 'hint' is one of openvino, "),
        ({"name": "openvino", "streams": 2}, "runtimes[0].streams: option 'streams' goes with hint 'throughput'"),
        ({"name": "openvino", "hint": "fast"}, "runtimes[0].hint: must be 'latency' or 'throughput', got 'fast'"),
        (
            {"name": "openvino_npu", "precisions": ["fp32"]},
            "runtimes[0].precisions[0]: openvino_npu does not run 'fp32'; it runs fp16, int8",
        ),
    ],
)
def test_a_hint_or_precision_that_a_runtime_does_not_take_is_told_at_its_place(
    tmp_path: Path, runtime: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_profile(own(tmp_path, runtimes=[runtime]))

    assert told in str(caught.value)


def test_a_hint_with_streams_is_a_choice_of_the_target(tmp_path: Path) -> None:
    choice = {"name": "openvino", "precisions": ["fp32"], "hint": "throughput", "streams": 2}

    [found] = load_profile(own(tmp_path, runtimes=[choice])).runtimes

    assert (found.hint, found.streams) == ("throughput", 2)


def test_a_device_that_is_missing_is_the_reason_and_one_that_is_there_needs_nothing_of_the_processor() -> None:
    target = profile(
        runtimes=(
            RuntimeChoice(name="openvino_gpu", precisions=("fp32", "fp16")),
            RuntimeChoice(name="openvino_npu", precisions=("fp16",)),
        )
    )

    found = usable_runtimes(
        target, installed=lambda name: "2026.4", device=lambda name: "no NPU" if name == "openvino_npu" else None
    )

    assert [(choice.name, choice.precisions, reason) for choice, reason in found] == [
        ("openvino_gpu", ("fp32", "fp16"), None),
        ("openvino_npu", ("fp16",), "no NPU"),
    ]
