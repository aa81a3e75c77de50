"""Every block to a shape of its own: exact where exactness is possible, and the same as the stages it stands on."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.prune.options import BlockShape, PruneOptions, reshaped
from stages.prune.prune import prune
from stages.prune_attention.options import AttentionShape, PruneAttentionOptions
from stages.prune_attention.prune import prune as prune_attention
from stages.prune_mlp.options import PruneMlpOptions
from stages.prune_mlp.prune import prune as prune_mlp
from stages.vit.counts import count_params
from stages.vit.files import load_model, save_model
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from targets.errors import InputError

MakeModel = Callable[..., tuple[ViT, ViTSpec]]
MORE_KINDS: dict[str, dict[str, Any]] = {
    "qk norm": {"qk_norm_eps": 1e-6},
    "norm before proj": {"attention_norm_eps": 1e-6},
    "inner norm": {"mlp_norm_eps": 1e-6, "mlp_kind": "swiglu", "activation": "silu"},
    "average pooling": {"pooling": "avg"},
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without biases": {"proj_bias": False, "fc2_bias": False},
    "layer scale": {"layer_scale": True},
}


def logits(model: ViT, pictures: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in pictures])


def shapes(spec: ViTSpec, **changes: dict[str, int]) -> tuple[BlockShape, ...]:
    """The model's own shapes, with changes by block: shapes(spec, b1={"mlp_width": 16})."""
    found = [BlockShape.of(block) for block in spec.blocks]
    for name, change in changes.items():
        found[int(name[1:])] = found[int(name[1:])].replace(**change)
    return tuple(found)


OFF = {"heads": 0, "d_qk": 0, "d_v": 0}


