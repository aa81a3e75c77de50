"""package and verify as a user types them: what they print, their exit codes, and what they refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from targets.bundle.write import write_bundle
from tests.targets.bundle.classifier import PREPROCESS, SPEC, write_engine_folder, write_onnx

Command = Callable[..., Any]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A target's folder with a bundle, as a build leaves it, without its report."""
    write_bundle(
        tmp_path / "out" / "cpu" / "bundle",
        engine=write_engine_folder(tmp_path / "work" / "engine"),
        onnx=write_onnx(tmp_path / "work" / "graph.onnx"),
        spec=SPEC,
        preprocess=PREPROCESS,
        labels=["red", "green", "blue"],
        card={"name": "tiny", "recipe_digest": "ab" * 32, "provenance": {"recipe_digest": "ab" * 32}},
    )
    return tmp_path / "out" / "cpu"


def fits(text: str) -> bool:
    return max((len(line) for line in text.splitlines()), default=0) <= 80


def refused(answer: Any, *parts: str) -> None:
    assert answer.code == 2, answer
    assert len(answer.err.strip().splitlines()) == 1, answer.err
    for part in parts:
        assert part in answer.err, answer.err


def test_a_bundle_is_packed_and_verified(command: Command, target: Path) -> None:
    packed = command("package", target, "--licence", "MIT")
    path = target / "tiny-onnxruntime-fp32.zip"
    verified = command("verify", path)

    assert (packed.code, verified.code) == (0, 0), packed.err + verified.err
    assert path.is_file()
    assert fits(packed.out)
    assert fits(verified.out)
    assert verified.out.startswith("complete")
    for words in ("MIT", "as `vitrim package` wrote it", "fits this machine"):
        assert words in verified.out


def test_bundle_target_and_build_name_the_same_bundle(command: Command, target: Path, tmp_path: Path) -> None:
    for index, place in enumerate((target / "bundle", target, target.parent)):
        assert command("package", place, "-o", tmp_path / f"{index}.zip").code == 0

    assert len({(tmp_path / f"{index}.zip").read_bytes() for index in range(3)}) == 1


def test_a_zip_can_be_packed_again(command: Command, target: Path, tmp_path: Path) -> None:
    command("package", target, "-o", tmp_path / "a.zip")
    command("package", tmp_path / "a.zip", "-o", tmp_path / "b.zip")
    again = command("package", tmp_path / "a.zip", "-o", tmp_path / "c.zip", "--licence", "MIT", "--json")

    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert json.loads(again.out)["sha256"] != ""
    assert json.loads(command("verify", tmp_path / "c.zip", "--json").out)["manifest"]["licence"] == "MIT"


def test_verify_tells_programs_all_it_knows(command: Command, target: Path) -> None:
    told = json.loads(command("verify", target / "bundle", "--json").out)

    assert (told["state"], told["problems"], told["kind"]) == ("complete", [], "folder")
    assert told["engine"] == {"fits_here": True, "told": ""}
    assert told["manifest"]["name"] == "tiny"


def test_damage_is_exit_1_and_names_each_file(command: Command, target: Path) -> None:
    (target / "bundle" / "labels.json").write_text("[]")
    (target / "bundle" / "more").write_text("x")
    answer = command("verify", target / "bundle")
    told = command("verify", target / "bundle", "--json")

    assert (answer.code, told.code) == (1, 1)
    assert "damaged" in answer.out
    assert "'labels.json' was changed" in answer.out
    assert json.loads(told.out)["problems"] == ["'labels.json' was changed", "'more' is extra"]
    assert answer.err == told.err == ""


def test_an_engine_for_another_machine_is_information(command: Command, tmp_path: Path) -> None:
    write_bundle(
        tmp_path / "bundle",
        engine=write_engine_folder(tmp_path / "engine", bound_to={"architecture": "vax"}),
        onnx=write_onnx(tmp_path / "graph.onnx"),
        spec=SPEC,
        preprocess=PREPROCESS,
        labels=None,
        card={},
    )
    answer = command("verify", tmp_path / "bundle")

    assert answer.code == 0
    assert fits(answer.out)
    assert "not for this machine" in answer.out
    assert "'vax'" in answer.out


