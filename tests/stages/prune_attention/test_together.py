"""Attention and MLP pruned in one and the same sweep, as a stage that edits both does."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from stages.prune_attention.options import AttentionShape, PruneAttentionOptions
from stages.prune_attention.prune import prune_block as prune_attention
from stages.prune_mlp.options import PruneMlpOptions
from stages.prune_mlp.prune import prune_block as prune_mlp
from stages.vit.last_layer import give_bias
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from stages.vit.sweep import Part, sweep, weigh_tokens

MakeModel = Callable[..., tuple[ViT, ViTSpec]]


@pytest.mark.parametrize("repair", ["sequential", "parallel"])
def test_both_kinds_of_sublayers_are_cut_in_one_sweep(
    repair: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(proj_bias=False)
    pruned = deepcopy(model)
    for block in pruned.blocks:
        give_bias(block, Part.ATTENTION)
    attention = PruneAttentionOptions.model_validate({"repair": repair})
    mlp = PruneMlpOptions.model_validate({"repair": repair})
    shape = AttentionShape(heads=2, d_qk=5, d_v=6)

    sweep(
        model,
        pruned,
        pictures,
        {
            Part.ATTENTION: lambda visit: prune_attention(visit.block, shape, attention, visit) and None,
            Part.MLP: lambda visit: prune_mlp(visit.block, 12, mlp, visit) and None,
        },
        sequential=repair == "sequential",
        weigh=weigh_tokens(spec),
    )

    blocks = tuple(block.replace(heads=2, d_qk=5, d_v=6, mlp_width=12) for block in spec.blocks)
    described = ViT(spec.replace(blocks=blocks, proj_bias=True).model_dump(mode="json")).state_dict()
    assert {name: one.shape for name, one in described.items()} == {
        name: one.shape for name, one in pruned.state_dict().items()
    }
    with torch.no_grad():
        missed = (pruned(pictures[0]) - model(pictures[0])).square().mean() / model(pictures[0]).var()
    assert float(missed) < 0.5
