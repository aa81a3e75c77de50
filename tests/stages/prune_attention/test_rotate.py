"""Rotate and truncate against brute force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.prune_attention.rotate import best_axes, logit_error, refine_per_image


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(images: int, heads: int, width: int, *, seed: int) -> Tensor:
    """Vectors of unequal spread, another one in each image: [I, H, N, d]."""
    shape = (images, heads, 11, width)
    spread = torch.exp(draw(images, heads, 1, width, seed=seed + 1))
    return draw(*shape, seed=seed) * spread @ draw(width, width, seed=seed + 2)


def moments(rows: Tensor) -> Tensor:
    return rows.mT @ rows


def missed(q: Tensor, k: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Squared error of the logits over all pairs of tokens of the same image, for each head: the N x N way."""
    return ((q @ a) @ (k @ b).mT - q @ k.mT).square().sum(dim=(0, 2, 3))


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(0, 10**6))
def test_all_axes_give_the_same_logits(width: int, seed: int) -> None:
    q, k = tokens(1, 2, width, seed=seed), tokens(1, 2, width, seed=seed + 9)

    axes = best_axes(moments(q)[0], moments(k)[0])

    torch.testing.assert_close((q @ axes.query) @ (k @ axes.key).mT, q @ k.mT, rtol=1e-5, atol=1e-5)


@settings(max_examples=30)
@given(st.integers(2, 8), st.integers(0, 10**6), st.data())
def test_the_error_told_is_that_of_all_pairs_and_falls_with_the_rank(
    width: int, seed: int, data: st.DataObject
) -> None:
    q, k = tokens(1, 2, width, seed=seed), tokens(1, 2, width, seed=seed + 9)
    rank = data.draw(st.integers(1, width - 1))

    axes = best_axes(moments(q)[0], moments(k)[0])
    a, b = axes.query[:, :, :rank], axes.key[:, :, :rank]

    energy = float(axes.errors[:, 0].max())
    torch.testing.assert_close(axes.errors[:, rank], missed(q, k, a, b), rtol=1e-4, atol=1e-6 * energy)
    torch.testing.assert_close(axes.errors[:, 0], (q @ k.mT).square().sum(dim=(0, 2, 3)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        logit_error(moments(q)[0], moments(k)[0], a, b), axes.errors[:, rank], rtol=1e-4, atol=1e-6 * energy
    )
    assert bool((axes.errors.diff(dim=1) <= 0).all())
    assert bool((axes.errors[:, -1] == 0).all())


@settings(max_examples=30)
@given(st.integers(2, 8), st.integers(0, 10**6), st.data())
def test_no_other_axes_are_better(width: int, seed: int, data: st.DataObject) -> None:
    q, k = tokens(1, 1, width, seed=seed), tokens(1, 1, width, seed=seed + 9)
    rank = data.draw(st.integers(1, width - 1))
    axes = best_axes(moments(q)[0], moments(k)[0])
    a, b = axes.query[:, :, :rank], axes.key[:, :, :rank]
    nudge_a, nudge_b = (0.05 * draw(*one.shape, seed=seed + 20) * one.std() for one in (a, b))

    best = float(missed(q, k, a, b))

    assert best <= float(missed(q, k, a + nudge_a, b)) + 1e-9
    assert best <= float(missed(q, k, a, b + nudge_b)) + 1e-9
    for dims in (slice(rank), slice(width - rank, width)):  # dimensions as they are
        chosen = torch.eye(width, dtype=torch.float64)[None, :, dims]
        assert best <= float(missed(q, k, chosen, chosen)) * (1 + 1e-6) + 1e-9


@settings(max_examples=20)
@given(st.integers(2, 6), st.integers(0, 10**6), st.data())
def test_refinement_lowers_the_error_of_pairs_of_the_same_image(width: int, seed: int, data: st.DataObject) -> None:
    q, k = tokens(5, 2, width, seed=seed), tokens(5, 2, width, seed=seed + 9)
    rank = data.draw(st.integers(1, width - 1))
    axes = best_axes(moments(q).mean(dim=0), moments(k).mean(dim=0))
    a, b = axes.query[:, :, :rank], axes.key[:, :, :rank]

    finer_a, finer_b = refine_per_image(moments(q), moments(k), a, b)

    before, after = missed(q, k, a, b), missed(q, k, finer_a, finer_b)
    assert bool((after <= before * (1 + 1e-6) + 1e-9).all())
    torch.testing.assert_close(
        logit_error(moments(q), moments(k), finer_a, finer_b), after, rtol=1e-4, atol=1e-6 * float(before.max() + 1)
    )


def test_refinement_pays_where_images_differ() -> None:
    q, k = tokens(5, 1, 6, seed=3), tokens(5, 1, 6, seed=4)
    axes = best_axes(moments(q).mean(dim=0), moments(k).mean(dim=0))
    a, b = axes.query[:, :, :3], axes.key[:, :, :3]

    finer_a, finer_b = refine_per_image(moments(q), moments(k), a, b)

    assert float(missed(q, k, finer_a, finer_b)) < 0.9 * float(missed(q, k, a, b))


@pytest.mark.parametrize("broken", ["zero", "rank one"])
def test_moments_without_full_rank_are_no_trouble(broken: str) -> None:
    q, k = tokens(1, 1, 5, seed=0), tokens(1, 1, 5, seed=1)
    k = k * 0 if broken == "zero" else k[..., :1] * torch.ones(5, dtype=torch.float64)

    axes = best_axes(moments(q)[0], moments(k)[0])

    assert bool(axes.query.isfinite().all())
    assert bool(axes.key.isfinite().all())
    energy = float((q @ k.mT).square().sum())
    torch.testing.assert_close(
        (q @ axes.query[:, :, :1]) @ (k @ axes.key[:, :, :1]).mT, q @ k.mT, rtol=1e-3, atol=1e-4 * energy**0.5 + 1e-9
    )
