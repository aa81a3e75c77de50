"""The search that repairs: each score is that of a model which was built, swept and judged apart from the search."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.drop_attention.drop import choose, drop
from stages.drop_attention.options import DropAttentionOptions, without
from stages.drop_attention.repair import remove
from stages.drop_attention.search import divergence
from stages.vit.model import ViT
from stages.vit.refit import refit_mlp
from stages.vit.spec import ViTSpec
from stages.vit.sweep import Part, Visit, sweep, weigh_tokens
from stages.vit.writers import writer_before
from targets.errors import InputError

MakeModel = Callable[..., tuple[ViT, ViTSpec]]
KINDS: dict[str, dict[str, Any]] = {"plain": {}, "LayerScale": {"layer_scale": True}, "no head": {"classes": 0}}


def features(model: ViT, images: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model.outputs(batch, ["features"])["features"] for batch in images])


def swept(
    model: ViT, spec: ViTSpec, options: DropAttentionOptions, taken: dict[int, int | None], fit: list[Tensor]
) -> ViT:
    """The model without blocks or attentions, by one sweep. taken: each, and whose MLP takes back what it did."""
    changed = deepcopy(model)
    after = without(spec, tuple(sorted(taken)), options)
    parts = (Part.ATTENTION,) if options.unit == "attention" else tuple(Part)

    def edit(visit: Visit) -> None:
        if visit.index in taken and visit.part in parts:
            remove(visit, by_mean=writer_before(after, visit.index) is not None)
        elif visit.part is Part.MLP and visit.index in taken.values():
            refit_mlp(visit, take_back=options.take_back)

    sweep(model, changed, fit, dict.fromkeys(Part, edit), weigh=weigh_tokens(spec))
    return changed


def behind(unit: str, block: int, depth: int) -> int | None:
    return block if unit == "attention" else (block + 1 if block + 1 < depth else None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["attention", "block"])
def test_a_score_is_that_of_the_model_without_it_whose_next_mlp_was_fitted_again(
    unit: str, kind: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**KINDS[kind])
    options = DropAttentionOptions(count=2, by="repaired", unit=unit)
    select, fit = pictures[:1], pictures[1:]

    steps, images = choose(model, spec, options, select, fit=fit, tell=lambda message, share: None)

    score = divergence(model, features(model, select))
    first = steps[0]
    assert images == len(select[0])
    assert set(first.scores) == set(range(len(spec.blocks)))
    for block, found in first.scores.items():
        made = swept(model, spec, options, {block: behind(unit, block, len(spec.blocks))}, fit)
        assert found == pytest.approx(score(features(made, select)), rel=1e-3), block
    assert first.score == min(first.scores.values()) == first.scores[first.block]


def test_the_second_step_judges_with_what_the_first_took_and_fitted(
    make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model()
    options = DropAttentionOptions(count=2, by="repaired")
    select, fit = pictures[:1], pictures[1:]

    steps, _ = choose(model, spec, options, select, fit=fit, tell=lambda message, share: None)

    score = divergence(model, features(model, select))
    first, second = steps[0].block, steps[1]
    assert set(second.scores) == set(range(len(spec.blocks))) - {first}
    behind_first = [block for block in second.scores if block > first]
    for block in behind_first:  # one before it is judged with the fit that the first made of the stream as it was
        made = swept(model, spec, options, {first: first, block: block}, fit)
        assert second.scores[block] == pytest.approx(score(features(made, select)), rel=1e-3)
    assert second.score == min(second.scores.values())


def test_an_attention_that_an_mlp_can_take_over_is_chosen_though_it_costs_most_untreated(
    make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model()
    with torch.no_grad():  # attention of block 1 adds one large vector to every token, whatever it reads
        attention = model.blocks[1].attn
        attention.proj.weight.zero_()
        attention.proj.bias.normal_(generator=torch.Generator().manual_seed(3)).mul_(40)
    select, fit = pictures[:1], pictures[1:]

    def chosen(by: str) -> int:
        options = DropAttentionOptions(count=1, by=by)
        return choose(model, spec, options, select, fit=fit, tell=lambda message, share: None)[0][0].block

    assert chosen("divergence") != 1
    assert chosen("repaired") == 1


def test_the_stage_reads_the_fit_images_twice_and_says_how_it_chose(
    make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model()
    options = DropAttentionOptions(count=1, by="repaired")

    found, after, facts = drop(model, spec, options, select=pictures[:1], fit=pictures[1:])

    assert "chosen by divergence after repair" in facts["summary"]
    assert after.blocks[facts["dropped"][0]].attention == "off"
    assert torch.isfinite(features(found, pictures[:1])).all()


@pytest.mark.parametrize("others", [{"removal": "dilute"}, {"repair": "mean"}, {"repair": "none"}], ids=str)
def test_what_is_not_repaired_is_not_judged_so(others: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="goes with removal: off and repair: mlp"):
        DropAttentionOptions.model_validate({"count": 1, "by": "repaired", **others})


def test_too_few_images_to_fit_are_refused(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    options = DropAttentionOptions(count=1, by="repaired")

    with pytest.raises(InputError, match="cannot describe 24 neurons"):
        drop(model, spec, options, select=pictures[:1], fit=[pictures[1][:1]])


@pytest.mark.parametrize(
    ("given", "by"),
    [
        ({}, "repaired"),
        ({"repair": "mean"}, "entropy"),
        ({"removal": "dilute"}, "entropy"),
        ({"by": "divergence"}, "divergence"),
        ({"by": "entropy"}, "entropy"),
    ],
    ids=str,
)
def test_unless_told_otherwise_what_is_repaired_is_judged_repaired(given: dict[str, str], by: str) -> None:
    assert DropAttentionOptions.model_validate({"count": 1, **given}).judged_by == by
