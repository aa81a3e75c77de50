"""Folding the doubled identity of removed attentions changes no bit of the answers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.vit.files import save_model
from stages.vit.fold import fold_doubling
from stages.vit.model import ViT, load
from stages.vit.spec import BlockSpec, ViTSpec
from targets.errors import InputError

MakeSpec = Callable[..., ViTSpec]
MakeModel = Callable[..., ViT]

DROPPED = (0, 1, 3, 4, 6)
"""what NOSE takes from DeiT-B"""

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "class token": {},
    "LayerScale": {"layer_scale": True},
    "registers, pre-norm embedding": {"register_tokens": 2, "pre_norm_eps": 1e-5},
    "avg pool, head norm alone": {"pooling": "avg", "final_norm_eps": None, "head_norm_eps": 1e-6},
    "max pool, both norms": {"pooling": "max", "head_norm_eps": 1e-5},
    "avg and max pool, no norm before the head": {"pooling": "avgmax", "final_norm_eps": None},
    "token pair": {"pooling": "token_pair", "register_tokens": 1},
    "no head": {"classes": 0},
    "RMSNorm, no biases": {"norm": "rmsnorm", "proj_bias": False, "fc2_bias": False},
    "swiglu with norms": {"mlp_kind": "swiglu", "activation": "silu", "mlp_norm_eps": 1e-6, "attention_norm_eps": 1e-6},
    "qk norm, glu": {"mlp_kind": "glu", "qk_norm_eps": 1e-6},
}


def diluting(spec: ViTSpec, dropped: tuple[int, ...] = DROPPED, *, depth: int = 12) -> ViTSpec:
    blocks: list[BlockSpec] = [spec.blocks[0]] * depth
    for index in dropped:
        blocks[index] = blocks[index].replace(attention="diluting")
    return spec.replace(blocks=tuple(blocks))


def at_the_end(model: ViT) -> ViT:
    """The model at dilution 0, as distill leaves it."""
    for block in model.blocks:
        block.dilution = 0.0
    return model


def rebuilt(spec: ViTSpec, state: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> ViT:
    model = ViT(spec.model_dump(mode="json")).to(dtype)
    model.load_state_dict(state)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_the_folded_model_gives_the_same_bits(
    changes: dict[str, Any], dtype: torch.dtype, make_spec: MakeSpec, make_model: MakeModel
) -> None:
    spec = diluting(make_spec(**changes))
    model = at_the_end(make_model(spec).to(dtype))
    images = torch.randn(3, *spec.input_shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    folded_spec, state = fold_doubling(spec, model.state_dict())
    folded = rebuilt(folded_spec, state, dtype)

    with torch.no_grad():
        expected, found = model(images), folded(images)
        stream, smaller = (one.outputs(images, ["block_11"])["block_11"] for one in (model, folded))
    assert (expected - found).abs().max().item() == 0.0
    assert torch.equal(stream, smaller * 2 ** len(DROPPED))
    assert [block.attention for block in folded_spec.blocks] == [
        "off" if index in DROPPED else "on" for index in range(12)
    ]


def test_eps_follows_the_stream(make_spec: MakeSpec, make_model: MakeModel) -> None:
    """Without it the answers differ: the test above could not tell if they never did."""
    spec = diluting(make_spec())
    model = at_the_end(make_model(spec).double())
    images = torch.randn(3, *spec.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    folded_spec, state = fold_doubling(spec, model.state_dict())
    same_eps = folded_spec.replace(
        final_norm_eps=1e-6,
        blocks=tuple(block.replace(norm1_eps=1e-6, norm2_eps=1e-6) for block in folded_spec.blocks),
    )

    with torch.no_grad():
        assert 0 < float((model(images) - rebuilt(same_eps, state)(images)).abs().max()) < 1e-3
    assert [folded_spec.blocks[index].norm2_eps for index in (0, 2, 11)] == [1e-6 / 4, 1e-6 / 16, 1e-6 / 4**5]
    assert folded_spec.blocks[2].norm1_eps == 1e-6 / 16
    assert folded_spec.final_norm_eps == 1e-6 / 4**5


def test_a_block_without_mlp_doubles_too(make_spec: MakeSpec, make_model: MakeModel) -> None:
    spec = diluting(make_spec(), (1,), depth=3)
    spec = spec.replace(
        blocks=(spec.blocks[0], spec.blocks[1].replace(mlp=False, mlp_width=0), spec.blocks[2]),
    )
    model = at_the_end(make_model(spec).double())
    images = torch.randn(2, *spec.input_shape, dtype=torch.float64)

    with torch.no_grad():
        assert torch.equal(model(images), rebuilt(*fold_doubling(spec, model.state_dict()))(images))


def test_a_finished_model_stays_as_it_is(make_spec: MakeSpec, make_model: MakeModel) -> None:
    spec = make_spec()
    state = make_model(spec).state_dict()
    folded_spec, folded = fold_doubling(spec, state)

    assert folded_spec == spec
    assert folded.keys() == state.keys()
    assert all(torch.equal(folded[name], state[name]) for name in state)


def test_the_folder_of_a_folded_model_reloads_without_vitrim(
    make_spec: MakeSpec, make_model: MakeModel, tmp_path: Any
) -> None:
    spec = diluting(make_spec())
    model = at_the_end(make_model(spec))
    folded_spec, state = fold_doubling(spec, model.state_dict())
    save_model(tmp_path / "folded", folded_spec, state)
    images = torch.randn(2, *spec.input_shape)

    with torch.no_grad():
        assert torch.equal(load(tmp_path / "folded")(images), model(images))
    assert not [name for name in state if name.startswith(("blocks.0.attn", "blocks.0.norm1", "blocks.0.ls1"))]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"norm_placement": "post"}, "this model is post-norm"),
        ({"classes": 0, "final_norm_eps": None}, "gives features without a norm"),
    ],
)
def test_a_model_that_sees_its_scale_is_refused(
    changes: dict[str, Any], reason: str, make_spec: MakeSpec, make_model: MakeModel
) -> None:
    spec = diluting(make_spec(**changes))

    with pytest.raises(InputError, match=reason):
        fold_doubling(spec, make_model(spec).state_dict())
