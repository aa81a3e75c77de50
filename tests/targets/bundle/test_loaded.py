"""A bundle from Python: the engine's answers, without torch in its process, and in one line what is wrong."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitrim
from targets.bundle.loaded import LoadedBundle
from targets.bundle.package import Options, package_bundle
from targets.bundle.pixels import read_image
from targets.errors import InputError, StageError
from targets.preprocess import normalise, resize_and_crop
from targets.worker import Worker
from tests.targets.bundle.classifier import PREPROCESS, SPEC, expected_logits, write_onnx

Make = Callable[..., Path]


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A bundle whose engine a worker really built on this machine, for batches of two."""
    from targets.bundle.write import write_bundle

    graph = write_onnx(tmp_path / "graph.onnx")
    (tmp_path / "engine").mkdir()
    with Worker(threads=1) as worker:
        worker.build(graph, tmp_path / "engine", runtime="onnxruntime", precision="fp32", batch=2, threads=1)
    write_bundle(
        tmp_path / "a b" / "bundle",
        engine=tmp_path / "engine",
        onnx=graph,
        spec=SPEC,
        preprocess=PREPROCESS,
        labels=["red", "green", "blue"],
        card={},
    )
    return tmp_path / "a b" / "bundle"


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = []
    for index, colour in enumerate([(250, 20, 10), (10, 240, 30), (20, 30, 200)]):
        paths.append(tmp_path / f"photo {index}.png")
        Image.new("RGB", (20 + index, 30), colour).save(paths[-1])
    return paths


def reference(paths: list[Path]) -> np.ndarray:
    pixels = np.stack([resize_and_crop(read_image(path), PREPROCESS) for path in paths])
    return expected_logits(normalise(pixels, PREPROCESS))


def test_the_engine_answers(built: Path, photos: list[Path]) -> None:
    with vitrim.load(built) as bundle:
        assert isinstance(bundle, LoadedBundle)
        assert (bundle.runs, bundle.note, bundle.labels) == ("engine", "", ["red", "green", "blue"])
        assert np.allclose(bundle.logits(photos), reference(photos), atol=1e-5)
        first, second, third = bundle.classify(photos, top=2)

    assert [rows[0]["label"] for rows in (first, second, third)] == ["red", "green", "blue"]
    assert [len(rows) for rows in (first, second, third)] == [2, 2, 2]
    assert first[0]["probability"] == pytest.approx(
        float(np.exp(reference(photos)[0]).max() / np.exp(reference(photos)[0]).sum()), abs=1e-5
    )


def test_every_kind_of_image_gives_the_same_answer(built: Path, photos: list[Path]) -> None:
    image = read_image(photos[0])
    ready = normalise(resize_and_crop(image, PREPROCESS)[None], PREPROCESS)
    with vitrim.load(built) as bundle:
        answers = [
            bundle.logits(one)
            for one in (photos[0], str(photos[0]), [photos[0]], photos[0].read_bytes(), image, np.asarray(image), ready)
        ]

    assert all(np.array_equal(one, answers[0]) for one in answers)


def test_a_zip_is_as_good_as_a_folder(built: Path, photos: list[Path], tmp_path: Path) -> None:
    package_bundle(built, tmp_path / "p.zip", Options())

    with vitrim.load(tmp_path / "p.zip") as bundle:
        assert bundle.runs == "engine"
        assert np.allclose(bundle.logits(photos), reference(photos), atol=1e-5)


def test_an_engine_for_another_machine_gives_way_to_the_portable_graph(make_bundle: Make, photos: list[Path]) -> None:
    with vitrim.load(make_bundle(bound_to={"architecture": "vax"})) as bundle:
        assert bundle.runs == "model.onnx with onnxruntime"
        assert "built for architecture 'vax'" in bundle.note
        assert np.allclose(bundle.logits(photos), reference(photos), atol=1e-5)


def test_a_bundle_without_an_engine_runs_its_graph(make_bundle: Make, photos: list[Path]) -> None:
    with vitrim.load(make_bundle(without_engine=True)) as bundle:
        assert bundle.note == "the bundle has no engine yet"
        assert np.allclose(bundle.logits(photos), reference(photos), atol=1e-5)


def test_a_model_without_head_gives_features(make_bundle: Make, photos: list[Path]) -> None:
    with vitrim.load(make_bundle(classes=0, labels=None, output="features")) as bundle:
        assert np.allclose(bundle.features(photos), reference(photos), atol=1e-5)
        with pytest.raises(InputError, match=r"answers with features; use .features\(images\)"):
            bundle.classify(photos)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "no images"),
        ("none.png", "cannot read 'none.png': No such file"),
        (b"no image", "cannot read an image: not one of JPEG"),
        (np.zeros((4, 4), np.uint8), r"pixels are uint8 \[height, width, 3\], got uint8 \[4\]"),
        (np.zeros((1, 3, 9, 9), np.float32), r"have shape \[N, 3, 8, 8\], got \(1, 3, 9, 9\)"),
        (7, "got int"),
        ([None], "got NoneType"),
    ],
    ids=["none", "absent", "bytes", "grey", "size", "number", "null"],
)
def test_what_is_no_image_is_told_in_one_line(built: Path, images: object, words: str) -> None:
    with vitrim.load(built) as bundle, pytest.raises(InputError, match=words) as caught:
        bundle.logits(images)
    assert len(str(caught.value).splitlines()) == 1


def test_a_top_of_none_is_refused(built: Path, photos: list[Path]) -> None:
    with vitrim.load(built) as bundle, pytest.raises(InputError, match=r"top is a whole number from 1, got 0"):
        bundle.classify(photos, top=0)


def test_a_closed_bundle_says_so_and_leaves_no_process(built: Path, photos: list[Path]) -> None:
    bundle = vitrim.load(built)
    assert isinstance(bundle, LoadedBundle)
    pid = bundle._worker.pid
    bundle.close()
    bundle.close()

    with pytest.raises(InputError, match=r"is closed"):
        bundle.logits(photos)
    assert not Path(f"/proc/{pid}").exists()


def test_a_damaged_bundle_is_not_loaded(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle()
    (bundle / "model.onnx").write_bytes(b"x")

    with pytest.raises(StageError, match=r"is damaged: 'model.onnx' was changed; get it again"):
        vitrim.load(bundle)
    with pytest.raises(InputError, match=r"not a bundle: it has no manifest.json"):
        vitrim.load(tmp_path)


def test_loading_a_bundle_imports_no_torch_and_ends_with_its_program(built: Path, photos: list[Path]) -> None:
    code = (
        "import sys, vitrim; bundle = vitrim.load(sys.argv[1]); print(bundle.classify(sys.argv[2])[0][0]['label']);"
        "print([one for one in ('torch', 'onnxruntime', 'timm') if one in sys.modules])"
    )  # never closed: the end of the program does it
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, built, photos[1]], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["green", "[]"]
