"""Pruning whole models: exact where exactness is possible, and errors as reported."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.prune_mlp.neurons import mlp_of
from stages.prune_mlp.options import PruneMlpOptions
from stages.prune_mlp.prune import prune
from stages.vit.counts import count_params
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from targets.errors import InputError

MakeModel = Callable[..., tuple[ViT, ViTSpec]]

KINDS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "glu": {"mlp_kind": "glu"},
    "swiglu": {"mlp_kind": "swiglu", "activation": "silu"},
    "without biases": {"fc1_bias": False, "fc2_bias": False},
    "layer scale": {"layer_scale": True},
    "post-norm": {"norm_placement": "post", "layer_scale": True},
    "average pooling": {"pooling": "avg", "class_token": False},
}


def with_twins(model: ViT) -> ViT:
    """Make the second half of each MLP's neurons copies of the first: half of the width is superfluous."""
    model = deepcopy(model)
    with torch.no_grad():
        for block in model.blocks:
            mlp = mlp_of(block)
            layers = [mlp.fc1_g, mlp.fc1_x] if mlp.kind == "swiglu" else [mlp.fc1]
            width = mlp.fc2.in_features
            for parameter in (parameter for layer in layers for parameter in layer.parameters()):
                for rows in parameter.split(width):
                    rows[width // 2 :] = rows[: width // 2]
    return model


def logits(model: ViT, pictures: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in pictures])


