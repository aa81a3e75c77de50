"""Parameter groups and the schedule."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.training.optimizer import adamw, learning_rate, parameter_groups, set_learning_rate
from stages.vit.model import ViT


@pytest.fixture
def model(tiny_spec) -> ViT:
    spec = tiny_spec(depth=3, layer_scale=True, register_tokens=2, qk_norm_eps=1e-6)
    return ViT(spec.model_dump(mode="json"))


def names_by(model: ViT, key: str, **options: float) -> dict[float, set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[float, set[str]] = {}
    for group in parameter_groups(model, **options):
        found.setdefault(group[key], set()).update(names[id(parameter)] for parameter in group["params"])
    return found


def test_only_matrices_are_decayed(model: ViT) -> None:
    groups = names_by(model, "weight_decay", weight_decay=0.1)

    matrices = {
        f"blocks.{i}.{part}.weight" for i in range(3) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert groups[0.1] == {*matrices, "patch_embed.proj.weight", "head.weight"}
    assert {"cls_token", "reg_token", "pos_embed", "norm.weight", "head.bias", "blocks.0.ls1.gamma"} <= groups[0.0]
    assert groups[0.0] | groups[0.1] == {name for name, _ in model.named_parameters()}


def test_every_trained_parameter_is_in_one_group(model: ViT) -> None:
    model.head.requires_grad_(False)
    groups = parameter_groups(model, weight_decay=0.1, layer_decay=0.5)

    parameters = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(parameters) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_layer_decay_slows_the_layers_far_from_the_head(model: ViT) -> None:
    groups = names_by(model, "lr_scale", weight_decay=0.0, layer_decay=0.5)

    assert {"head.weight", "norm.weight"} <= groups[1.0]
    assert "blocks.2.mlp.fc1.weight" in groups[0.5]
    assert "blocks.0.mlp.fc1.weight" in groups[0.125]
    assert groups[0.0625] == {"cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}


def test_a_group_gets_its_share_of_the_learning_rate(model: ViT) -> None:
    optimizer = adamw(model, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    set_learning_rate(optimizer, 0.2)

    assert {group["lr"] for group in optimizer.param_groups} == {0.2, 0.1, 0.05, 0.025, 0.0125}


def test_the_schedule_has_the_values_of_its_formula() -> None:
    rates = [learning_rate(step, steps=10, peak=1.0, warmup_steps=2, floor=0.1) for step in range(10)]

    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.55)  # half way down
    assert rates[9] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 7 / 8)))


@given(steps=st.integers(1, 500), warmup=st.floats(0, 0.9), peak=st.floats(1e-6, 1.0), floor=st.floats(0, 1))
def test_the_schedule_rises_to_the_peak_and_falls_to_the_floor(
    steps: int, warmup: float, peak: float, floor: float
) -> None:
    warmup_steps = math.ceil(warmup * steps)
    rates = [
        learning_rate(step, steps=steps, peak=peak, warmup_steps=warmup_steps, floor=floor * peak)
        for step in range(steps)
    ]

    assert rates[:warmup_steps] == sorted(rates[:warmup_steps])
    assert rates[warmup_steps:] == sorted(rates[warmup_steps:], reverse=True)
    assert max(rates) == pytest.approx(peak)
    assert all(0 < rate <= peak * (1 + 1e-9) for rate in rates)


def test_weights_that_no_loss_depends_on_only_decay() -> None:
    module = torch.nn.Linear(4, 4)
    before = module.weight.detach().clone()
    optimizer = adamw(module, lr=0.1, weight_decay=0.5)
    (0.0 * (module.weight.sum() + module.bias.sum())).backward()
    optimizer.step()

    assert torch.allclose(module.weight, before * (1 - 0.1 * 0.5))
