"""What makes up for what is removed: constants move exactly, fitted MLPs bring the answers closer."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.drop_attention.drop import remove_from
from stages.drop_attention.options import DropAttentionOptions, without
from stages.drop_attention.repair import put_constant, settle_constants
from stages.vit.last_layer import give_biases, last_layer
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from stages.vit.sweep import Part
from stages.vit.writers import writer_before
from targets.errors import InputError

MakeModel = Callable[..., tuple[ViT, ViTSpec]]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "LayerScale": {"layer_scale": True},
    "no biases": {"fc2_bias": False, "proj_bias": False, "patch_bias": False, "position": "none"},
    "norm before the blocks": {"pre_norm_eps": 1e-5},
    "registers behind the position": {"register_tokens": 2, "position_covers_prefix": False},
    "RMSNorm": {"norm": "rmsnorm"},
    "swiglu": {"mlp_kind": "swiglu", "activation": "silu", "mlp_norm_eps": 1e-6},
}


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
@pytest.mark.parametrize("dropped", [(0,), (2,), (0, 1, 3)], ids=str)
@pytest.mark.parametrize("unit", ["attention", "block"])
def test_a_constant_moves_into_a_bias_without_changing_the_answers(
    changes: dict[str, Any], dropped: tuple[int, ...], unit: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**changes)
    options = DropAttentionOptions(unit=unit, blocks=dropped)
    after = without(spec, dropped, options)
    model.double()
    give_biases(model, after)
    draw = torch.Generator().manual_seed(2)
    for index in dropped:
        for part in (Part.ATTENTION, Part.MLP)[: 1 if unit == "attention" else 2]:
            put_constant(model.blocks[index], part, torch.randn(16, generator=draw, dtype=torch.float64))
    images = pictures[0].double()
    with torch.no_grad():
        expected = model(images)
        settle_constants(model, after)
        assert torch.allclose(model(images), expected, rtol=1e-10, atol=1e-10)

    rebuilt = ViT(after.model_dump(mode="json")).double()
    rebuilt.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(images), model(images))


def test_the_bias_is_that_of_the_last_writer(make_model: MakeModel) -> None:
    _, spec = make_model()
    blocks = (spec.blocks[0], spec.blocks[1].replace(mlp=False, mlp_width=0), *spec.blocks[2:])
    gap = spec.replace(blocks=blocks)

    assert writer_before(spec, 2) == ("fc2", 1)
    assert writer_before(gap, 2) == ("proj", 1)
    assert writer_before(spec, 0) == ("pos_embed", -1)
    assert writer_before(spec.replace(position="none"), 0) == ("patch_embed", -1)
    assert writer_before(spec.replace(pre_norm_eps=1e-5), 0) == ("norm_pre", -1)
    assert writer_before(spec.replace(pre_norm_eps=1e-5, norm="rmsnorm"), 0) is None


def error_of(model: ViT, changed: ViT, images: Tensor) -> float:
    with torch.no_grad():
        expected, found = (one.outputs(images, ["features"])["features"] for one in (model, changed))
    return float((found - expected).square().mean() / (expected - expected.mean(0)).square().mean())


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
@pytest.mark.parametrize("unit", ["attention", "block"])
def test_each_repair_brings_unseen_features_closer(
    changes: dict[str, Any], unit: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**changes)
    state = deepcopy(model.state_dict())
    unseen = torch.randn(100, 3, 32, 32, generator=torch.Generator().manual_seed(8))
    errors = {}
    for repair in ("none", "mean", "mlp"):
        options = DropAttentionOptions(unit=unit, blocks=(1, 2), repair=repair)
        changed, after, _ = remove_from(model, spec, (1, 2), options, pictures if options.repairs else None)
        assert after == without(spec, (1, 2), options)
        errors[repair] = error_of(model, changed, unseen)

    assert errors["mlp"] < errors["mean"] < errors["none"]
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_mlps_are_fitted_from_the_first_removal_on(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    _, _, facts = remove_from(model, spec, (2,), DropAttentionOptions(blocks=(2,)), pictures)

    assert [row["block"] for row in facts["blocks"]] == [2, 3]
    assert all(row["relative_error"] < row["relative_error_before"] for row in facts["blocks"])


def test_an_mlp_that_takes_nothing_back_stays_as_it_is(make_model: MakeModel, pictures: list[Tensor]) -> None:
    """take_back 0 aims at what the layer already gives, so that only the ridge moves it."""
    model, spec = make_model()
    options = DropAttentionOptions(blocks=(1,), take_back=0.0)
    changed, _, _ = remove_from(model, spec, (1,), options, pictures)

    assert torch.allclose(
        last_layer(changed.blocks[3], Part.MLP).weight, last_layer(model.blocks[3], Part.MLP).weight, atol=1e-3
    )


def test_too_few_tokens_for_an_mlp_are_refused(make_model: MakeModel) -> None:
    model, spec = make_model()

    with pytest.raises(InputError, match="17 tokens of calibration images cannot describe 24 neurons"):
        remove_from(model, spec, (1,), DropAttentionOptions(blocks=(1,)), [torch.randn(1, 3, 32, 32)])
