"""The stage as the pipeline runs it: folders in, folders out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stages.data.images import ImageSet
from stages.prune_mlp.options import PruneMlpOptions, reshaped, widths_asked
from stages.prune_mlp.prune import prune
from stages.prune_mlp.stage import STAGE
from stages.stage import Role, StageContext
from stages.vit.files import load_labels, load_model, load_spec, save_model
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from targets.errors import InputError

MakeModel = Callable[..., tuple[ViT, ViTSpec]]


@pytest.fixture
def context(tmp_path: Path, make_model: MakeModel, image_set: ImageSet) -> Callable[..., StageContext]:
    """Build a context with a saved model."""
    model, spec = make_model()
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
    there = context("pruned")

    result = STAGE.run(PruneMlpOptions(keep=0.5), there)

    assert [block.mlp_width for block in load_spec(there.output).blocks] == [16, 16, 16]  # 12 to a multiple of 8
    assert load_model(there.output)(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    assert load_labels(there.output) == list("abcde")
    assert result.facts["images"] == 40
    assert result.facts["tokens"] == 40 * 17
    assert result.facts["summary"] == (
        "24 of 72 neurons in 3 blocks removed by ols, fc2 repaired (sequential), refined in 1 pass"
    )
    assert not list(there.scratch.iterdir())


def test_the_same_input_gives_the_same_bytes(context: Callable[..., StageContext]) -> None:
    for name in ("one", "two"):
        STAGE.run(PruneMlpOptions(keep=0.5), context(name))

    one, two = ({file.name: file.read_bytes() for file in context(name).output.iterdir()} for name in ("one", "two"))
    assert one == two


def test_dgmr_without_repair_asks_for_no_images(context: Callable[..., StageContext]) -> None:
    options = PruneMlpOptions(method="dgmr", repair="none")

    result = STAGE.run(options, context("pruned", images=False))

    assert STAGE.roles(options) == ()
    assert STAGE.roles(PruneMlpOptions()) == (Role.FIT,)
    assert result.facts["images"] == 0


@pytest.mark.parametrize("method", ["l2", "random"])
def test_methods_on_weights_alone_ask_for_no_images(method: str, context: Callable[..., StageContext]) -> None:
    options = PruneMlpOptions.model_validate({"method": method, "repair": "none", "keep": 0.5})

    STAGE.run(options, context("pruned", images=False))

    assert STAGE.roles(options) == ()
    assert STAGE.roles(options.model_copy(update={"repair": "parallel"})) == (Role.FIT,)


@pytest.mark.parametrize("method", ["similarity", "energy"])
def test_methods_on_activations_ask_for_images_even_without_repair(method: str) -> None:
    assert STAGE.roles(PruneMlpOptions.model_validate({"method": method, "repair": "none"})) == (Role.FIT,)


def test_another_seed_draws_other_neurons_and_the_same_seed_the_same(context: Callable[..., StageContext]) -> None:
    options = PruneMlpOptions(method="random", repair="none", keep=0.5)
    found = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        there = replace(context(name, images=False), seed=seed)
        STAGE.run(options, there)
        found.append((there.output / "model.safetensors").read_bytes())

    assert found[0] == found[1] != found[2]


def test_a_threshold_says_beforehand_what_the_widths_cannot_exceed(make_model: MakeModel) -> None:
    _, spec = make_model()
    options = PruneMlpOptions(method="similarity", threshold=0.9)

    assert widths_asked(options, spec) == (24, 24, 24)
    assert STAGE.reshapes_at_most(options)
    assert not STAGE.reshapes_at_most(PruneMlpOptions(method="similarity", keep=0.5))


@pytest.mark.parametrize(("options", "bias"), [({}, True), ({"repair": "none"}, False), ({"r": 1}, True)])
def test_the_spec_before_the_stage_says_what_the_spec_after_it_is(
    options: dict[str, Any], bias: bool, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(fc2_bias=False)
    asked = PruneMlpOptions.model_validate(options)
    _, pruned, _ = prune(model, spec, asked, pictures)

    assert reshaped(asked, spec) == pruned
    assert pruned.fc2_bias is bias


def test_too_few_images_are_refused_before_any_work_with_the_number_that_would_do(
    context: Callable[..., StageContext], make_model: MakeModel
) -> None:
    there = context("pruned")
    model, spec = make_model(mlp_width=100)
    save_model(there.input, spec, model.state_dict())

    with pytest.raises(InputError, match=r"5 images have 85 tokens, .* 100 neurons; give at least 6 .* better 59"):
        STAGE.run(PruneMlpOptions(images=5), there)
    assert not list(there.output.iterdir())
    STAGE.run(PruneMlpOptions(images=6), there)
    STAGE.run(PruneMlpOptions(images=5, keep=1), context("whole"))  # nothing to describe


def test_a_limit_takes_the_same_images_whatever_their_order(image_set: ImageSet) -> None:
    backwards = image_set.subset(range(len(image_set) - 1, -1, -1))

    assert image_set.first_by_content(7).fingerprint == backwards.first_by_content(7).fingerprint
    assert len(image_set.first_by_content(None)) == len(image_set)


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        ({}, 16),  # 18 by default, to a multiple of 8
        ({"keep": 0.7, "round_to": 1}, 17),
        ({"keep": 0.01}, 8),
        ({"keep": 1.0, "round_to": 7}, 24),
        ({"keep": 0.99, "round_to": 32}, 24),
        ({"r": 0.5}, 8),
        ({"r": 1.5}, 24),
        ({"widths": (1, 24, 3)}, (1, 24, 3)),
    ],
)
def test_widths_follow_the_options(options: dict[str, Any], widths: Any, make_model: MakeModel) -> None:
    _, spec = make_model()

    asked = widths_asked(PruneMlpOptions.model_validate(options), spec)

    assert asked == (widths if isinstance(widths, tuple) else (widths,) * 3)


def test_a_block_without_mlp_stays_as_it_is(make_model: MakeModel) -> None:
    _, spec = make_model()
    blocks = (spec.blocks[0], spec.blocks[1].replace(mlp=False, mlp_width=0), spec.blocks[2])

    assert widths_asked(PruneMlpOptions(keep=0.5), spec.replace(blocks=blocks)) == (16, 0, 16)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"r": 1.6}, r"r 1.6 asks for 26 neurons, an MLP of this model has 24; allowed: up to 1.5"),
        ({"widths": (8, 8)}, "widths has 2 entries, the model has 3 blocks"),
        ({"widths": (8, 25, 8)}, "block 1 cannot have 25 neurons; allowed: 1 to 24"),
        ({"widths": (8, 8, 0)}, "block 2 cannot have 0 neurons; allowed: 1 to 24"),
    ],
)
def test_impossible_widths_are_refused(options: dict[str, Any], reason: str, make_model: MakeModel) -> None:
    _, spec = make_model()

    with pytest.raises(InputError, match=reason):
        widths_asked(PruneMlpOptions.model_validate(options), spec)


def test_the_default_width_written_out_is_the_same_option() -> None:
    assert PruneMlpOptions().digest() == PruneMlpOptions(keep=0.75).digest()


@pytest.mark.parametrize("given", [{"keep": 0.5, "r": 1.0}, {"keep": 0.5, "widths": [1]}, {"r": 1, "threshold": 0.9}])
def test_two_ways_to_say_the_width_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="give one of keep, r, widths, threshold"):
        PruneMlpOptions.model_validate(given)


@pytest.mark.parametrize(
    "given",
    [
        {"keep": 0},
        {"keep": 1.1},
        {"method": "l3"},
        {"threshold": 0.98},
        {"ridge": -1},
        {"ridge": "big"},
        {"keeep": 0.5},
    ],
)
def test_options_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PruneMlpOptions.model_validate(given)
