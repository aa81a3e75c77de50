"""The stage as the pipeline runs it: folders in, folders out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError

from stages.data.images import ImageSet
from stages.drop_attention.options import DropAttentionOptions, candidates, count_asked, reshaped
from stages.drop_attention.stage import STAGE
from stages.stage import Role, StageContext
from stages.vit.counts import count_macs, count_params
from stages.vit.files import load_labels, load_model, load_spec, load_state, save_model
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from stages.vit.timm_reader import read_spec
from targets.errors import InputError

MakeModel = Callable[..., tuple[ViT, ViTSpec]]


@pytest.fixture
def context(tmp_path: Path, make_model: MakeModel, image_sets: dict[Role, ImageSet]) -> Callable[..., StageContext]:
    """Build a context with a saved model and the images of the roles that the options ask for."""
    model, spec = make_model()
    save_model(tmp_path / "source", spec, model.state_dict(), labels=list("abcde"))

    def build(options: DropAttentionOptions, name: str = "out") -> StageContext:
        for folder in (name, "scratch"):
            (tmp_path / folder).mkdir(exist_ok=True)
        return StageContext(
            input=tmp_path / "source",
            source=tmp_path / "source",
            output=tmp_path / name,
            scratch=tmp_path / "scratch",
            images={role: image_sets[role] for role in STAGE.roles(options)},
        )

    return build


def test_a_folder_without_attentions_loads_and_keeps_its_labels(context: Callable[..., StageContext]) -> None:
    options = DropAttentionOptions(count=2)
    there = context(options)
    facts = STAGE.run(options, there).facts

    spec = load_spec(there.output)
    off = [index for index, block in enumerate(spec.blocks) if block.attention == "off"]
    assert off == facts["dropped"]
    assert len(off) == 2
    assert load_model(there.output)(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    assert load_labels(there.output) == list("abcde")
    assert sorted(step["block"] for step in facts["steps"]) == off
    assert [len(step["scores"]) for step in facts["steps"]] == [4, 3]
    assert facts["images"] == facts["repair"]["images"] == 40
    assert facts["params"][1] == count_params(spec) == sum(t.numel() for t in load_state(there.output).values())
    assert facts["macs"][1] == count_macs(spec) < facts["macs"][0]
    assert facts["summary"].startswith(f"attention of blocks {off[0]}, {off[1]} of 4 removed, MLPs behind fitted")
    assert not list(there.scratch.iterdir())


@pytest.mark.parametrize(("images", "warns"), [(10, True), (40, False)])
def test_few_tokens_for_a_neuron_are_told(images: int, warns: bool, context: Callable[..., StageContext]) -> None:
    """Each image has 17 tokens, each MLP 24 neurons."""
    options = DropAttentionOptions(blocks=(1,), images=images)

    assert ("warning" in STAGE.run(options, context(options)).facts) is warns


def test_dilution_is_left_to_distill(context: Callable[..., StageContext]) -> None:
    options = DropAttentionOptions(share=0.5, removal="dilute")
    there = context(options)
    facts = STAGE.run(options, there).facts

    before, after = load_state(there.input), load_state(there.output)
    assert STAGE.roles(options) == (Role.SELECT,)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [b.attention for b in load_spec(there.output).blocks].count("diluting") == 2
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(load_model(there.output)(images), load_model(there.input)(images), atol=1e-5)
    assert "repair" not in facts


def test_the_same_input_gives_the_same_bytes(context: Callable[..., StageContext]) -> None:
    options = DropAttentionOptions(count=1)
    for name in ("one", "two"):
        STAGE.run(options, context(options, name))

    one, two = (
        {file.name: file.read_bytes() for file in context(options, name).output.iterdir()} for name in ("one", "two")
    )
    assert one == two


@pytest.mark.parametrize(
    ("options", "roles"),
    [
        ({}, (Role.SELECT, Role.FIT)),
        ({"repair": "none"}, (Role.SELECT,)),
        ({"repair": "mean"}, (Role.SELECT, Role.FIT)),
        ({"blocks": (1,)}, (Role.FIT,)),
        ({"blocks": (1,), "repair": "none"}, ()),
        ({"blocks": (1,), "removal": "dilute"}, ()),
    ],
)
def test_images_are_read_where_they_decide(options: dict[str, Any], roles: tuple[Role, ...]) -> None:
    assert STAGE.roles(DropAttentionOptions.model_validate(options)) == roles


ASKED: list[dict[str, Any]] = [
    {},
    {"count": 3},
    {"blocks": (0, 2)},
    {"blocks": (0, 2), "repair": "none"},
    {"share": 0.5, "by": "divergence", "repair": "mean"},
    {"share": 0.5, "removal": "dilute"},
    {"unit": "block", "count": 2},
    {"unit": "block", "blocks": (3,), "repair": "mean"},
]


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("changes", [{}, {"fc2_bias": False, "position": "none", "patch_bias": False}], ids=str)
def test_plans_know_the_shapes_beforehand(
    asked: dict[str, Any],
    changes: dict[str, Any],
    context: Callable[..., StageContext],
    make_model: MakeModel,
    tmp_path: Path,
) -> None:
    model, spec = make_model(**changes)
    save_model(tmp_path / "source", spec, model.state_dict(), labels=list("abcde"))
    options = DropAttentionOptions.model_validate(asked)
    there = context(options)
    if changes:
        save_model(tmp_path / "source", spec, model.state_dict(), labels=list("abcde"))
    STAGE.run(options, there)
    planned, found = reshaped(options, spec), load_spec(there.output)

    if options.blocks is not None:
        assert planned == found
    # Biases are small against what is counted, and only some of the choices need one.
    assert count_macs(planned) == count_macs(found)
    assert count_params(planned) == pytest.approx(count_params(found), rel=0.01)


def test_images_cannot_choose_more_than_a_plan_says(make_model: MakeModel) -> None:
    """Of blocks of different shapes the smallest stand for those that will be chosen."""
    _, spec = make_model()
    blocks = (*spec.blocks[:3], spec.blocks[3].replace(heads=1))

    planned = reshaped(DropAttentionOptions(count=1), spec.replace(blocks=blocks))

    assert [block.attention for block in planned.blocks] == ["on", "on", "on", "off"]


@pytest.mark.parametrize(
    ("name", "share", "count", "params_percent", "macs_percent"),
    # Parameters of DeiT-B: NOSE (https://arxiv.org/abs/2404.05657). The rest: calculated.
    [
        ("deit_base_patch16_224", 0.4, 5, 13.7, 14.9),
        ("deit_base_patch16_224", 0.5, 6, 16.4, 17.9),
        ("deit_small_patch16_224", 0.25, 3, 8.1, 9.5),
        ("deit_small_patch16_224", 0.3, 4, 10.7, 12.7),
        ("deit_tiny_patch16_224", 0.25, 3, 7.8, 10.5),
    ],
)
def test_shares_save_what_the_paper_says(
    name: str, share: float, count: int, params_percent: float, macs_percent: float
) -> None:
    with torch.device("meta"):
        spec = read_spec(timm.create_model(name), name=name)
    options = DropAttentionOptions(share=share)
    after = reshaped(options, spec)

    assert count_asked(options, spec) == count
    assert 100 * (1 - count_params(after) / count_params(spec)) == pytest.approx(params_percent, abs=0.06)
    assert 100 * (1 - count_macs(after) / count_macs(spec)) == pytest.approx(macs_percent, abs=0.06)


@pytest.mark.parametrize(
    ("options", "changes", "reason"),
    [
        ({"count": 5}, {}, r"cannot remove 5 of this model's 4 attentions \(count is 5\); allowed: at most 4"),
        ({"count": 4, "unit": "block"}, {}, r"4 blocks \(count is 4\); allowed: at most 3, because one must stay"),
        ({"blocks": (4,)}, {}, "block 4 has no attention to remove; blocks that have one: 0, 1, 2, 3"),
        ({}, {"norm_placement": "post"}, "this model is post-norm: a norm stands between .* set repair: none"),
        ({"removal": "dilute"}, {"norm_placement": "post"}, "this model is post-norm: .* use removal: off"),
        ({"removal": "dilute"}, {"classes": 0, "final_norm_eps": None}, "gives features without a norm"),
        ({}, {"merge": (1, 0, 0, 0)}, "put merge_tokens behind it"),
    ],
)
def test_the_impossible_is_refused(
    options: dict[str, Any], changes: dict[str, Any], reason: str, make_model: MakeModel
) -> None:
    _, spec = make_model()

    with pytest.raises(InputError, match=reason):
        reshaped(DropAttentionOptions.model_validate(options), spec.replace(**changes))


def test_a_diluting_model_is_refused(make_model: MakeModel) -> None:
    _, spec = make_model()
    diluting = spec.replace(blocks=(spec.blocks[0].replace(attention="diluting"), *spec.blocks[1:]))

    with pytest.raises(InputError, match="distil it first"):
        reshaped(DropAttentionOptions(), diluting)


def test_a_post_norm_model_loses_attention_without_repair(
    make_model: MakeModel, context: Callable[..., StageContext], tmp_path: Path
) -> None:
    model, spec = make_model(norm_placement="post")
    options = DropAttentionOptions(count=1, repair="none")
    there = context(options)
    save_model(tmp_path / "source", spec, model.state_dict())
    STAGE.run(options, there)

    assert sum(block.attention == "off" for block in load_spec(there.output).blocks) == 1


def test_blocks_that_lost_their_attention_are_no_candidates(make_model: MakeModel) -> None:
    _, spec = make_model()
    dropped = reshaped(DropAttentionOptions(blocks=(1, 2)), spec)

    assert candidates(DropAttentionOptions(), dropped) == (0, 3)
    assert candidates(DropAttentionOptions(unit="block"), dropped) == (0, 1, 2, 3)
    assert count_asked(DropAttentionOptions(share=0.5), dropped) == 1


def test_the_default_written_out_is_the_same_option() -> None:
    assert DropAttentionOptions().digest() == DropAttentionOptions(share=0.25).digest()
    assert DropAttentionOptions.model_validate({"count": 2}).share is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"count": 1, "share": 0.5}, "give one of count, share and blocks"),
        ({"blocks": []}, "must name at least one block"),
        ({"blocks": [1, 1]}, "each once"),
        ({"unit": "block", "removal": "dilute"}, "dilute goes with unit attention only"),
        ({"count": 0}, "count"),
        ({"share": 1.0}, "share"),
        ({"by": "taste"}, "by"),
        ({"blocks": [-1]}, "blocks"),
    ],
)
def test_options_that_make_no_sense_are_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        DropAttentionOptions.model_validate(given)
