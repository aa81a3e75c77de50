"""Refinement trains one MLP at a time, towards the source, and is dropped where the error rose."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stages.prune_mlp.options import PruneMlpOptions
from stages.prune_mlp.prune import prune
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from targets.errors import InputError

MakeModel = Callable[..., tuple[ViT, ViTSpec]]


@pytest.fixture
def batches() -> list[Tensor]:
    return list(torch.randn(160, 3, 32, 32, generator=torch.Generator().manual_seed(3)).split(16))


def distance(model: ViT, other: ViT) -> float:
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return float((model(images) - other(images)).square().mean())


@pytest.mark.parametrize("kind", [{}, {"layer_scale": True}, {"mlp_kind": "swiglu", "activation": "silu"}], ids=str)
def test_a_refined_model_answers_more_like_the_source(
    make_model: MakeModel, batches: list[Tensor], kind: dict[str, Any]
) -> None:
    model, spec = make_model(**kind)
    plain, _, _ = prune(model, spec, PruneMlpOptions(keep=0.5, refine=0), batches)
    refined, _, facts = prune(model, spec, PruneMlpOptions(keep=0.5, refine=20, refine_lr=0.01), batches)

    assert distance(model, refined) < 0.9 * distance(model, plain)
    assert all(row["refined"]["error_after"] < row["refined"]["error_before"] for row in facts["blocks"])
    assert "refined in 20 passes" in facts["summary"]


def test_a_refinement_that_does_not_help_is_taken_back(make_model: MakeModel, batches: list[Tensor]) -> None:
    model, spec = make_model()
    plain, _, _ = prune(model, spec, PruneMlpOptions(keep=0.5, refine=0), batches)
    spoilt, _, facts = prune(model, spec, PruneMlpOptions(keep=0.5, refine=3, refine_lr=100.0), batches)

    assert all(row["refined"]["error_after"] > row["refined"]["error_before"] for row in facts["blocks"])
    assert distance(plain, spoilt) == 0


@pytest.mark.parametrize(("take_back", "exact"), [(0.0, True), (1.0, False)])
def test_what_is_trained_towards_leans_to_the_block_as_it_was(
    make_model: MakeModel, batches: list[Tensor], take_back: float, exact: bool
) -> None:
    """Block 0 loses most of its neurons; the others none that matter, so alone they can be exact."""
    model, spec = make_model()
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.fc2.weight[:, 16:] = 0
    options = PruneMlpOptions(widths=(2, 16, 16), take_back=take_back, ridge=0.0, refine=1, refine_lr=1e-9)

    _, _, facts = prune(model, spec, options, batches)

    assert (facts["blocks"][1]["refined"]["error_before"] < 1e-6) is exact


def test_refinement_is_the_same_each_time_and_leaves_no_gradients(make_model: MakeModel, batches: list[Tensor]) -> None:
    model, spec = make_model()
    options = PruneMlpOptions(keep=0.5, refine=2)
    one, two = (prune(model, spec, options, batches)[0] for _ in range(2))

    assert distance(one, two) == 0
    assert all(parameter.grad is None for parameter in one.parameters())


def test_a_single_chunk_of_images_is_enough(make_model: MakeModel, batches: list[Tensor]) -> None:
    model, spec = make_model()
    _, _, facts = prune(model, spec, PruneMlpOptions(keep=0.5, refine=2), batches[:1])

    assert len(facts["blocks"]) == 3


@pytest.mark.parametrize(
    ("options", "kind", "few", "passes"),
    [
        ({}, {}, False, 1),
        ({}, {}, True, 0),
        ({}, {"norm_placement": "post"}, False, 0),
        ({"repair": "parallel"}, {}, False, 0),
        ({"repair": "none"}, {}, False, 0),
        ({"refine": 0}, {}, False, 0),
        ({"refine": 1}, {}, True, 1),
    ],
    ids=str,
)
def test_one_pass_is_the_default_where_it_can_be_done_and_images_are_enough(
    options: dict[str, Any],
    kind: dict[str, Any],
    few: bool,
    passes: int,
    make_model: MakeModel,
    batches: list[Tensor],
) -> None:
    model, spec = make_model(**kind)
    images = [batches[0][:8]] if few else batches

    _, _, facts = prune(model, spec, PruneMlpOptions.model_validate({"keep": 0.5, **options}), images)

    assert {row.get("refined", {}).get("passes", 0) for row in facts["blocks"]} == {passes}
    assert ("refined in 1 pass" in facts["summary"]) is bool(passes)


@pytest.mark.parametrize("repair", ["parallel", "none"])
def test_refinement_goes_with_sequential_repair_only(repair: str) -> None:
    with pytest.raises(ValidationError, match="repair: sequential only"):
        PruneMlpOptions.model_validate({"refine": 1, "repair": repair})


def test_post_norm_models_are_refused(make_model: MakeModel, batches: list[Tensor]) -> None:
    model, spec = make_model(norm_placement="post")

    with pytest.raises(InputError, match="pre-norm"):
        prune(model, spec, PruneMlpOptions(keep=0.5, refine=1), batches)
