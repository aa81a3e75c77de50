"""Moments, and the closed-form fit on them, against direct computation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stages.vit.moments import Moments
from stages.vit.repair import Fit, best_ridge, fit, lean, relative_error


def draw(tokens: int, inputs: int, outputs: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs with means far from zero, noisy targets, weights."""
    generator = torch.Generator().manual_seed(seed)
    hidden = 3 + torch.randn(tokens, inputs, generator=generator, dtype=torch.float64)
    noise = torch.randn(tokens, outputs, generator=generator, dtype=torch.float64)
    mixing = torch.randn(inputs, outputs, generator=generator, dtype=torch.float64)
    weights = 0.1 + torch.rand(tokens, generator=generator, dtype=torch.float64)
    return hidden, hidden @ mixing + noise - 5, weights


def assert_same(one: Moments, other: Moments) -> None:
    assert one.tokens == other.tokens
    for name in ("weight", "mean_in", "mean_out", "gram", "cross", "energy"):
        torch.testing.assert_close(
            torch.as_tensor(getattr(one, name)),
            torch.as_tensor(getattr(other, name)),
        )


def test_moments_are_weighted_covariances() -> None:
    hidden, targets, weights = draw(50, 9, 4, seed=0)

    moments = Moments.of(hidden, targets, weights)

    covariance = torch.cov(torch.cat([hidden, targets], dim=1).T, aweights=weights, correction=0) * weights.sum()
    torch.testing.assert_close(moments.gram, covariance[:9, :9])
    torch.testing.assert_close(moments.cross, covariance[9:, :9])
    assert moments.energy == pytest.approx(float(covariance[9:, 9:].trace()))


@given(st.integers(1, 7), st.integers(2, 40), st.integers(1, 39), st.integers(0, 10**6))
def test_moments_of_chunks_join_to_those_of_the_whole(inputs: int, tokens: int, cut: int, seed: int) -> None:
    hidden, targets, weights = draw(tokens, inputs, 3, seed=seed)
    cut = min(cut, tokens - 1)

    joined = Moments.of(hidden[:cut], targets[:cut], weights[:cut])
    joined.absorb(Moments.of(hidden[cut:], targets[cut:], weights[cut:]))

    assert_same(joined, Moments.of(hidden, targets, weights))


def test_a_weight_of_two_counts_like_a_token_twice() -> None:
    hidden, targets, _ = draw(12, 3, 2, seed=4)

    weighted = Moments.of(hidden, targets, torch.tensor([2.0] * 6 + [1.0] * 6, dtype=torch.float64))
    repeated = Moments.of(torch.cat([hidden, hidden[:6]]), torch.cat([targets, targets[:6]]))

    torch.testing.assert_close(weighted.gram, repeated.gram)
    torch.testing.assert_close(weighted.cross, repeated.cross)


def test_chunks_in_single_precision_lose_little_even_with_large_means() -> None:
    hidden, targets, weights = draw(4000, 20, 3, seed=1)
    shifted = hidden + 1000

    moments = Moments.of(shifted.float(), targets.float(), weights.float())

    torch.testing.assert_close(moments.gram, Moments.of(shifted, targets, weights).gram, rtol=1e-3, atol=1.0)


def test_the_fit_is_the_weighted_least_squares_solution() -> None:
    hidden, targets, weights = draw(60, 8, 3, seed=2)
    kept = torch.tensor([6, 1, 2])
    root = weights.sqrt()[:, None]

    layer = fit(Moments.of(hidden, targets, weights), kept, ridge=0.0)

    columns = torch.cat([hidden[:, kept], torch.ones(60, 1, dtype=torch.float64)], dim=1)
    expected = torch.linalg.lstsq(root * columns, root * targets).solution
    torch.testing.assert_close(layer.weight, expected[:-1].T)
    torch.testing.assert_close(layer.bias, expected[-1])


@given(st.floats(0, 1), st.integers(0, 10**6))
def test_the_error_is_known_without_the_tokens(ridge: float, seed: int) -> None:
    hidden, targets, weights = draw(40, 6, 3, seed=seed)
    other_hidden, other_targets, other_weights = draw(30, 6, 3, seed=seed + 1)
    kept = torch.tensor([0, 5, 3])

    layer = fit(Moments.of(hidden, targets, weights), kept, ridge=ridge)

    missed = (other_targets - other_hidden[:, kept] @ layer.weight.T - layer.bias).square().sum(dim=1) @ other_weights
    mean = other_weights @ other_targets / other_weights.sum()
    energy = (other_targets - mean).square().sum(dim=1) @ other_weights
    found = relative_error(Moments.of(other_hidden, other_targets, other_weights), kept, layer)
    assert found == pytest.approx(float(missed / energy), rel=1e-6)


@given(st.floats(0, 1), st.integers(0, 10**6))
def test_leaning_moments_are_those_of_targets_mixed_token_by_token(share: float, seed: int) -> None:
    hidden, targets, weights = draw(30, 5, 3, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    layer = Fit(
        torch.randn(3, 5, generator=generator, dtype=torch.float64),
        torch.randn(3, generator=generator, dtype=torch.float64),
        ridge=0.0,
    )
    moments = Moments.of(hidden, targets, weights)
    before = moments.cross.clone()

    leaning = lean(moments, layer, share=share)

    mixed = share * targets + (1 - share) * (hidden @ layer.weight.T + layer.bias)
    assert_same(leaning, Moments.of(hidden, mixed, weights))
    assert torch.equal(moments.cross, before)


def test_a_singular_problem_gets_the_least_norm_answer() -> None:
    hidden, targets, _ = draw(30, 3, 2, seed=3)
    twins = torch.cat([hidden, hidden[:, :1], torch.zeros(30, 1, dtype=torch.float64)], dim=1)

    layer = fit(Moments.of(twins, targets), torch.arange(5), ridge=0.0)

    torch.testing.assert_close(layer.weight[:, 0], layer.weight[:, 3])
    assert relative_error(Moments.of(twins, targets), torch.arange(5), layer) == pytest.approx(
        relative_error(
            Moments.of(hidden, targets), torch.arange(3), fit(Moments.of(hidden, targets), torch.arange(3), ridge=0.0)
        )
    )


def test_the_best_ridge_is_large_for_few_noisy_tokens_and_small_for_many() -> None:
    generator = torch.Generator().manual_seed(0)

    def sample(tokens: int, noise: float) -> Moments:
        hidden = torch.randn(tokens, 20, generator=generator, dtype=torch.float64)
        clean = hidden.sum(dim=1, keepdim=True)
        return Moments.of(hidden, clean + noise * torch.randn(tokens, 1, generator=generator, dtype=torch.float64))

    every = torch.arange(20)

    assert best_ridge(sample(25, 9.0), sample(4000, 9.0), every) == 1e-1
    assert best_ridge(sample(4000, 0.01), sample(4000, 0.01), every) <= 1e-4
