"""Cutting neurons out of an MLP, for every kind of MLP."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.prune_mlp.neurons import apply, energies, input_rows, mlp_of, offers
from stages.prune_mlp.options import PruneMlpOptions
from stages.vit.last_layer import last_layer, put_last_layer
from stages.vit.model import Block, ViT
from stages.vit.moments import Moments
from stages.vit.spec import ViTSpec
from stages.vit.sweep import Part

KINDS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "glu": {"mlp_kind": "glu", "mlp_gate_first": False, "activation": "silu"},
    "swiglu": {"mlp_kind": "swiglu", "activation": "silu"},
    "without biases": {"fc1_bias": False, "fc2_bias": False},
    "layer scale": {"layer_scale": True},
    "post-norm": {"norm_placement": "post"},
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def block(request: pytest.FixtureRequest, make_model: Callable[..., tuple[ViT, ViTSpec]]) -> Block:
    model, _ = make_model(**request.param)
    first = model.blocks[0]
    assert isinstance(first, Block)
    return first


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_neurons_of_no_effect_can_be_cut_without_a_trace(block: Block, tokens: Tensor) -> None:
    kept = torch.tensor([20, 3, 4, 17, 0, 9])
    weight = mlp_of(block).fc2.weight
    cut = [neuron for neuron in range(weight.shape[1]) if neuron not in kept]
    weight[:, cut] = 0
    before = block.after_mlp(tokens)

    apply(block, kept)

    torch.testing.assert_close(block.after_mlp(tokens), before)
    assert mlp_of(block).fc2.in_features == 6


@torch.no_grad()
def test_kept_neurons_keep_what_they_compute(block: Block, tokens: Tensor) -> None:
    kept = torch.tensor([5, 1, 23])
    before = block.mlp_hidden(tokens)

    apply(block, kept)

    torch.testing.assert_close(block.mlp_hidden(tokens), before[..., kept])


@torch.no_grad()
def test_the_last_layer_put_back_changes_nothing(block: Block, tokens: Tensor) -> None:
    before = block.after_mlp(tokens)

    put_last_layer(block, Part.MLP, last_layer(block, Part.MLP))

    torch.testing.assert_close(block.after_mlp(tokens), before)


@torch.no_grad()
def test_an_inner_norm_is_cut_with_its_neurons(make_model: Callable[..., tuple[ViT, ViTSpec]], tokens: Tensor) -> None:
    model, _ = make_model(mlp_kind="swiglu", mlp_norm_eps=1e-6)
    block = model.blocks[0]
    assert isinstance(block, Block)

    apply(block, torch.arange(8))

    assert block.mlp_hidden(tokens).shape == (2, 5, 8)


def test_a_gated_neuron_is_diverse_if_one_of_its_halves_is(make_model: Callable[..., tuple[ViT, ViTSpec]]) -> None:
    packed, separate = (mlp_of(make_model(mlp_kind=kind)[0].blocks[0]) for kind in ("glu", "swiglu"))

    assert torch.equal(input_rows(packed)[3], torch.cat([packed.fc1.weight[3], packed.fc1.weight[3 + 24]]))
    assert torch.equal(input_rows(separate)[3], torch.cat([separate.fc1_g.weight[3], separate.fc1_x.weight[3]]))


@pytest.mark.parametrize("kind", [{}, {"layer_scale": True}], ids=str)
def test_energy_is_what_the_output_varies_by_through_each_neuron(
    kind: dict[str, Any], make_model: Callable[..., tuple[ViT, ViTSpec]], tokens: Tensor
) -> None:
    block = make_model(**kind)[0].blocks[0]
    with torch.no_grad():
        hidden = block.mlp_hidden(tokens).flatten(0, 1)
        moments = Moments.of(hidden.clone(), hidden[:, :3].clone())
        gamma = block.ls2.gamma if kind else torch.ones(16)
        varied = [
            (hidden[:, [j]] * block.mlp.fc2.weight[:, j] * gamma).var(dim=0, correction=0).sum() for j in range(24)
        ]

    expected = torch.stack(varied).double() * len(hidden)
    torch.testing.assert_close(energies(block, moments), expected, rtol=1e-4, atol=1e-4)
    order = offers(block, moments, PruneMlpOptions(method="energy"), count=5)
    assert order.picks.tolist() == expected.argsort(descending=True)[:5].tolist()


def test_without_repair_energy_counts_the_mean_that_nothing_can_replace(
    make_model: Callable[..., tuple[ViT, ViTSpec]], tokens: Tensor
) -> None:
    block = make_model()[0].blocks[0]
    with torch.no_grad():
        hidden = block.mlp_hidden(tokens).flatten(0, 1)
    moments = Moments.of(hidden.clone(), hidden[:, :3].clone())
    expected = hidden.double().square().sum(dim=0) * block.mlp.fc2.weight.double().square().sum(dim=0)

    order = offers(block, moments, PruneMlpOptions(method="energy", repair="none"), count=24)
    assert order.picks.tolist() == expected.argsort(descending=True).tolist()


def test_l2_keeps_the_neurons_of_the_longest_input_weights(make_model: Callable[..., tuple[ViT, ViTSpec]]) -> None:
    block = make_model(mlp_kind="glu")[0].blocks[0]
    rows = torch.cat(block.mlp.fc1.weight.split(24), dim=1)

    order = offers(block, None, PruneMlpOptions(method="l2"), count=24)

    assert order.picks.tolist() == rows.norm(dim=1).argsort(descending=True).tolist()
    assert order.errors is None


def test_random_draws_without_replacement(make_model: Callable[..., tuple[ViT, ViTSpec]]) -> None:
    block = make_model()[0].blocks[0]

    order = offers(block, None, PruneMlpOptions(method="random"), count=24, seed=1)

    assert sorted(order.picks.tolist()) == list(range(24))


def test_a_method_that_reads_activations_says_so_without_them(
    make_model: Callable[..., tuple[ViT, ViTSpec]],
) -> None:
    with pytest.raises(ValueError, match="reads activations"):
        offers(make_model()[0].blocks[0], None, PruneMlpOptions(method="energy"), count=3)
