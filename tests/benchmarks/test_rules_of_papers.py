"""Rules of papers that benchmarks compare with: exact where exactness is possible."""

import pytest
import torch
from torch import Tensor

from benchmarks.rules_of_papers import corp_mlps, snp_mlps
from stages.vit.model import ViT
from stages.vit.spec import BlockSpec, ViTSpec
from targets.preprocess import Preprocess


@pytest.fixture
def model() -> tuple[ViT, ViTSpec]:
    block = BlockSpec(heads=2, d_qk=8, d_v=8, scale=8**-0.5, mlp_width=24, norm1_eps=1e-6, norm2_eps=1e-6)
    size = Preprocess(height=16, width=16)
    spec = ViTSpec(architecture="small", preprocess=size, patch_size=(8, 8), width=16, classes=5, blocks=(block,) * 2)
    made = ViT(spec.model_dump(mode="json"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            spread = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1) * 0.7)
    return made.eval(), spec


@pytest.fixture
def batches() -> list[Tensor]:
    return list(torch.randn(90, 3, 16, 16, generator=torch.Generator().manual_seed(1)).split(40))


def logits(model: ViT, batches: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in batches])


def described(spec: ViTSpec) -> dict[str, torch.Size]:
    return {name: one.shape for name, one in ViT(spec.model_dump(mode="json")).state_dict().items()}


def missed(model: ViT, other: ViT, batches: list[Tensor]) -> float:
    return float((logits(model, batches) - logits(other, batches)).norm() / logits(model, batches).norm())


def test_corp_makes_up_for_constants_by_the_bias(model: tuple[ViT, ViTSpec], batches: list[Tensor]) -> None:
    source, spec = model
    with torch.no_grad():
        for block in source.blocks:
            fc1 = block.mlp.fc1
            fc1.weight[16:], fc1.bias[16:] = 0, 0.02  # constants of little energy
            block.mlp.fc2.weight[:, 16:] *= 20

    pruned, pruned_spec = corp_mlps(source, spec, 2 / 3, batches)

    assert {name: one.shape for name, one in pruned.state_dict().items()} == described(pruned_spec)
    assert missed(source, pruned, batches) < 0.02


def test_corp_ranks_by_energy_and_looks_at_no_column_of_fc2(model: tuple[ViT, ViTSpec], batches: list[Tensor]) -> None:
    source, spec = model
    with torch.no_grad():
        source.blocks[0].mlp.fc1.weight[:12] *= 10
        source.blocks[0].mlp.fc1.bias[:12] += 100
        source.blocks[0].mlp.fc2.weight[:, 12:] *= 100

    pruned, _ = corp_mlps(source, spec, 0.5, batches)

    rows = pruned.blocks[0].mlp.fc1.weight
    kept = {int((source.blocks[0].mlp.fc1.weight == row).all(dim=1).nonzero()) for row in rows}
    assert kept == set(range(12))


def test_snp_keeps_what_is_unlike_and_repairs_nothing(model: tuple[ViT, ViTSpec]) -> None:
    source, spec = model
    with torch.no_grad():
        for block in source.blocks:
            block.mlp.fc1.weight[::2] = block.mlp.fc1.weight[0] * torch.arange(1, 13)[:, None]

    pruned, pruned_spec = snp_mlps(source, spec, 0.5)

    for before, after in zip(source.blocks, pruned.blocks, strict=True):
        assert torch.equal(after.mlp.fc1.weight, before.mlp.fc1.weight[1::2])
        assert torch.equal(after.mlp.fc2.weight, before.mlp.fc2.weight[:, 1::2])
    assert [block.mlp_width for block in pruned_spec.blocks] == [12, 12]
