"""The stage as the pipeline runs it: folders in, folders out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from stages.data.images import ImageSet
from stages.prune_attention.options import PruneAttentionOptions, shapes_asked
from stages.prune_attention.stage import STAGE
from stages.stage import Role, StageContext
from stages.vit.files import load_labels, load_model, load_spec, save_model
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from targets.errors import InputError

MakeModel = Callable[..., tuple[ViT, ViTSpec]]


@pytest.fixture
def context(tmp_path: Path, make_model: MakeModel, image_set: ImageSet) -> Callable[..., StageContext]:
    """Build a context with a saved model."""
    model, spec = make_model(d_qk=16, d_v=16, proj_bias=False)
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


def test_a_pruned_folder_loads_and_keeps_its_labels(context: Callable[..., StageContext]) -> None:
    there, options = context("pruned"), PruneAttentionOptions(keep=0.5, heads=2)

    result = STAGE.run(options, there)

    spec = load_spec(there.output)
    assert [(block.heads, block.d_qk, block.d_v) for block in spec.blocks] == [(2, 8, 8)] * 3
    assert STAGE.reshape is not None
    assert STAGE.reshape(options, load_spec(there.input)) == spec
    assert load_model(there.output)(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    assert load_labels(there.output) == list("abcde")
    assert result.facts["images"] == 40
    assert result.facts["tokens"] == 40 * 17
    assert result.facts["summary"] == (
        "heads 3 to 2, d_qk 16 to 8, d_v 16 to 8 in 3 blocks, by rotate, proj repaired (sequential)"
    )
    assert not list(there.scratch.iterdir())


def test_the_same_input_gives_the_same_bytes(context: Callable[..., StageContext]) -> None:
    for name in ("one", "two"):
        STAGE.run(PruneAttentionOptions(keep=0.5), context(name))

    one, two = ({file.name: file.read_bytes() for file in context(name).output.iterdir()} for name in ("one", "two"))
    assert one == two


def test_weights_alone_ask_for_no_images(context: Callable[..., StageContext]) -> None:
    options = PruneAttentionOptions(method="magnitude", repair="none")

    result = STAGE.run(options, context("pruned", images=False))

    assert STAGE.roles(options) == ()
    assert STAGE.roles(PruneAttentionOptions()) == (Role.FIT,)
    assert result.facts["images"] == 0


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (3, 24, 24)),
        ({"keep": 0.5}, (3, 16, 16)),
        ({"keep": 0.5, "round_to": 12}, (3, 12, 12)),
        ({"keep": 0.01}, (3, 8, 8)),
        ({"qk": 0.5}, (3, 16, 32)),
        ({"v": 0.5, "qk": 0.75}, (3, 24, 16)),
        ({"heads": 2}, (2, 32, 32)),
        ({"heads": 0.01, "qk": 0.5}, (1, 16, 32)),
        ({"heads": 1.0}, (3, 32, 32)),
        ({"heads": 1}, (1, 32, 32)),
    ],
    ids=str,
)
def test_shapes_follow_the_options(options: dict[str, Any], shape: tuple[int, int, int], make_model: MakeModel) -> None:
    _, spec = make_model(d_qk=32, d_v=32)

    for asked in shapes_asked(PruneAttentionOptions.model_validate(options), spec):
        assert (asked.heads, asked.d_qk, asked.d_v) == shape


def test_a_block_without_attention_stays_as_it_is(make_model: MakeModel) -> None:
    _, spec = make_model(d_qk=32, d_v=32)
    off = spec.blocks[1].replace(attention="off", heads=3)
    spec = spec.replace(blocks=(spec.blocks[0], off, spec.blocks[2]))

    assert [shape.heads for shape in shapes_asked(PruneAttentionOptions(keep=0.5), spec)] == [3, 0, 3]
    assert STAGE.reshape is not None
    assert STAGE.reshape(PruneAttentionOptions(keep=0.5), spec).blocks[1] == off


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ({}, {"heads": 4}, "heads 4 cannot be had: a block has 3"),
        ({}, {"shapes": [{"heads": 1, "d_qk": 1, "d_v": 1}] * 2}, "shapes has 2 entries, the model has 3 blocks"),
        (
            {},
            {"shapes": [{"heads": 3, "d_qk": 9, "d_v": 8}] * 3},
            "block 0 cannot have d_qk 9; allowed: 1 to 8",
        ),
        (
            {},
            {"shapes": [{"heads": 0, "d_qk": 0, "d_v": 0}] * 3},
            "block 0 cannot have heads 0; allowed: 1 to 3",
        ),
        ({"qk_norm_eps": 1e-6}, {"qk": 0.5}, "qk 0.5 cannot be had: this model normalises q and k"),
        ({"attention_norm_eps": 1e-6}, {"v": 0.5}, "v 0.5 cannot be had: this model has a norm before proj"),
        (
            {"qk_norm_eps": 1e-6},
            {"shapes": [{"heads": 3, "d_qk": 4, "d_v": 8}] * 3},
            "block 0 cannot have d_qk 4 instead of 8: this model normalises",
        ),
    ],
    ids=str,
)
def test_impossible_shapes_are_refused(
    kind: dict[str, Any], options: dict[str, Any], reason: str, make_model: MakeModel
) -> None:
    _, spec = make_model(**kind)

    with pytest.raises(InputError, match=reason):
        shapes_asked(PruneAttentionOptions.model_validate(options), spec)


def test_the_default_written_out_is_the_same_option() -> None:
    assert PruneAttentionOptions().digest() == PruneAttentionOptions(keep=0.75).digest()


@pytest.mark.parametrize(
    "given",
    [
        {"keep": 0.5, "qk": 0.5},
        {"keep": 0.5, "shapes": [{"heads": 1, "d_qk": 1, "d_v": 1}]},
        {"heads": 2, "shapes": [{"heads": 1, "d_qk": 1, "d_v": 1}]},
        {"refine": 1, "repair": "parallel"},
        {"keep": 0},
        {"qk": 1.1},
        {"heads": 0},
        {"heads": 1.5},
        {"method": "l2"},
        {"ridge": -1},
        {"keeep": 0.5},
    ],
    ids=str,
)
def test_options_out_of_range_or_against_each_other_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PruneAttentionOptions.model_validate(given)
