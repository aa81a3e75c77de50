"""The search for what to remove: scores as the formulas say, and greedy steps as models without it say."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.drop_attention.search import divergence, entropy, features_without, grow, transfer_entropy
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec

MakeModel = Callable[..., tuple[ViT, ViTSpec]]
REMOVALS = {
    "attention, doubled": ("attention", True),
    "attention, off": ("attention", False),
    "block": ("block", False),
}


def features(model: ViT, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.outputs(images, ["features"])["features"]


def built_without(model: ViT, spec: ViTSpec, dropped: tuple[int, ...], unit: str, doubled: bool) -> ViT:
    """The model without these, through its spec: nothing of the search."""
    changes = {"attention": "diluting" if doubled else "off"} | ({"mlp": False} if unit == "block" else {})
    blocks = tuple(block.replace(**changes) if i in dropped else block for i, block in enumerate(spec.blocks))
    smaller = ViT(spec.replace(blocks=blocks).model_dump(mode="json"))
    smaller.load_state_dict({name: model.state_dict()[name] for name in smaller.state_dict()})
    for block in smaller.blocks:
        block.dilution = 0.0
    return smaller.eval()


def test_entropy_is_that_of_gaussian_channels_but_for_a_constant() -> None:
    """Differences are what counts: a channel twice as wide has ln 2 more."""
    draw = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    wider = draw * torch.tensor([2.0, 1, 1, 3, 1, 1]) + 5

    assert entropy(wider) - entropy(draw) == pytest.approx(math.log(2) + math.log(3), abs=1e-6)
    assert entropy(draw) == pytest.approx(0.0, abs=0.3)


def test_a_channel_that_says_nothing_does_not_weigh_infinitely() -> None:
    assert math.isfinite(entropy(torch.zeros(10, 3)))


def test_transfer_entropy_counts_both_ways() -> None:
    draw = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    score = transfer_entropy(draw)

    assert score(draw) == 0
    assert score(draw * 2) == pytest.approx(score(draw / 2)) == pytest.approx(4 * math.log(2))


def test_divergence_is_that_of_the_answers(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, _ = make_model()
    whole = features(model, pictures[0])
    other = whole + 0.1 * torch.randn(whole.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, given = (F.softmax(model.head(one).double(), dim=-1) for one in (whole, other))
    expected = float((wanted * (wanted / given).log()).sum(dim=-1).mean())

    assert divergence(model, whole)(whole) == pytest.approx(0, abs=1e-9)
    assert divergence(model, whole)(other) == pytest.approx(expected, rel=1e-6)
    assert expected > 0


def test_without_a_head_the_features_are_compared(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, _ = make_model(classes=0)
    whole = features(model, pictures[0])
    score = divergence(model, whole)

    assert score(whole) == 0
    assert score(whole.mean(dim=0).expand_as(whole)) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(("unit", "doubled"), REMOVALS.values(), ids=REMOVALS.keys())
def test_features_are_those_of_a_model_built_without(
    unit: str, doubled: bool, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model()
    with torch.no_grad():
        embedded = [model.embed(batch) for batch in pictures]
    found = features_without(model, embedded, chosen={1}, candidates={0, 2, 3}, unit=unit, doubled=doubled)

    assert set(found) == {0, 2, 3, None}
    for block, given in found.items():
        dropped = (1,) if block is None else (1, block)
        expected = features(built_without(model, spec, dropped, unit, doubled), torch.cat(pictures))
        assert torch.allclose(given, expected, atol=1e-4), block


@pytest.mark.parametrize("by", ["entropy", "divergence"])
@pytest.mark.parametrize(("unit", "doubled"), REMOVALS.values(), ids=REMOVALS.keys())
def test_each_step_takes_what_costs_least_together_with_those_before(
    by: str, unit: str, doubled: bool, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(seed=3)
    images = torch.cat(pictures)
    whole = features(model, images)
    score = transfer_entropy(whole) if by == "entropy" else divergence(model, whole)
    with torch.no_grad():
        embedded = [model.embed(batch) for batch in pictures]
    steps = grow(model, embedded, score, candidates=range(4), count=3, unit=unit, doubled=doubled)

    chosen: tuple[int, ...] = ()
    for step in steps:
        expected = {
            block: score(features(built_without(model, spec, (*chosen, block), unit, doubled), images))
            for block in set(range(4)) - set(chosen)
        }
        assert step.scores == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert step.block == min(expected, key=lambda block: expected[block])
        assert step.score == step.scores[step.block]
        chosen = (*chosen, step.block)


def test_interactions_count(make_model: MakeModel, pictures: list[Tensor]) -> None:
    """Scores of the second step are not those of the first: otherwise one pass would be enough."""
    model, _ = make_model()
    with torch.no_grad():
        embedded = [model.embed(batch) for batch in pictures]
    score = divergence(model, features(model, torch.cat(pictures)))
    first, second = grow(model, embedded, score, candidates=range(4), count=2, unit="attention", doubled=False)

    assert all(second.scores[block] != pytest.approx(first.scores[block], rel=1e-3) for block in second.scores)


def test_equal_scores_go_to_the_first_block(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, _ = make_model()
    steps = grow(
        model, pictures_embedded(model, pictures), lambda features: 1.0, candidates=(3, 2, 1), count=2,
        unit="attention", doubled=False,
    )  # fmt: skip

    assert [step.block for step in steps] == [1, 2]


def pictures_embedded(model: ViT, pictures: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [model.embed(batch) for batch in pictures]
