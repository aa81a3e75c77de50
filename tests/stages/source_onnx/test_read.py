"""A user's ONNX file becomes a graph that all stages understand, or is refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from pydantic import ValidationError

from stages.graph.described import macs_of, params_of, read_described
from stages.source_onnx.options import OnnxSourceOptions
from stages.source_onnx.read import save_graph
from stages.source_onnx.stage import files_read
from targets.errors import InputError
from tests.stages.source_onnx.graphs import CLASSES, FILTERS, write_cnn

PREPARED = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def options(path: Path, **changes: Any) -> OnnxSourceOptions:
    return OnnxSourceOptions.model_validate({"onnx": path, "preprocess": PREPARED, **changes})


def answer(path: Path, name: str, images: np.ndarray) -> np.ndarray:
    return np.asarray(ReferenceEvaluator(str(path)).run(None, {name: images})[0])


@pytest.mark.parametrize("hidden", ["h", "images"])
@pytest.mark.parametrize("external", [False, True])
def test_the_graph_computes_the_same_under_its_new_names(tmp_path: Path, hidden: str, external: bool) -> None:
    source = write_cnn(tmp_path / "net.onnx", hidden=hidden, named=False, external=external)
    (tmp_path / "made").mkdir()
    card, facts = save_graph(options(source), tmp_path / "made")
    model = onnx.load(tmp_path / "made" / "model.onnx")
    images = np.random.default_rng(1).normal(size=(3, 3, 16, 16)).astype(np.float32)

    onnx.checker.check_model(model, full_check=True)
    assert [one.name for one in model.graph.input] == ["images"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert len({node.name for node in model.graph.node}) == len(model.graph.node) == facts["operators"]
    assert all(node.name for node in model.graph.node)
    np.testing.assert_array_equal(
        answer(tmp_path / "made" / "model.onnx", "images", images), answer(source, "x", images)
    )
    assert read_described(tmp_path / "made") == card


def test_the_card_counts_what_is_in_the_graph(tmp_path: Path) -> None:
    card, _ = save_graph(options(write_cnn(tmp_path / "net.onnx")), tmp_path)

    assert (card.architecture, card.classes) == ("net", CLASSES)
    assert params_of(card) == FILTERS * 27 + FILTERS + FILTERS * CLASSES
    assert macs_of(card) == 16 * 16 * FILTERS * 27 + FILTERS * CLASSES
    assert (card.preprocess.height, card.preprocess.width, card.preprocess.std) == (16, 16, (0.25, 0.25, 0.25))


def test_an_output_is_chosen_by_name_and_the_others_go(tmp_path: Path) -> None:
    source = write_cnn(tmp_path / "net.onnx", features=True)
    first, _ = save_graph(options(source, classes=0), tmp_path)
    features = onnx.load(tmp_path / "model.onnx").graph.output
    second, _ = save_graph(options(source, output="y"), tmp_path)

    assert ([one.name for one in features], first.classes) == (["f"], 0)
    assert ([one.name for one in onnx.load(tmp_path / "model.onnx").graph.output], second.classes) == (["y"], CLASSES)


def test_class_names_lie_beside_the_graph(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(f"class {index}" for index in range(CLASSES)))
    save_graph(options(write_cnn(tmp_path / "net.onnx"), labels=tmp_path / "names.txt"), tmp_path)

    assert '"class 9"' in (tmp_path / "labels.json").read_text()
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    with pytest.raises(InputError, match="2 class names for 10 classes"):
        save_graph(options(tmp_path / "net.onnx", labels=tmp_path / "names.txt"), tmp_path)


@pytest.mark.parametrize(
    ("made", "asked", "words"),
    [
        ({"shape": (4, 3, 16, 16)}, {}, r"batch of onnx .* is fixed at 4; export it with a dynamic batch, or 1"),
        ({"shape": ("n", 3, "h", "w")}, {}, "leaves the size of its images open; say model.image_size"),
        ({}, {"image_size": 32}, "takes images of 16x16, model.image_size is 32x32"),
        ({"kind": TensorProto.DOUBLE}, {}, "not a valid ONNX file|it must be float32 Nx3xHxW"),
        ({"shape": ("n", 1, 16, 16)}, {}, "float nx1x16x16; it must be float32|x1x16x16; it must be float32"),
        ({}, {"output": "z"}, "no output 'z' of one row of numbers per image; its outputs are y"),
        ({}, {"classes": 7}, "model.classes is 7, but output 'y' of .* has 10 values"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, made: dict[str, Any], asked: dict[str, Any], words: str
) -> None:
    source = write_cnn(tmp_path / "net.onnx", **made)
    with pytest.raises(InputError, match=words) as caught:
        save_graph(options(source, **asked), tmp_path)

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.onnx").exists()


def test_a_size_that_the_graph_leaves_open_is_the_users(tmp_path: Path) -> None:
    source = write_cnn(tmp_path / "net.onnx", shape=("n", 3, "h", "w"))
    card, _ = save_graph(options(source, image_size=(24, 32)), tmp_path)

    assert (card.preprocess.height, card.preprocess.width) == (24, 32)
    dims = onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [0, 3, 24, 32]


@pytest.mark.parametrize("content", [b"", b"no graph", None], ids=["empty", "text", "cut short"])
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    source = write_cnn(tmp_path / "net.onnx")
    source.write_bytes(source.read_bytes()[:200] if content is None else content)

    with pytest.raises(InputError, match=r"is not a valid ONNX file|has the inputs none") as caught:
        save_graph(options(source), tmp_path)
    assert "\n" not in str(caught.value)


def test_how_images_are_prepared_must_be_said(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="preprocess"):
        OnnxSourceOptions.model_validate({"onnx": tmp_path / "net.onnx"})


def test_weights_beside_the_file_are_part_of_what_decides(tmp_path: Path) -> None:
    source = write_cnn(tmp_path / "net.onnx", external=True)

    assert files_read(options(source)) == {"onnx": source, "weights": tmp_path / "net.onnx.data"}
    with pytest.raises(InputError, match="is not there"):
        files_read(options(tmp_path / "absent.onnx"))
