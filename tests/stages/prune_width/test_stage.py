"""The stage as the pipeline runs it: folders in, folders out, and on to ONNX Runtime."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stages.data.images import ImageSet
from stages.export.stage import ExportOptions, export
from stages.prune_width.options import PruneWidthOptions, width_asked
from stages.prune_width.stage import STAGE
from stages.stage import Role, StageContext
from stages.vit.files import load_labels, load_model, load_spec, save_model
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from targets.worker import Worker

MakeModel = Callable[..., tuple[ViT, ViTSpec]]


@pytest.fixture
def context(tmp_path: Path, make_model: MakeModel, image_set: ImageSet) -> Callable[..., StageContext]:
    """Build a context with a saved model."""
    model, spec = make_model(fc2_bias=False)
    save_model(tmp_path / "source", spec, model.state_dict(), labels=list("abcde"))

    def build(name: str, *, images: bool = True) -> StageContext:
        for folder in (name, "scratch"):
            (tmp_path / folder).mkdir(exist_ok=True)
        return StageContext(
            input=tmp_path / "source",
            source=tmp_path / "source",
            output=tmp_path / name,
            scratch=tmp_path / "scratch",
            images={Role.FIT: image_set} if images else {},
        )

    return build


def test_a_narrower_folder_loads_and_keeps_its_labels(context: Callable[..., StageContext]) -> None:
    there, options = context("pruned"), PruneWidthOptions(keep=0.6)

    result = STAGE.run(options, there)

    spec = load_spec(there.output)
    assert spec.width == 16  # 14.4 to a multiple of 16
    assert STAGE.reshape is not None
    assert STAGE.reshape(options, load_spec(there.input)) == spec
    assert load_model(there.output)(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    assert load_labels(there.output) == list("abcde")
    assert result.facts["images"] == 40
    assert result.facts["summary"] == "width 24 to 16, by rotate, readers and writers repaired"
    assert [site["part"] for site in result.facts["sites"]] == ["attention", "mlp"] * 3 + ["head"]
    assert not list(there.scratch.iterdir())


def test_the_same_input_gives_the_same_bytes(context: Callable[..., StageContext]) -> None:
    for name in ("one", "two"):
        STAGE.run(PruneWidthOptions(keep=0.5), context(name))

    one, two = ({file.name: file.read_bytes() for file in context(name).output.iterdir()} for name in ("one", "two"))
    assert one == two


def test_weights_alone_ask_for_no_images(context: Callable[..., StageContext]) -> None:
    options = PruneWidthOptions(method="snp", repair="none")

    result = STAGE.run(options, context("pruned", images=False))

    assert STAGE.roles(options) == ()
    assert STAGE.roles(PruneWidthOptions()) == (Role.FIT,)
    assert result.facts["images"] == 0


@pytest.mark.parametrize("method", ["rotate", "energy"])
def test_onnx_runtime_answers_as_torch_does(
    method: str, context: Callable[..., StageContext], pictures: list[Tensor], tmp_path: Path
) -> None:
    there = context("pruned")
    STAGE.run(PruneWidthOptions.model_validate({"width": 13, "method": method}), there)
    images = pictures[0][:5]
    with torch.no_grad():
        expected = load_model(there.output)(images).numpy()

    (tmp_path / "graph").mkdir()
    folder = there.output
    export(
        ExportOptions(),
        StageContext(input=folder, source=folder, output=tmp_path / "graph", scratch=tmp_path, images={}),
    )

    with Worker(threads=1) as worker:
        worker.load(tmp_path / "graph" / "model.onnx", runtime="onnxruntime")
        found = worker.infer(images.numpy(), batch=5)
    assert float(np.abs(found["logits"] - expected).max()) < 1e-4 * float(np.abs(expected).max())


@pytest.mark.parametrize(
    ("options", "width"),
    [
        ({}, 16),  # 18 to a multiple of 16
        ({"keep": 0.75, "round_to": 1}, 18),
        ({"keep": 0.01}, 16),
        ({"keep": 1.0, "round_to": 7}, 24),
        ({"width": 5}, 5),
    ],
    ids=str,
)
def test_the_width_follows_the_options(options: dict[str, Any], width: int, make_model: MakeModel) -> None:
    _, spec = make_model()

    assert width_asked(PruneWidthOptions.model_validate(options), spec) == width


def test_the_default_written_out_is_the_same_option() -> None:
    assert PruneWidthOptions().digest() == PruneWidthOptions(keep=0.75).digest()


@pytest.mark.parametrize(
    "given", [{"keep": 0.5, "width": 8}, {"keep": 0}, {"keep": 1.1}, {"width": 0}, {"method": "pca"}, {"keeep": 0.5}]
)
def test_options_out_of_range_or_against_each_other_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PruneWidthOptions.model_validate(given)
