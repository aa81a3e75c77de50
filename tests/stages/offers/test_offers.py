"""Prices of shapes: what is measured is what the model then does, and what is not lies between."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.data.images import ImageSet
from stages.offers.mlp import RIDGE
from stages.offers.options import OffersOptions
from stages.offers.record import Offers, Sublayer
from stages.offers.run import offers_of, offers_of_folder
from stages.prune.options import BlockShape, PruneOptions
from stages.prune.prune import prune
from stages.vit.files import save_model
from stages.vit.model import ViT
from stages.vit.spec import WEIGHTS_FILE, ViTSpec
from targets.errors import InputError

MakeModel = Callable[..., tuple[ViT, ViTSpec]]
OPTIONS = OffersOptions(mlp_multiple=4, head_multiple=4, refit=False)


def price(model: ViT, spec: ViTSpec, pictures: list[Tensor], options: OffersOptions = OPTIONS) -> Offers:
    with torch.no_grad():
        embedded = [model.embed(batch) for batch in pictures]
    return offers_of(model, spec, options, list(embedded), list(embedded))


def divergence(model: ViT, other: ViT, pictures: list[Tensor]) -> float:
    with torch.no_grad():
        wanted, given = (torch.cat([one(batch) for batch in pictures]).double() for one in (model, other))
    return float(F.kl_div(given.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True))


def of(offers: Offers, block: int, part: str) -> Sublayer:
    return next(one for one in offers.sublayers if (one.block, one.part) == (block, part))


def loss(sublayer: Sublayer, *shape: int) -> float:
    return next(offer.loss for offer in sublayer.offers if offer.shape == shape)


def test_every_sublayer_offers_every_legal_shape(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()

    offers = price(model, spec, pictures)

    assert [(one.block, one.part) for one in offers.sublayers] == [
        (index, part) for index in range(3) for part in ("attention", "mlp")
    ]
    assert [offer.shape for offer in of(offers, 1, "mlp").offers] == [(width,) for width in range(0, 33, 4)]
    assert len(of(offers, 1, "attention").offers) == 1 + 2 * 3 * 3
    assert all(one.offers[-1].loss == 0 for one in offers.sublayers)
    assert offers.unit == "kl_nats"


def test_no_head_is_narrower_than_the_target_allows(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    every, few = (
        {
            offer.shape[1:]
            for offer in of(price(model, spec, pictures, options), 1, "attention").offers
            if offer.shape[0]
        }
        for options in (OPTIONS, OPTIONS.replace(head_least=8))
    )

    assert few == {shape for shape in every if min(shape) >= 8}
    assert few < every


def test_less_width_never_costs_less(make_model: MakeModel, pictures: list[Tensor]) -> None:
    offers = price(*make_model(), pictures)

    for sublayer in offers.sublayers:
        if sublayer.part == "mlp":
            losses = [offer.loss for offer in sublayer.offers[1:]]
            assert losses == sorted(losses, reverse=True)
        for offer in sublayer.offers:
            assert offer.loss >= 0


@pytest.mark.parametrize(
    ("part", "shape"),
    [("mlp", {"mlp_width": 16}), ("mlp", {"mlp_width": 0}), ("attention", {"heads": 0, "d_qk": 0, "d_v": 0})],
)
def test_a_measured_price_is_what_the_pruned_model_then_loses(
    part: str, shape: dict[str, int], make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model()
    shapes = [BlockShape.of(block) for block in spec.blocks]
    shapes[1] = shapes[1].replace(**shape)
    options = PruneOptions(blocks=tuple(shapes), repair="parallel", ridge=RIDGE)
    pruned, _, _ = prune(model, spec, options, pictures)

    told = loss(of(price(model, spec, pictures), 1, part), *shape.values())

    assert told == pytest.approx(divergence(model, pruned, pictures), rel=0.02)


@pytest.mark.parametrize("shape", [{"d_qk": 4}, {"d_v": 4}, {"heads": 1}])
def test_a_measured_attention_is_the_one_that_pruning_makes(
    shape: dict[str, int], make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model()
    shapes = [BlockShape.of(block) for block in spec.blocks]
    shapes[1] = shapes[1].replace(**shape)
    pruned, _, _ = prune(model, spec, PruneOptions(blocks=tuple(shapes), repair="parallel", ridge=RIDGE), pictures)

    offers = of(price(model, spec, pictures), 1, "attention")
    (offer,) = (one for one in offers.offers if one.shape == (shapes[1].heads, shapes[1].d_qk, shapes[1].d_v))

    assert offer.measured
    # Pruning refines the axes of q and k image by image, which the prices leave out.
    assert offer.loss == pytest.approx(divergence(model, pruned, pictures), rel=0.5)


@pytest.mark.parametrize("shape", [(0, 0, 0), (1, 12, 12)], ids=["off", "one head"])
def test_heads_are_judged_with_the_mlp_of_their_block_fitted_again(
    shape: tuple[int, int, int], make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model()
    last = len(spec.blocks) - 1  # behind its MLP nothing else is fitted again
    shapes = [BlockShape.of(block) for block in spec.blocks]
    shapes[last] = shapes[last].replace(heads=shape[0], d_qk=shape[1], d_v=shape[2])
    pruned, _, facts = prune(
        model, spec, PruneOptions(blocks=tuple(shapes), ridge=RIDGE, attention_take_back=0), pictures
    )

    plain, fitted = (
        loss(of(price(model, spec, pictures, OPTIONS.replace(refit=one)), last, "attention"), *shape)
        for one in (False, True)
    )

    assert [row["block"] for row in facts["refitted"]] == [last]
    assert fitted < (0.9 if shape == (0, 0, 0) else 1) * plain
    assert fitted == pytest.approx(divergence(model, pruned, pictures), rel=0.1)


def test_what_is_superfluous_costs_nothing(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    model = deepcopy(model)
    with torch.no_grad():  # half of the neurons are copies; d_qk holds only four directions
        mlp = model.blocks[1].mlp
        for parameter in mlp.fc1.parameters():
            parameter[16:] = parameter[:16]
        for head in range(2):
            model.blocks[1].attn.qkv.weight[head * 12 + 4 : head * 12 + 12] = 0
            model.blocks[1].attn.qkv.bias[head * 12 + 4 : head * 12 + 12] = 0
    offers = price(model, spec, pictures)

    assert loss(of(offers, 1, "mlp"), 16) < 1e-7
    assert loss(of(offers, 1, "attention"), 2, 4, 12) < 1e-6
    assert loss(of(offers, 1, "mlp"), 4) > 1e-5


def test_a_model_without_head_is_judged_by_its_features(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model(classes=0)

    offers = price(model, spec, pictures)

    assert offers.unit == "feature_error"
    assert loss(of(offers, 0, "mlp"), 0) > loss(of(offers, 0, "mlp"), 16) > 0


def test_merging_is_priced_by_what_the_merged_model_loses(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()

    offers = price(model, spec, pictures, OPTIONS.replace(tokens=(0.5,))).merges

    assert {offer.merge for offer in offers} == {(0, 1, 1), (2, 0, 0), (0, 2, 0)}
    for offer in offers:
        merged = ViT(spec.replace(merge=offer.merge).model_dump(mode="json")).eval()
        merged.load_state_dict(model.state_dict())
        assert offer.loss == pytest.approx(divergence(model, merged, pictures), rel=1e-6)
        assert offer.loss > 0


def test_a_model_that_lost_something_before_says_so(
    make_model: MakeModel, colours: Callable[..., ImageSet], tmp_path: Path
) -> None:
    model, spec = make_model()
    save_model(tmp_path / "source", spec, model.state_dict())
    with torch.no_grad():
        model.blocks[1].mlp.fc2.weight.zero_()
    save_model(tmp_path / "model", spec, model.state_dict())
    found = {}
    for name in ("source", "model"):
        offers_of_folder(
            OPTIONS,
            model_folder=tmp_path / name,
            source_folder=tmp_path / "source",
            output=tmp_path,
            fit=colours(60),
            select=colours(20, seed=1),
            tell=lambda message, share: None,
        )
        found[name] = Offers.model_validate_json((tmp_path / "offers.json").read_text())

    assert found["source"].base_loss == 0
    assert found["model"].base_loss > 0
    assert loss(of(found["model"], 1, "mlp"), 0) < 1e-9  # nothing is left there to lose


def test_what_is_switched_off_is_not_offered(make_model: MakeModel, pictures: list[Tensor]) -> None:
    offers = price(*make_model(), pictures, OPTIONS.replace(attention=False, off=False))

    assert {one.part for one in offers.sublayers} == {"mlp"}
    assert all(offer.shape != (0,) for one in offers.sublayers for offer in one.offers)


KINDS: dict[str, dict[str, Any]] = {
    "qk norm": {"qk_norm_eps": 1e-6},
    "norm before proj": {"attention_norm_eps": 1e-6},
    "inner norm": {"mlp_norm_eps": 1e-6, "mlp_kind": "swiglu", "activation": "silu"},
    "post-norm": {"norm_placement": "post"},
    "layer scale": {"layer_scale": True, "proj_bias": False, "fc2_bias": False},
    "average pooling": {"pooling": "avg"},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("refit", [False, True], ids=["as they are", "fitted again"])
def test_all_kinds_of_models_are_priced(
    refit: bool, kind: dict[str, Any], make_model: MakeModel, pictures: list[Tensor]
) -> None:
    offers = price(*make_model(**kind), pictures, OPTIONS.replace(refit=refit))

    attention = {offer.shape for offer in of(offers, 0, "attention").offers}
    assert ((2, 4, 12) in attention) == ("qk_norm_eps" not in kind)
    assert ((2, 12, 4) in attention) == ("attention_norm_eps" not in kind)
    assert all(offer.loss >= 0 for one in offers.sublayers for offer in one.offers)


def test_a_merging_model_is_refused(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()

    with pytest.raises(InputError, match="put merge_tokens behind prune"):
        price(model, spec.replace(merge=(1, 0, 0)), pictures)


def test_too_few_images_are_refused_before_the_weights_are_read(
    tiny_spec: Callable[..., ViTSpec],
    tiny_folder: Callable[..., Path],
    colours: Callable[..., ImageSet],
    tmp_path: Path,
) -> None:
    folder = tiny_folder(tiny_spec())
    (folder / WEIGHTS_FILE).unlink()

    def price(**options: Any) -> None:
        offers_of_folder(
            OPTIONS.replace(**options),
            model_folder=folder,
            source_folder=folder,
            output=tmp_path,
            fit=colours(40),
            select=colours(20, seed=1),
            tell=lambda message, share: None,
        )

    with pytest.raises(InputError, match=r"12 images have 60 tokens, .* 64 neurons; give at least 13"):
        price(fit_images=12)
    with pytest.raises(InputError, match=r"6 images have 30 tokens, .* 32 inputs of proj; give at least 7"):
        price(fit_images=6, mlp=False)