@pytest.mark.parametrize("repair", ["sequential", "parallel"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_model_of_twins_loses_half_of_its_width_and_nothing_else(
    kind: dict[str, Any], repair: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**kind)
    model = with_twins(model)
    options = PruneMlpOptions.model_validate({"keep": 0.5, "round_to": 4, "repair": repair, "ridge": 0.0})

    pruned, pruned_spec, facts = prune(model, spec, options, pictures)

    torch.testing.assert_close(logits(pruned, pictures), logits(model, pictures), rtol=1e-3, atol=1e-3)
    assert [block.mlp_width for block in pruned_spec.blocks] == [12, 12, 12]
    assert all(row["relative_error"] < 1e-5 for row in facts["blocks"])


@pytest.mark.parametrize("method", ["ols", "dgmr"])
@pytest.mark.parametrize("repair", ["sequential", "parallel", "none"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_spec_describes_the_pruned_model(
    kind: dict[str, Any], repair: str, method: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**kind)
    options = PruneMlpOptions.model_validate({"r": 1.0, "method": method, "repair": repair})

    pruned, pruned_spec, _ = prune(model, spec, options, pictures if options.reads_images else None)

    described = {name: tensor.shape for name, tensor in ViT(pruned_spec.model_dump(mode="json")).state_dict().items()}
    assert described == {name: tensor.shape for name, tensor in pruned.state_dict().items()}
    assert count_params(pruned_spec) == sum(parameter.numel() for parameter in pruned.parameters())
    assert bool(logits(pruned, pictures).isfinite().all())


def test_dgmr_without_repair_only_gathers(make_model: MakeModel) -> None:
    model, spec = make_model()
    options = PruneMlpOptions(method="dgmr", repair="none", r=1.0)

    pruned, _, facts = prune(model, spec, options, None)

    before, after = mlp_of(model.blocks[1]), mlp_of(pruned.blocks[1])
    kept = [int((before.fc1.weight == row).all(dim=1).nonzero()) for row in after.fc1.weight]
    assert kept[0] == int(before.fc1.weight.norm(dim=1).argmax())
    assert torch.equal(after.fc1.bias, before.fc1.bias[kept])
    assert torch.equal(after.fc2.weight, before.fc2.weight[:, kept])
    assert torch.equal(after.fc2.bias, before.fc2.bias)
    assert facts["forward_passes"] == 0


@pytest.mark.parametrize("kind", [{}, {"layer_scale": True}, {"mlp_kind": "swiglu", "mlp_norm_eps": 1e-6}])
def test_the_reported_error_is_what_the_streams_miss(
    kind: dict[str, Any], make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(pooling="avg", **kind)  # no token counts more than its variance says
    pruned, _, facts = prune(model, spec, PruneMlpOptions(keep=0.5, refine=0), pictures)

    with torch.no_grad():
        for row in facts["blocks"]:
            index = row["block"]
            missed, energy = [], []
            for batch in pictures:
                truth = model.outputs(batch, [f"block_{index}"])[f"block_{index}"].double()
                x = pruned.embed(batch)
                for block in pruned.blocks[:index]:
                    x = block(x)
                x = pruned.blocks[index].after_attention(x)
                weight = 1 / truth.var(dim=-1, keepdim=True)
                weight = weight / weight.reciprocal().mean().reciprocal()
                missed.append((weight * (truth - pruned.blocks[index].after_mlp(x)).square()).sum())
                energy.append((weight, (truth - x)))
            weights = torch.cat([w.flatten() for w, _ in energy])[:, None]
            targets = torch.cat([t.flatten(0, 1) for _, t in energy])
            mean = (weights * targets).sum(0) / weights.sum()
            expected = sum(missed) / (weights * (targets - mean).square()).sum()

            assert row["relative_error"] == pytest.approx(float(expected), rel=1e-3)


def test_repair_misses_less_than_no_repair(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    truth = logits(model, pictures)

    missed = {
        repair: float(
            (logits(prune(model, spec, PruneMlpOptions(keep=0.5, repair=repair), pictures)[0], pictures) - truth)
            .square()
            .mean()
        )
        for repair in ("none", "parallel", "sequential")
    }

    assert missed["sequential"] < missed["parallel"] < missed["none"]


@pytest.mark.parametrize(("take_back", "own"), [(0.0, True), (1.0, False)])
@pytest.mark.parametrize("kind", [{}, {"layer_scale": True}, {"norm_placement": "post"}], ids=str)
def test_a_block_that_takes_nothing_back_does_what_it_did(
    kind: dict[str, Any], take_back: float, own: bool, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    """Block 0 loses most of its neurons, block 1 only copies of others."""
    model, spec = make_model(**kind)
    model = with_twins(model)
    options = PruneMlpOptions(widths=(2, 12, 24), take_back=take_back, ridge=0.0)

    pruned, _, _ = prune(model, spec, options, pictures)

    with torch.no_grad():
        x = pruned.blocks[0](pruned.embed(pictures[0]))
        missed = (pruned.blocks[1](x) - model.blocks[1](x)).abs().max()
    # A post-norm block aims at the source's own branch, on the source's own tokens: it takes back what that differs by.
    assert (float(missed) < 1e-3) is own


def test_the_share_taken_back_is_of_sequential_repair_only(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()

    none, all_of_it = (
        prune(model, spec, PruneMlpOptions(keep=0.5, repair="parallel", take_back=share), pictures)[0]
        for share in (0.0, 1.0)
    )

    assert torch.equal(logits(none, pictures), logits(all_of_it, pictures))


def test_a_model_that_keeps_everything_is_the_same_model(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()

    pruned, pruned_spec, facts = prune(model, spec, PruneMlpOptions(keep=1.0), pictures)

    assert pruned_spec == spec
    assert all(
        torch.equal(a, b) for a, b in zip(pruned.state_dict().values(), model.state_dict().values(), strict=True)
    )
    assert facts["blocks"] == []


def test_the_source_model_is_left_alone(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model(fc2_bias=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    prune(model, spec, PruneMlpOptions(keep=0.5), pictures)

    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_blocks_may_have_widths_of_their_own(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()

    _, pruned_spec, facts = prune(model, spec, PruneMlpOptions(widths=(24, 5, 13)), pictures)

    assert [block.mlp_width for block in pruned_spec.blocks] == [24, 5, 13]
    assert [row["block"] for row in facts["blocks"]] == [1, 2]


def test_few_images_are_mentioned_and_too_few_refused(
    make_model: MakeModel, pictures: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    model, spec = make_model(mlp_width=64)

    _, _, facts = prune(model, spec, PruneMlpOptions(keep=0.5), [pictures[0][:10]])

    assert facts["warning"].startswith("170 tokens of calibration images for 64 neurons are few")
    assert "are few" in caplog.text
    with pytest.raises(InputError, match="51 tokens of calibration images cannot describe 64 neurons"):
        prune(model, spec, PruneMlpOptions(keep=0.5), [pictures[0][:3]])


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ({"merge": (2, 2, 2)}, {}, "put merge_tokens behind it"),
        ({"mlp_norm_eps": 1e-6}, {"repair": "parallel"}, "norm before fc2"),
        ({"mlp_norm_eps": 1e-6, "norm_placement": "post"}, {}, "norm before fc2"),
    ],
)
def test_what_cannot_be_pruned_is_refused_with_the_reason(
    kind: dict[str, Any], options: dict[str, Any], reason: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model()

    with pytest.raises(InputError, match=reason):
        prune(model, spec.replace(**kind), PruneMlpOptions.model_validate(options), pictures)


def test_an_attention_that_is_diluting_is_refused(make_model: MakeModel) -> None:
    model, spec = make_model()
    spec = spec.replace(blocks=tuple(block.replace(attention="diluting") for block in spec.blocks))

    with pytest.raises(InputError, match="diluting; distil it first"):
        prune(model, spec, PruneMlpOptions(method="dgmr", repair="none"), None)
