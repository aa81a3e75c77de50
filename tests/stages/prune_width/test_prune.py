"""Narrowing whole models: exact where exactness is possible, and consistent everywhere."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.prune_width.options import PruneWidthOptions, not_rotatable, reshaped
from stages.prune_width.prune import prune
from stages.prune_width.stream import narrowed, rotation
from stages.vit.counts import count_params
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from targets.errors import InputError

MakeModel = Callable[..., tuple[ViT, ViTSpec]]

ROTATABLE: dict[str, dict[str, Any]] = {
    "plain": {},
    "without biases": {
        "qkv_bias": False,
        "proj_bias": False,
        "fc1_bias": False,
        "fc2_bias": False,
        "patch_bias": False,
    },
    "layer scale": {"layer_scale": True},
    "average pooling": {"pooling": "avg", "class_token": False, "final_norm_eps": None, "head_norm_eps": 1e-6},
    "two tokens": {"pooling": "token_pair", "register_tokens": 1},
    "registers": {"register_tokens": 2, "position_covers_prefix": False},
    "no positions": {"position": "none"},
    "glu": {"mlp_kind": "glu"},
    "swiglu": {"mlp_kind": "swiglu", "activation": "silu"},
    "rmsnorm": {"norm": "rmsnorm"},
    "rmsnorm inside": {"norm": "rmsnorm", "qk_norm_eps": 1e-6, "mlp_norm_eps": 1e-6},
}
OTHERS: dict[str, dict[str, Any]] = {
    "post-norm": {"norm_placement": "post", "layer_scale": True},
    "norm before the blocks": {"pre_norm_eps": 1e-5},
    "max pooling": {"pooling": "max"},
    "qk norm": {"qk_norm_eps": 1e-6},
    "norms inside": {"mlp_norm_eps": 1e-6, "attention_norm_eps": 1e-6},
    "two norms before the head": {"pooling": "avg", "head_norm_eps": 1e-6},
    "no norm before the head": {"final_norm_eps": None},
    "pair with a norm": {"pooling": "token_pair", "register_tokens": 1, "final_norm_eps": None, "head_norm_eps": 1e-6},
}


def options(**given: Any) -> PruneWidthOptions:
    return PruneWidthOptions.model_validate({"round_to": 1, **given})


def logits(model: ViT, pictures: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch.to(next(model.parameters()))) for batch in pictures])


@pytest.mark.parametrize("kind", ROTATABLE.values(), ids=ROTATABLE)
def test_a_turned_stream_of_full_width_is_the_same_model_to_rounding(
    kind: dict[str, Any], make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**kind)
    model = model.double()
    basis, _ = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(0)).double())
    after = reshaped(options(width=23, repair="none"), spec).replace(
        width=24, **{name: getattr(spec, name) for name in ("final_norm_eps", "head_norm_eps", "blocks")}
    )

    turned = narrowed(model, spec, after, rotation(spec, basis))

    truth = logits(model, pictures)
    assert float((logits(turned, pictures) - truth).abs().max()) < 1e-11 * float(truth.abs().max())
    assert after.norm == "rmsnorm"


@pytest.mark.parametrize(
    "kind",
    [{}, {"layer_scale": True, "pooling": "avg", "class_token": False}, {"eps": 0.3}, {"final_norm_eps": 0.3}],
    ids=str,
)
def test_one_axis_of_a_layernorm_stream_is_superfluous(
    kind: dict[str, Any], make_model: MakeModel, pictures: list[Tensor]
) -> None:
    """LayerNorm takes the mean out, so the stream has one direction that nobody reads."""
    model, spec = make_model(**kind)

    pruned, pruned_spec, _ = prune(
        model.double(), spec, options(width=23, repair="none"), [b.double() for b in pictures]
    )

    truth = logits(model, pictures)
    assert float((logits(pruned, pictures) - truth).abs().max()) < 1e-9 * float(truth.abs().max())
    assert pruned_spec.width == 23


def with_small_stream(model: ViT, rank: int) -> ViT:
    """Let all writers write into the same few directions, turned against the channels."""
    model = deepcopy(model)
    basis, _ = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(3)))
    onto = basis[:, :rank] @ basis[:, :rank].T
    onto = onto - onto.mean(dim=0)  # without mean, which an RMSNorm would not take out
    with torch.no_grad():
        model.patch_embed.proj.weight.copy_(torch.einsum("ed,dcij->ecij", onto, model.patch_embed.proj.weight))
        model.patch_embed.proj.bias.copy_(onto @ model.patch_embed.proj.bias)
        for token in (model.cls_token, model.pos_embed):
            token.copy_(token @ onto.T)
        for block in model.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.copy_(onto @ layer.weight)
                layer.bias.copy_(onto @ layer.bias)
    return model


@pytest.mark.parametrize("repair", ["none", "sequential"])
def test_directions_that_nobody_writes_go_without_a_trace(
    repair: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model()
    model = with_small_stream(model, 10)

    pruned, _, _ = prune(model, spec, options(width=11, repair=repair, ridge=1e-12), pictures)

    torch.testing.assert_close(logits(pruned, pictures), logits(model, pictures), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("repair", ["sequential", "none"])
@pytest.mark.parametrize("method", ["rotate", "energy", "snp"])
@pytest.mark.parametrize("kind", [*ROTATABLE.values(), *OTHERS.values()], ids=[*ROTATABLE, *OTHERS])
def test_the_spec_foretold_describes_the_pruned_model(
    kind: dict[str, Any], method: str, repair: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**kind)
    asked = options(keep=0.6, method=method, repair=repair)
    if method == "rotate" and not_rotatable(spec):
        with pytest.raises(InputError, match=r"cannot be rotated: .*; choose method: energy or snp"):
            prune(model, spec, asked, pictures)
        return

    pruned, pruned_spec, facts = prune(model, spec, asked, pictures if asked.reads_images else None)

    assert pruned_spec == reshaped(asked, spec)
    assert pruned_spec.width == 14
    described = {name: tensor.shape for name, tensor in ViT(pruned_spec.model_dump(mode="json")).state_dict().items()}
    assert described == {name: tensor.shape for name, tensor in pruned.state_dict().items()}
    assert count_params(pruned_spec) == sum(parameter.numel() for parameter in pruned.parameters())
    assert bool(logits(pruned, pictures).isfinite().all())
    assert facts["images"] == (60 if repair == "sequential" else 0)


@pytest.mark.parametrize("method", ["rotate", "energy", "snp"])
def test_repair_misses_less_than_no_repair(method: str, make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    truth = logits(model, pictures)

    missed = {
        repair: float(
            (logits(prune(model, spec, options(keep=0.7, method=method, repair=repair), pictures)[0], pictures) - truth)
            .square()
            .mean()
        )
        for repair in ("none", "sequential")
    }

    assert missed["sequential"] < missed["none"]


def test_rotating_misses_less_than_choosing(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    truth = logits(model, pictures)

    def missed(method: str) -> float:
        asked = options(keep=0.6, method=method)
        return float((logits(prune(model, spec, asked, pictures)[0], pictures) - truth).square().mean())

    assert missed("rotate") < min(missed("energy"), missed("snp"))


def test_a_dead_channel_goes_first_by_energy(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model(norm="rmsnorm", head_bias=False)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[:, 5] = 0
            block.mlp.fc1.weight[:, 5] = 0
        model.head.weight[:, 5] = 0

    pruned, _, _ = prune(model, spec, options(width=23, method="energy", repair="none"), pictures)

    kept = [channel for channel in range(24) if channel != 5]
    assert torch.equal(pruned.head.weight, model.head.weight[:, kept])
    assert torch.equal(pruned.cls_token, model.cls_token[..., kept])


def test_the_source_model_is_left_alone(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model(layer_scale=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    prune(model, spec, options(keep=0.5), pictures)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_that_keeps_its_width_is_the_same_model(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()

    pruned, pruned_spec, _ = prune(model, spec, options(keep=1.0), pictures)

    assert pruned_spec == spec
    assert all(
        torch.equal(a, b) for a, b in zip(pruned.state_dict().values(), model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("kind", "given", "reason"),
    [
        ({"merge": (2, 2, 2)}, {}, "merge tokens"),
        ({"classes": 0}, {}, "needs a model with a head"),
        ({}, {"width": 25}, "width 25 cannot be had: the model has 24"),
    ],
    ids=str,
)
def test_what_cannot_be_narrowed_is_refused_with_the_reason(
    kind: dict[str, Any], given: dict[str, Any], reason: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model()

    with pytest.raises(InputError, match=reason):
        prune(model, spec.replace(**kind), options(**given), pictures)


def test_few_images_are_mentioned(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()

    _, _, facts = prune(model, spec, options(keep=0.5), [pictures[0][:5]])

    assert facts["warning"].startswith("85 tokens of calibration images for 24 channels are few")