def test_own_shapes_change_nothing(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()

    pruned, pruned_spec, facts = prune(model, spec, PruneOptions(blocks=shapes(spec)), pictures)

    assert pruned_spec == spec
    assert torch.equal(logits(pruned, pictures), logits(model, pictures))
    assert facts["blocks"] == []


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("part", ["attention", "mlp"])
@pytest.mark.parametrize("repair", ["sequential", "parallel"])
def test_a_sublayer_that_adds_a_constant_goes_without_a_trace(
    kind: dict[str, Any], part: str, repair: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**kind)
    with torch.no_grad():
        last = model.blocks[1].attn.proj if part == "attention" else model.blocks[1].mlp.fc2
        last.weight.zero_()
    changes = OFF if part == "attention" else {"mlp_width": 0}

    pruned, pruned_spec, facts = prune(
        model, spec, PruneOptions.model_validate({"blocks": shapes(spec, b1=changes), "repair": repair}), pictures
    )

    assert torch.allclose(logits(pruned, pictures), logits(model, pictures), atol=2e-5)
    assert count_params(pruned_spec) == sum(parameter.numel() for parameter in pruned.parameters())
    assert facts["blocks"][0]["off"]


def test_what_a_sublayer_added_on_average_stays(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    asked = PruneOptions(blocks=shapes(spec, b1={"mlp_width": 0}))
    without = deepcopy(model)
    without.blocks[1].mlp = None

    pruned, _, facts = prune(model, spec, asked, pictures)

    wanted = logits(model, pictures)
    assert (logits(pruned, pictures) - wanted).norm() < 0.8 * (logits(without, pictures) - wanted).norm()
    assert facts["blocks"][0]["mean_kept_in"] == "proj of block 1"


@pytest.mark.parametrize(
    ("kind", "place"),
    [({}, "pos_embed"), ({"position": "none"}, "patch_embed"), ({"pre_norm_eps": 1e-6}, "norm_pre")],
    ids=["positions", "patches", "norm"],
)
def test_before_the_first_block_the_embedding_keeps_the_mean(
    kind: dict[str, Any], place: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**kind)
    with torch.no_grad():
        model.blocks[0].attn.proj.weight.zero_()

    pruned, _, facts = prune(model, spec, PruneOptions(blocks=shapes(spec, b0=OFF)), pictures)

    assert facts["blocks"][0]["mean_kept_in"] == place
    assert torch.allclose(logits(pruned, pictures), logits(model, pictures), atol=2e-5)


def test_a_post_norm_model_keeps_no_mean(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model(norm_placement="post")

    pruned, _, facts = prune(model, spec, PruneOptions(blocks=shapes(spec, b1=OFF)), pictures)

    assert "mean_kept_in" not in facts["blocks"][0]
    assert logits(pruned, pictures).isfinite().all()


def test_a_block_of_which_nothing_is_left(make_model: MakeModel, pictures: list[Tensor], tmp_path: Path) -> None:
    model, spec = make_model()

    pruned, pruned_spec, facts = prune(
        model, spec, PruneOptions(blocks=shapes(spec, b1={**OFF, "mlp_width": 0}, b2={"mlp_width": 16})), pictures
    )

    assert [row.get("mean_kept_in") for row in facts["blocks"][:2]] == ["fc2 of block 0"] * 2
    save_model(tmp_path, pruned_spec, pruned.state_dict())
    assert torch.equal(logits(load_model(tmp_path), pictures), logits(pruned, pictures))


def test_mlps_alone_are_cut_as_by_prune_mlp(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    widths = (24, 32, 8)
    cut = tuple(one.replace(mlp_width=w) for one, w in zip(shapes(spec), widths, strict=True))
    asked = PruneOptions(blocks=cut, refit=False)

    ours, _, _ = prune(model, spec, asked, pictures)
    theirs, _, _ = prune_mlp(model, spec, PruneMlpOptions(widths=widths), pictures)

    assert torch.equal(logits(ours, pictures), logits(theirs, pictures))


def test_attentions_alone_are_cut_as_by_prune_attention(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    wanted = [(2, 8, 6), (1, 12, 12), (2, 12, 12)]
    asked = PruneOptions(
        blocks=tuple(
            BlockShape(heads=h, d_qk=q, d_v=v, mlp_width=one.mlp_width)
            for one, (h, q, v) in zip(shapes(spec), wanted, strict=True)
        ),
        refit=False,
    )

    ours, ours_spec, _ = prune(model, spec, asked, pictures)
    theirs, theirs_spec, _ = prune_attention(
        model,
        spec,
        PruneAttentionOptions(shapes=tuple(AttentionShape(heads=h, d_qk=q, d_v=v) for h, q, v in wanted)),
        pictures,
    )

    assert ours_spec == theirs_spec
    assert torch.equal(logits(ours, pictures), logits(theirs, pictures))


def fc2(model: ViT) -> list[Tensor]:
    return [block.mlp.fc2.weight.detach() for block in model.blocks]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_mlps_behind_a_cut_are_fitted_again_those_before_it_are_not(
    kind: dict[str, Any], make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**kind)
    asked = shapes(spec, b1={**OFF})
    plain, _, _ = prune(model, spec, PruneOptions(blocks=asked, refit=False), pictures)
    fitted, after, facts = prune(model, spec, PruneOptions(blocks=asked), pictures)
    wanted = logits(model, pictures)

    missed, left = (float((logits(one, pictures) - wanted).norm()) for one in (plain, fitted))
    assert left < 0.9 * missed
    assert [row["block"] for row in facts["refitted"]] == [1, 2]
    assert all(row["relative_error"] < row["relative_error_before"] for row in facts["refitted"])
    if not kind:
        assert torch.equal(fc2(fitted)[0], fc2(model)[0])
        assert not torch.equal(fc2(fitted)[1], fc2(model)[1])
    assert after.fc2_bias
    assert after == reshaped(PruneOptions(blocks=asked), spec)
    assert torch.equal(
        logits(prune(model, spec, PruneOptions(blocks=asked), pictures)[0], pictures), logits(fitted, pictures)
    )


@pytest.mark.parametrize("kind", MORE_KINDS.values(), ids=MORE_KINDS)
def test_mlps_of_all_kinds_are_fitted_again(
    kind: dict[str, Any], make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**kind)
    asked = shapes(spec, b0={**OFF})
    wanted = logits(model, pictures)
    missed = {}
    for refit in (False, True):
        found, _, facts = prune(model, spec, PruneOptions(blocks=asked, refit=refit), pictures)
        assert len(facts["refitted"]) == (len(spec.blocks) if refit else 0)
        missed[refit] = float((logits(found, pictures) - wanted).norm())

    assert missed[True] < missed[False]


def test_a_post_norm_model_fits_no_mlp_that_it_need_not(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model(norm_placement="post")

    _, _, facts = prune(model, spec, PruneOptions(blocks=shapes(spec, b0={**OFF})), pictures)

    assert facts["refitted"] == []


@pytest.mark.parametrize(
    "others", [{"refit": False}, {"repair": "parallel"}, {"repair": "none"}], ids=lambda one: str(*one.values())
)
def test_nothing_is_fitted_again_where_it_is_not_asked_for(
    others: dict[str, Any], make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model()
    options = PruneOptions.model_validate({"blocks": shapes(spec, b1={"heads": 1}), **others})

    pruned, _, facts = prune(model, spec, options, pictures)

    assert facts["refitted"] == []
    assert all(torch.equal(one, other) for one, other in zip(fc2(pruned), fc2(model), strict=True))


def test_few_tokens_fit_no_mlp_that_need_not_be(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    tokens = spec.tokens_in(0)
    few = pictures[0][: 9 * spec.blocks[0].mlp_width // tokens]

    pruned, _, facts = prune(model, spec, PruneOptions(blocks=shapes(spec, b0={**OFF})), [few])

    assert facts["refitted"] == []
    assert all(torch.equal(one, other) for one, other in zip(fc2(pruned)[1:], fc2(model)[1:], strict=True))


def test_a_repair_is_better_than_none(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    asked = shapes(spec, b0={"mlp_width": 16}, b1={"d_qk": 6, "d_v": 6}, b2={"heads": 1})
    wanted = logits(model, pictures)
    missed = {}
    for repair in ("sequential", "none"):
        options = PruneOptions.model_validate({"blocks": asked, "repair": repair})
        pruned, _, _ = prune(model, spec, options, pictures)
        missed[repair] = float((logits(pruned, pictures) - wanted).norm())

    assert missed["sequential"] < 0.7 * missed["none"]


def test_the_spec_can_be_told_before(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    options = PruneOptions(blocks=shapes(spec, b0={"mlp_width": 16}, b1=OFF))

    _, pruned_spec, _ = prune(model, spec, options, pictures)

    assert reshaped(options, spec) == pruned_spec
    assert reshaped(PruneOptions(), spec) == spec


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        (lambda spec: shapes(spec)[:2], "2 entries, the model has 3 blocks"),
        (lambda spec: shapes(spec, b1={"mlp_width": 33}), "block 1 cannot have mlp_width 33; allowed: 0 to 32"),
        (lambda spec: shapes(spec, b2={"heads": 3}), "block 2 cannot have heads 3; allowed: 1 to 2"),
        (lambda spec: "auto", "'auto', which only a build for a target can decide"),
    ],
)
def test_what_cannot_be_is_told(blocks: Any, words: str, make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()

    with pytest.raises(InputError, match=words):
        prune(model, spec, PruneOptions(blocks=blocks(spec)), pictures)


def test_half_an_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="all above 0, or all 0"):
        BlockShape(heads=2, d_qk=0, d_v=8, mlp_width=8)


def test_sizes_that_a_search_cannot_try_are_refused_beforehand(make_model: MakeModel) -> None:
    _, spec = make_model()
    patch = spec.patch_size[0]

    assert reshaped(PruneOptions.model_validate({"search": {"sizes": [patch, 2 * patch]}}), spec) == spec
    with pytest.raises(InputError, match="no multiple of the patch"):
        reshaped(PruneOptions.model_validate({"search": {"sizes": [patch + 1]}}), spec)


def test_widths_that_a_search_cannot_try_are_refused_beforehand(make_model: MakeModel) -> None:
    _, spec = make_model()
    asked = PruneOptions.model_validate({"search": {"widths": [0.5]}})
    no_rotation = spec.replace(norm_placement="post")

    assert reshaped(asked, spec) == spec
    assert reshaped(asked, no_rotation) == no_rotation  # narrowed by energy instead
    with pytest.raises(InputError, match="needs a model with a head"):
        reshaped(asked, spec.replace(classes=0))


def test_random_neurons_are_drawn_for_each_block_and_seed_as_by_prune_mlp(
    make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model()
    halved = shapes(spec, b0={"mlp_width": 16}, b1={"mlp_width": 16}, b2={"mlp_width": 16})
    asked = PruneOptions(blocks=halved, mlp_method="random", repair="none")

    drawn = {}
    for seed in (0, 1):
        ours, _, _ = prune(model, spec, asked, pictures, seed=seed)
        theirs, _, _ = prune_mlp(
            model, spec, PruneMlpOptions(keep=0.5, method="random", repair="none"), None, seed=seed
        )
        assert torch.equal(logits(ours, pictures), logits(theirs, pictures))
        for before, after in zip(model.blocks, ours.blocks, strict=True):
            rows = [int((before.mlp.fc1.weight == row).all(dim=1).nonzero()) for row in after.mlp.fc1.weight]
            drawn[len(drawn)] = tuple(rows)

    assert len(set(drawn.values())) == 2 * len(spec.blocks)


def test_few_images_are_mentioned(
    make_model: MakeModel, pictures: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    model, spec = make_model()
    few = [pictures[0][:8]]  # 40 tokens

    _, _, of_mlps = prune(model, spec, PruneOptions(blocks=shapes(spec, b1={"mlp_width": 16})), few)
    _, _, of_both = prune(model, spec, PruneOptions(blocks=shapes(spec, b1={"mlp_width": 16, "d_v": 6})), few)
    _, _, enough = prune(model, spec, PruneOptions(blocks=shapes(spec, b1={"mlp_width": 16, "d_v": 6})), pictures)

    assert of_mlps["warning"] == "40 tokens of calibration images for 32 neurons are few: give 10 times as many tokens"
    assert "40 tokens of calibration images for 24 inputs of proj are few" in of_both["warning"]
    assert of_mlps["warning"] in caplog.text
    assert "warning" not in enough


def test_mlps_are_refined_once_by_default_where_that_can_be_done(make_model: MakeModel, pictures: list[Tensor]) -> None:
    halved = {"b1": {"mlp_width": 16}}

    def passes(*, few: bool = False, **changes: Any) -> int:
        model, spec = make_model(**({"norm_placement": "post"} if changes.pop("post", False) else {}))
        options = PruneOptions.model_validate({"blocks": shapes(spec, **halved), **changes})
        _, _, facts = prune(model, spec, options, [pictures[0][:20]] if few else pictures)
        return facts["blocks"][0].get("refined", {}).get("passes", 0)

    assert passes() == 1
    assert passes(few=True) == 0
    assert passes(repair="parallel") == 0
    assert passes(post=True) == 0
    assert passes(refine=0) == 0
    assert passes(refine=2, few=True) == 2
