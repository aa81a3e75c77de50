"""Packing: what the options change and what they leave, one file in one step, and papers that others can read."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from targets.bundle import package as package_module
from targets.bundle.package import Options, opened, package_bundle, read_card
from targets.bundle.provenance import bill_of_materials, statement
from targets.bundle.verify import check_bundle
from targets.errors import InputError, StageError, StoreError

Make = Callable[..., Path]
CARD = {
    "name": "tiny digits",
    "model": "vit_tiny",
    "target": {"name": "cpu"},
    "accuracy": {
        "metric": "top1",
        "baseline": 0.8,
        "engine": 0.79,
        "drop_points": 1.0,
        "drop_ci95": [0.2, 1.8],
        "agreement": 0.95,
        "images": 850,
    },
    "latency_ms": {"batch": 1, "p50": 4.2, "baseline_p50": 8.4, "speedup": 2.0, "speedup_ci95": [1.9, 2.1]},
    "steps": [{"name": "prune_mlp", "key": "ab" * 32}, {"name": "unnamed", "key": ""}],
    "recipe_digest": "cd" * 32,
    "provenance": {
        "engine_key": "ef" * 32,
        "recipe_digest": "cd" * 32,
        "versions": {"torch": "2.15", "python": "3.13"},
    },
}


def names(path: str) -> set[str]:
    with zipfile.ZipFile(path) as found:
        return {name.split("/", 1)[1] for name in found.namelist()}


def read(path: str, name: str) -> str:
    with zipfile.ZipFile(path) as found:
        return found.read(next(one for one in found.namelist() if one.split("/", 1)[1] == name)).decode()


def test_a_package_holds_the_bundle_as_it_is(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle(card=CARD)
    made = package_bundle(bundle, tmp_path / "a.zip", Options())

    with opened(tmp_path / "a.zip") as folder:
        assert {one.relative_to(folder): one.read_bytes() for one in folder.rglob("*") if one.is_file()} == {
            one.relative_to(bundle): one.read_bytes() for one in bundle.rglob("*") if one.is_file()
        }
        assert folder.name == made.folder == "tiny-digits-onnxruntime-fp32"
    assert made.size_bytes == (tmp_path / "a.zip").stat().st_size


def test_a_licence_is_stated_in_manifest_and_card(make_bundle: Make, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("Do as you like — größe.\n")
    made = package_bundle(
        make_bundle(card=CARD),
        tmp_path / "a.zip",
        Options(licence="CC-BY-4.0", licence_file=tmp_path / "words.txt"),
    )

    assert check_bundle(Path(made.path)).problems == ()
    assert made.manifest.licence == "CC-BY-4.0"
    assert "Weights: CC-BY-4.0." in read(made.path, "README.md")
    assert "| top1 of this engine | 79.00 %" in read(made.path, "README.md")
    assert read(made.path, "LICENSE") == "Do as you like — größe.\n"


def test_a_licence_file_alone_is_pointed_at(make_bundle: Make, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("words")
    made = package_bundle(make_bundle(), tmp_path / "a.zip", Options(licence_file=tmp_path / "words.txt"))

    assert made.manifest.licence == "see LICENSE"


def test_without_its_engine_the_graph_runs(make_bundle: Make, tmp_path: Path) -> None:
    from PIL import Image

    whole = make_bundle(card=CARD, bound_to={"architecture": "vax"})
    made = package_bundle(whole, tmp_path / "a.zip", Options(engine=False))
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    with opened(tmp_path / "a.zip") as folder:
        assert not (folder / "engine").exists()
        done = subprocess.run(
            [sys.executable, "-I", folder / "run.py", "--top", "1", tmp_path / "red.png"],
            capture_output=True,
            text=True,
            check=True,
        )

    assert check_bundle(Path(made.path)).problems == ()
    assert (made.manifest.engine_sha256, made.manifest.bound_to) == (None, {})
    assert done.stdout.splitlines()[1].endswith("red")
    assert "this bundle has no engine yet; running model.onnx" in done.stderr
    assert json.loads(read(made.path, "build.json")) == {"runtime": "onnxruntime", "options": {"threads": 1}}
    assert made.folder.endswith("-portable")
    assert "pip install numpy pillow onnxruntime\n" in read(made.path, "README.md")


def test_without_its_engine_a_bundle_of_tensorrt_tells_how_to_build_one(make_bundle: Make, tmp_path: Path) -> None:
    made = package_bundle(
        make_bundle(card=CARD, runtime="tensorrt", batch=4), tmp_path / "a.zip", Options(engine=False)
    )

    assert "build.sh" in names(made.path)
    assert "--optShapes=pixels:4x3x8x8" in read(made.path, "build.sh"), "the graph leaves its batch open"


@pytest.mark.parametrize(
    ("licence", "words"),
    [("", "one line"), ("a\nb", "one line"), ("x" * 201, "at most 200"), (" \t", "one line")],
)
def test_a_licence_is_one_line(make_bundle: Make, tmp_path: Path, licence: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        package_bundle(make_bundle(), tmp_path / "a.zip", Options(licence=licence))
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), (b"", "has 0 bytes"), (b"\xff\xfe", "not text in UTF-8"), (b"x" * (2**20 + 1), "allowed")],
    ids=["none", "empty", "not utf-8", "large"],
)
def test_a_licence_file_is_text(make_bundle: Make, tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "l").write_bytes(content)

    with pytest.raises(InputError, match=words):
        package_bundle(make_bundle(), tmp_path / "a.zip", Options(licence_file=tmp_path / "l"))


def test_a_damaged_bundle_is_not_packed(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle()
    (bundle / "model.onnx").write_bytes(b"x")

    with pytest.raises(StageError, match=r"is damaged: 'model.onnx' was changed; build it again"):
        package_bundle(bundle, tmp_path / "a.zip", Options())
    assert not (tmp_path / "a.zip").exists()


def test_an_older_bundle_is_packed_as_it_is_and_not_rewritten(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle()
    (bundle / "card.json").unlink()
    (bundle / "SHA256SUMS").unlink()
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["files"]["card.json"], manifest["sums"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))

    assert check_bundle(Path(package_bundle(bundle, tmp_path / "a.zip", Options()).path)).problems == ()
    with pytest.raises(InputError, match=r"older version and has no card.json"):
        package_bundle(bundle, tmp_path / "b.zip", Options(licence="MIT"))


def test_an_older_package_is_replaced_and_nothing_else(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle()
    package_bundle(bundle, tmp_path / "a.zip", Options(licence="MIT"))
    again = package_bundle(bundle, tmp_path / "a.zip", Options())
    (tmp_path / "mine.zip").write_bytes(b"mine")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as other:
        other.writestr("photo.jpg", b"x")
    with zipfile.ZipFile(tmp_path / "plugin.zip", "w") as other:
        other.writestr("plugin/manifest.json", b'{"format": "of a plugin"}')
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "link.zip").symlink_to(tmp_path / "a.zip")

    assert again.manifest.licence.startswith("not stated")
    for name in ("mine.zip", "photos.zip", "plugin.zip", "folder.zip", "link.zip"):
        with pytest.raises(InputError, match="choose another output"):
            package_bundle(bundle, tmp_path / name, Options())
    assert (tmp_path / "mine.zip").read_bytes() == b"mine"


def test_a_failure_leaves_the_older_package_and_no_temporary_file(
    make_bundle: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    package_bundle(bundle, tmp_path / "a.zip", Options())
    before = (tmp_path / "a.zip").read_bytes()
    errors: list[BaseException] = [OSError(28, "No space left on device"), KeyboardInterrupt()]
    for error in errors:

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(package_module.os, "fsync", fail)
        with pytest.raises((StoreError, KeyboardInterrupt)) as caught:
            package_bundle(bundle, tmp_path / "a.zip", Options(licence="MIT"))
        monkeypatch.undo()
        if isinstance(error, OSError):
            assert re.fullmatch(r"cannot write '.*a.zip': No space left on device; free some .*", str(caught.value))
        assert (tmp_path / "a.zip").read_bytes() == before
        assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_a_zip_in_a_place_that_cannot_be_made_is_one_line(make_bundle: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(StoreError, match=r"cannot write '.*': (File exists|Not a directory)"):
        package_bundle(make_bundle(), tmp_path / "file" / "a.zip", Options())


def test_provenance_is_an_in_toto_statement_with_slsa_s_predicate(make_bundle: Make, tmp_path: Path) -> None:
    """Structure: in-toto.io/Statement/v1 and slsa.dev/spec/v1.0/provenance, field by field."""
    bundle = make_bundle(card=CARD)
    made = package_bundle(bundle, tmp_path / "a.zip", Options())
    build = {"command": "vitrim build r.yaml", "recipe": "vitrim: 1\n", "engine_sha256": "x"}
    told = statement(made, card=read_card(bundle), build=build)
    definition, details = told["predicate"]["buildDefinition"], told["predicate"]["runDetails"]

    assert set(told) == {"_type", "subject", "predicateType", "predicate"}
    assert told["_type"] == "https://in-toto.io/Statement/v1"
    assert told["predicateType"] == "https://slsa.dev/provenance/v1"
    assert told["subject"] == [{"name": "a.zip", "digest": {"sha256": made.sha256}}]
    assert set(definition) == {"buildType", "externalParameters", "internalParameters", "resolvedDependencies"}
    assert re.match(r"[a-z]+:", definition["buildType"])
    assert definition["externalParameters"] == {
        "target": "cpu",
        "model": "vit_tiny",
        "recipe_digest": "cd" * 32,
        "command": "vitrim build r.yaml",
        "recipe": "vitrim: 1\n",
    }
    assert definition["resolvedDependencies"] == [
        {"name": "recipe", "digest": {"sha256": "cd" * 32}},
        {"name": "prune_mlp", "uri": f"urn:vitrim:key:{'ab' * 32}"},
        {"name": "engine_key", "uri": f"urn:vitrim:key:{'ef' * 32}"},
    ]
    assert re.match(r"[a-z]+:", details["builder"]["id"])
    assert details["builder"]["version"] == {"vitrim": made.manifest.vitrim, "torch": "2.15", "python": "3.13"}
    assert {one["name"]: one["digest"]["sha256"] for one in details["byproducts"]} == {
        name: file.sha256 for name, file in made.manifest.files.items()
    }


def test_papers_depend_on_the_package_alone(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle(card=CARD)
    card = read_card(bundle)
    made = [package_bundle(bundle, tmp_path / "a.zip", Options()) for _ in range(2)]

    assert statement(made[0], card=card, build=None) == statement(made[1], card=card, build=None)
    assert bill_of_materials(made[0], card=card) == bill_of_materials(made[1], card=card)


def test_the_bill_of_materials_names_model_files_and_what_built_it(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle(card=CARD)
    made = package_bundle(bundle, tmp_path / "a.zip", Options(licence="MIT"))
    told = bill_of_materials(made, card=read_card(bundle))
    model = told["metadata"]["component"]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]

    assert (told["bomFormat"], told["specVersion"]) == ("CycloneDX", "1.6")
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", told["serialNumber"])
    assert (model["type"], model["licenses"]) == ("machine-learning-model", [{"license": {"name": "MIT"}}])
    assert model["hashes"] == [{"alg": "SHA-256", "content": made.sha256}]
    assert {one["type"]: one["value"] for one in metrics}["top1"] == "0.79"
    assert {one["name"] for one in told["components"] if one["type"] == "file"} == set(made.manifest.files)
    assert [one["purl"] for one in told["components"] if one["type"] == "library"] == ["pkg:pypi/torch@2.15"]
    references = [one["bom-ref"] for one in (model, *told["components"])]
    assert len(references) == len(set(references))


def test_a_card_without_figures_makes_papers_without_figures(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle()
    made = package_bundle(bundle, tmp_path / "a.zip", Options())
    bom = bill_of_materials(made, card=read_card(bundle))

    assert "quantitativeAnalysis" not in bom["metadata"]["component"]["modelCard"]
    assert (
        statement(made, card=read_card(bundle), build=None)["predicate"]["buildDefinition"]["externalParameters"] == {}
    )
