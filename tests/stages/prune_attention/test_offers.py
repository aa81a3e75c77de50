"""Offers: prices of all shapes from one visit, against shapes that are really cut."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.prune_attention.offers import AttentionOffer, offers
from stages.prune_attention.options import AttentionShape, PruneAttentionOptions
from stages.prune_attention.prune import prune
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from stages.vit.sweep import Part, sweep, weigh_tokens

MakeModel = Callable[..., tuple[ViT, ViTSpec]]


def price(model: ViT, spec: ViTSpec, pictures: list[Tensor], *, sequential: bool = False) -> list[AttentionOffer]:
    found: list[AttentionOffer] = []
    sweep(
        model,
        deepcopy(model),
        pictures,
        {Part.ATTENTION: lambda visit: found.append(offers(visit))},
        sequential=sequential,
        weigh=weigh_tokens(spec),
    )
    return found


def cost(model: ViT, spec: ViTSpec, pictures: list[Tensor], shape: dict[str, int]) -> float:
    """Relative error of the first block when it is really cut."""
    whole = [{"heads": 3, "d_qk": 8, "d_v": 8}] * 2
    options = PruneAttentionOptions.model_validate({"shapes": [shape, *whole], "repair": "parallel", "ridge": 1e-4})
    _, _, facts = prune(model, spec, options, pictures)
    return float(facts["blocks"][0]["relative_error"])


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize(
    "kind", [{}, {"layer_scale": True}, {"norm_placement": "post"}, {"heads": 1}, {"d_qk": 1, "d_v": 2}], ids=str
)
def test_more_costs_less_and_everything_costs_nothing(
    kind: dict[str, Any], sequential: bool, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**kind)

    for offer, block in zip(price(model, spec, pictures, sequential=sequential), spec.blocks, strict=True):
        assert offer.error(AttentionShape.of(block)) == 0
        assert offer.qk_error.shape == (block.heads, block.d_qk + 1)
        assert offer.v_error.shape == (block.heads, block.d_v + 1)
        for curve in (offer.qk_error, offer.v_error, offer.head_error[None]):
            assert bool((curve.diff(dim=1) <= 1e-9).all())
            assert bool(curve.isfinite().all())
        assert sorted(offer.head_order.tolist()) == list(range(block.heads))
        assert offer.error(AttentionShape(heads=0, d_qk=0, d_v=0)) == pytest.approx(1.0, abs=0.01)
        for heads in range(1, block.heads + 1):
            shape = AttentionShape(heads=heads, d_qk=1, d_v=2)
            assert float(offer.table(heads)[1, 2]) == pytest.approx(offer.error(shape))


@pytest.mark.parametrize("shape", [{"heads": 2, "d_qk": 8, "d_v": 8}, {"heads": 1, "d_qk": 8, "d_v": 8}], ids=str)
def test_the_price_of_heads_is_what_they_cost(
    shape: dict[str, int], make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(pooling="avg")

    told = price(model, spec, pictures)[0].error(AttentionShape.model_validate(shape))

    assert told == pytest.approx(cost(model, spec, pictures, shape), rel=0.05)


@pytest.mark.parametrize(
    ("shape", "factor"),
    [
        ({"heads": 3, "d_qk": 8, "d_v": 6}, 1.5),
        ({"heads": 3, "d_qk": 8, "d_v": 4}, 1.5),
        ({"heads": 3, "d_qk": 4, "d_v": 8}, 2.0),
        ({"heads": 3, "d_qk": 2, "d_v": 8}, 2.0),
        ({"heads": 3, "d_qk": 4, "d_v": 4}, 2.0),
    ],
    ids=str,
)
def test_the_price_of_widths_is_near_what_they_cost(
    shape: dict[str, int], factor: float, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(pooling="avg")

    told = price(model, spec, pictures)[0].error(AttentionShape.model_validate(shape))

    real = cost(model, spec, pictures, shape)
    assert real / factor < told < real * factor


def test_cheap_shapes_by_price_are_cheap_in_fact(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model(pooling="avg")
    shapes = [(3, 8, 6), (3, 6, 8), (3, 3, 8), (3, 8, 3), (2, 8, 8), (2, 4, 4), (1, 8, 8)]
    asked = [{"heads": heads, "d_qk": d_qk, "d_v": d_v} for heads, d_qk, d_v in shapes]
    offer = price(model, spec, pictures)[0]

    told = torch.tensor([offer.error(AttentionShape.model_validate(one)) for one in asked])
    real = torch.tensor([cost(model, spec, pictures, one) for one in asked])

    ranks = torch.stack([told.argsort().argsort(), real.argsort().argsort()]).double()
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.8


@pytest.mark.parametrize(
    "kind",
    [{"qk_norm_eps": 1e-6}, {"rope": True}, {"rope": True, "rope_per_head": True, "qk_norm_eps": 1e-6}],
    ids=str,
)
def test_what_norms_and_rotary_positions_forbid_has_no_price(
    kind: dict[str, Any], make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**kind)

    offer = price(model, spec, pictures)[0]

    assert bool(offer.qk_error[:, :-1].isinf().all())
    assert bool(offer.v_error.isfinite().all())
    assert bool(offer.head_error.isfinite().all())


def test_pricing_changes_nothing(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    changed = deepcopy(model)

    sweep(model, changed, pictures, {Part.ATTENTION: lambda visit: offers(visit) and None}, weigh=weigh_tokens(spec))

    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), changed.state_dict().values(), strict=True)
    )