def test_papers_lie_beside_the_package(command: Command, target: Path, tmp_path: Path) -> None:
    told = json.loads(command("package", target, "-o", tmp_path / "a.zip", "--provenance", "--bom", "--json").out)
    statement = json.loads((tmp_path / "a.zip.provenance.json").read_text())
    bom = json.loads((tmp_path / "a.zip.cdx.json").read_text())

    assert told["papers"] == [str(tmp_path / "a.zip.provenance.json"), str(tmp_path / "a.zip.cdx.json")]
    assert statement["subject"] == [{"name": "a.zip", "digest": {"sha256": told["sha256"]}}]
    assert bom["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": told["sha256"]}]


def test_a_repository_for_triton_is_written(command: Command, target: Path, tmp_path: Path) -> None:
    answer = command("package", target, "--triton", tmp_path / "models")
    both = command("package", target, "--triton", tmp_path / "models", "-o", tmp_path / "a.zip", "--json")

    assert answer.code == both.code == 0
    assert fits(answer.out)
    assert "Not yet run in Triton." in answer.out
    assert (tmp_path / "models" / "tiny" / "config.pbtxt").is_file()
    assert not list(target.glob("*.zip")), "no zip without --output"
    assert json.loads(both.out)["triton"]["max_batch_size"] == 8
    assert (tmp_path / "a.zip").is_file()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("package", "{tmp}/none"), ("no bundle in", "vitrim build --output")),
        (("package", "{tmp}/work"), ("no bundle in",)),
        (("package", "{target}", "--licence", ""), ("--licence is one line",)),
        (("package", "{target}", "--license-file", "{tmp}/none.txt"), ("none.txt", "No such file")),
        (("package", "{target}", "-o", "{tmp}/work"), ("is in the way",)),
        (("package", "{target}", "-o", "{target}/bundle/a.zip"), ("is inside of the bundle",)),
        (("package", "{target}", "--triton", "{target}/bundle/engine/t"), ("is inside of the bundle",)),
        (("package", "{target}", "--licence", "\udc80"), ("--licence is one line",)),
        (("verify", "/dev/null"), ("neither a folder nor a file",)),
        (("package", "{target}", "--max-batch", "4"), ("--max-batch 4 goes with --triton",)),
        (("package", "{target}", "--triton", "{tmp}/m", "--max-batch", "0"), ("from 1 to 65,536, got 0",)),
        (("package", "{target}", "--triton", "{tmp}/m", "--bom"), ("--bom goes with a zip", "--output")),
        (("package", "{target}", "--triton", "{tmp}/work"), ("is not a model repository",)),
        (("verify", "{tmp}/none"), ("none", "No such file")),
        (("verify", "{tmp}"), ("no manifest.json",)),
        (("verify", "{tmp}/work/graph.onnx"), ("neither a folder nor a zip",)),
    ],
    ids=str,
)
def test_bad_input_is_one_line(command: Command, target: Path, tmp_path: Path, words, parts) -> None:
    refused(command(*(word.format(tmp=tmp_path, target=target) for word in words)), *parts)


def test_several_bundles_are_named(command: Command, target: Path) -> None:
    (target.parent / "other").symlink_to(target)

    refused(command("package", target.parent), "holds 2 bundles", "cpu", "other")


def test_a_damaged_bundle_is_not_packed(command: Command, target: Path, tmp_path: Path) -> None:
    (target / "bundle" / "run.py").write_text("")
    answer = command("package", target, "-o", tmp_path / "a.zip")

    assert answer.code == 1
    assert "is damaged: 'run.py' was changed" in answer.err
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize("name", ["package", "verify"])
def test_their_help_fits_80_columns(command: Command, name: str) -> None:
    answer = command(name, "--help")

    assert answer.code == 0
    assert fits(answer.out)
