"""Groups of similar neurons: what is alike, who stands for whom, and what the layer behind loses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.prune_mlp.options import PruneMlpOptions
from stages.prune_mlp.prune import prune
from stages.prune_mlp.similarity import count_alike, cut, groups_at, medoids, merge, similarity, tree_of
from stages.vit.model import ViT
from stages.vit.moments import Moments
from stages.vit.repair import Fit, relative_error
from stages.vit.spec import ViTSpec

MakeModel = Callable[..., tuple[ViT, ViTSpec]]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments_of(hidden: Tensor, targets: Tensor | None = None) -> Moments:
    return Moments.of(hidden.clone(), (hidden[:, :1] if targets is None else targets).clone())


def test_correlation_and_cosine_are_numpys() -> None:
    hidden = random(200, 6, seed=0) @ random(6, 6, seed=1) + 0.5

    assert torch.allclose(similarity(moments_of(hidden)), torch.corrcoef(hidden.T).abs())
    unit = hidden / hidden.norm(dim=0)
    assert torch.allclose(similarity(moments_of(hidden), measure="cosine"), (unit.T @ unit).abs())


def test_a_neuron_that_is_minus_or_a_multiple_of_another_is_alike_and_counted() -> None:
    hidden = random(300, 5, seed=0)
    hidden[:, 3] = -2.0 * hidden[:, 0] + 1.0

    assert count_alike(similarity(moments_of(hidden))) == 2
    assert count_alike(similarity(moments_of(random(300, 5, seed=0)))) == 0


@settings(max_examples=40)
@given(st.integers(2, 14), st.floats(0.3, 0.99), st.integers(0, 10**6))
def test_within_a_group_every_pair_is_as_alike_as_the_threshold_says(width: int, threshold: float, seed: int) -> None:
    hidden = random(60, width, seed=seed) + 2 * random(60, 1, seed=seed + 1)
    alike = similarity(moments_of(hidden))
    tree = tree_of(alike)
    groups = cut(tree, groups_at(tree, threshold))

    together = groups[:, None] == groups[None]
    assert float(alike[together].min()) >= threshold - 1e-12
    # And no two groups could be put together.
    for one in range(int(groups.max()) + 1):
        for other in range(one):
            assert float(alike[groups == one][:, groups == other].min()) < threshold


@settings(max_examples=40)
@given(st.integers(1, 20), st.data(), st.integers(0, 10**6))
def test_exactly_as_many_groups_as_asked_each_with_a_medoid_of_its_own(
    width: int, data: st.DataObject, seed: int
) -> None:
    if width == 1:
        return
    count = data.draw(st.integers(1, width))
    hidden = random(50, width, seed=seed)
    alike = similarity(moments_of(hidden))
    groups = cut(tree_of(alike), count)
    picks = medoids(alike, groups, hidden.square().sum(dim=0))

    assert sorted(groups.unique().tolist()) == list(range(count))
    assert groups[picks].tolist() == list(range(count))
    for group, pick in enumerate(picks.tolist()):
        inside = groups == group
        assert float(alike[pick, inside].mean()) >= float(alike[inside][:, inside].mean(dim=1).max()) - 1e-9


@pytest.mark.parametrize("measure", ["pearson", "cosine"])
def test_a_dead_neuron_joins_any_group_and_brings_no_others_together(measure: Any) -> None:
    hidden = random(100, 4, seed=0)
    hidden[:, 2] = 0.0
    alike = similarity(moments_of(hidden), measure=measure)

    assert alike[2].tolist() == [1, 1, 1, 1]
    tree = tree_of(alike)
    assert groups_at(tree, 0.9) == 3
    assert len(set(cut(tree, 3)[[0, 1, 3]].tolist())) == 3


def test_of_twins_the_one_with_more_energy_stays_and_a_dead_neuron_never_does() -> None:
    hidden = random(100, 3, seed=0)
    hidden[:, 1] = 3 * hidden[:, 0]
    hidden[:, 2] = 0.7
    alike = similarity(moments_of(hidden))

    assert medoids(alike, torch.tensor([0, 0, 0]), torch.tensor([1.0, 9.0, 0.0])).tolist() == [1]


def test_twins_are_merged_without_a_trace_whatever_their_scale_sign_and_offset() -> None:
    free = random(400, 4, seed=0)
    hidden = torch.cat([free, -3 * free[:, :2] + 1, torch.full((400, 1), 0.4, dtype=torch.float64)], dim=1)
    layer = Fit(random(5, 7, seed=1), random(5, seed=2), ridge=0.0)
    moments = moments_of(hidden, hidden @ layer.weight.T + layer.bias)
    alike = similarity(moments)
    groups = cut(tree_of(alike), 4)
    kept = medoids(alike, groups, hidden.var(dim=0))

    merged = merge(layer, moments, kept, groups)

    assert torch.allclose(hidden[:, kept] @ merged.weight.T + merged.bias, hidden @ layer.weight.T + layer.bias)


def test_fitted_columns_lose_less_than_summed_ones() -> None:
    """Summing takes every member for a copy of its medoid; the line through it does not overshoot."""
    common = random(2000, 4, seed=0).repeat(1, 3)
    hidden = common + random(2000, 12, seed=1)
    layer = Fit(random(8, 12, seed=2), random(8, seed=3), ridge=0.0)
    moments = moments_of(hidden, hidden @ layer.weight.T + layer.bias)
    alike = similarity(moments)
    groups = cut(tree_of(alike), 4)
    kept = medoids(alike, groups, hidden.var(dim=0))

    summed = Fit(layer.weight.new_zeros(8, 4).index_add_(1, groups, layer.weight), layer.bias, ridge=0.0)
    fitted = relative_error(moments, kept, merge(layer, moments, kept, groups))
    assert fitted < 0.8 * relative_error(moments, kept, summed)


@pytest.mark.parametrize("repair", ["none", "parallel", "sequential"])
@pytest.mark.parametrize(
    "kind", [{}, {"mlp_kind": "glu"}, {"mlp_kind": "swiglu", "activation": "silu"}, {"fc2_bias": False}], ids=str
)
def test_a_threshold_finds_the_twins_of_every_block_and_nothing_else(
    make_model: MakeModel, pictures: list[Tensor], kind: dict[str, Any], repair: str
) -> None:
    """Block 0 has no twins, block 1 four pairs, block 2 eight."""
    model, spec = make_model(**kind)
    with torch.no_grad():
        for index, block in enumerate(model.blocks):
            for layer in (module for name, module in block.mlp.named_children() if name.startswith("fc1")):
                for rows in layer.weight.split(24), layer.bias.split(24):
                    for half in rows:
                        half[: 4 * index] = half[12 : 12 + 4 * index]
    options = PruneMlpOptions.model_validate(
        {"method": "similarity", "threshold": 0.999, "round_to": 1, "repair": repair, "ridge": 0}
    )

    pruned, pruned_spec, facts = prune(model, spec, options, pictures)

    assert [block.mlp_width for block in pruned_spec.blocks] == [24, 20, 16]
    assert [row["alike"] for row in facts["blocks"]] == [0, 8, 16]
    assert facts["alike_above"] == 0.98
    images = torch.cat(pictures)
    with torch.no_grad():
        assert torch.allclose(pruned(images), model(images), atol=2e-4)


def test_a_threshold_rounds_widths_up(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    options = PruneMlpOptions(method="similarity", threshold=0.5, round_to=5)

    _, pruned_spec, _ = prune(model, spec, options, pictures)

    assert all(block.mlp_width % 5 == 0 or block.mlp_width == 24 for block in pruned_spec.blocks)
