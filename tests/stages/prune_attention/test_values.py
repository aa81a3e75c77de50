"""Heads and value directions against brute force: every error is that of a least-squares fit."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.prune_attention.values import (
    block_diagonal,
    order_heads,
    own_axes,
    through,
    value_axes,
    value_errors,
)
from stages.vit.moments import Moments
from stages.vit.repair import fit, relative_error


def problem(heads: int, width: int, targets: int, *, seed: int, tokens: int = 300) -> Moments:
    """Moments of correlated heads with noisy targets."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inner = heads * width
    hidden = draw(tokens, inner) @ draw(inner, inner) + draw(inner)
    wanted = hidden @ (draw(inner, targets) * torch.exp(draw(inner, 1))) + 0.5 * draw(tokens, targets)
    return Moments.of(hidden, wanted)


def error(moments: Moments, axes: Tensor) -> float:
    """Squared error of the best layer on the inputs along these axes [M, K]."""
    seen, every = through(moments, axes), torch.arange(axes.shape[1])
    return relative_error(seen, every, fit(seen, every, ridge=1e-9)) * moments.energy


def only_heads(heads: list[int], width: int, inner: int) -> Tensor:
    return torch.eye(inner, dtype=torch.float64)[:, [h * width + i for h in heads for i in range(width)]]


@settings(max_examples=25)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(0, 10**6))
def test_each_prefix_of_heads_leaves_the_error_of_its_fit(heads: int, width: int, targets: int, seed: int) -> None:
    moments = problem(heads, width, targets, seed=seed)

    order = order_heads(moments, heads)

    assert sorted(order.picks.tolist()) == list(range(heads))
    assert float(order.errors[0]) == pytest.approx(moments.energy)
    assert bool((order.errors.diff() <= 0).all())
    for count in range(1, heads + 1):
        expected = error(moments, only_heads(order.picks[:count].tolist(), width, heads * width))
        assert float(order.errors[count]) == pytest.approx(expected, rel=0.05, abs=3e-3 * moments.energy)


@settings(max_examples=25)
@given(st.integers(2, 5), st.integers(1, 4), st.integers(0, 10**6))
def test_the_first_head_to_go_is_the_cheapest_one(heads: int, width: int, seed: int) -> None:
    moments = problem(heads, width, 4, seed=seed)

    stay = order_heads(moments, heads).picks[:-1].tolist()

    errors = {
        rest: error(moments, only_heads(list(rest), width, heads * width))
        for rest in combinations(range(heads), heads - 1)
    }
    assert errors[tuple(sorted(stay))] <= min(errors.values()) * 1.02 + 3e-3 * moments.energy


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(2, 5), st.integers(1, 8), st.integers(0, 10**6), st.data())
def test_directions_of_one_head_cost_what_is_told(
    heads: int, width: int, targets: int, seed: int, data: st.DataObject
) -> None:
    """All other heads whole: reduced-rank regression is exact."""
    moments = problem(heads, width, targets, seed=seed)
    rank = data.draw(st.integers(1, width - 1))

    curve = value_errors(moments, heads)

    assert curve.shape == (heads, width + 1)
    assert bool((curve.diff(dim=1) <= 1e-9 * moments.energy).all())
    whole = error(moments, torch.eye(heads * width, dtype=torch.float64))
    if heads == 1:
        axes = value_axes(moments, 1, rank)
        cost = error(moments, block_diagonal(axes)) - whole
        assert float(curve[0, rank]) == pytest.approx(cost, rel=0.05, abs=3e-3 * moments.energy)


@settings(max_examples=25)
@given(st.integers(2, 4), st.integers(2, 5), st.integers(0, 10**6), st.data())
def test_rounds_over_the_heads_never_raise_the_error_and_beat_dimensions_as_they_are(
    heads: int, width: int, seed: int, data: st.DataObject
) -> None:
    moments = problem(heads, width, 7, seed=seed)
    rank = data.draw(st.integers(1, width - 1))

    errors = [error(moments, block_diagonal(value_axes(moments, heads, rank, rounds=rounds))) for rounds in (0, 1, 4)]

    assert errors[1] <= errors[0] * 1.01 + 1e-3 * moments.energy
    assert errors[2] <= errors[1] * 1.01 + 1e-3 * moments.energy
    first = torch.eye(width, dtype=torch.float64)[:, :rank].repeat(heads, 1, 1)
    assert errors[1] <= error(moments, block_diagonal(first)) * 1.02 + 3e-3 * moments.energy


def test_all_directions_are_no_cut() -> None:
    moments = problem(3, 4, 5, seed=0)

    whole = error(moments, torch.eye(12, dtype=torch.float64))

    assert error(moments, block_diagonal(value_axes(moments, 3, 4))) == pytest.approx(whole, abs=1e-6 * moments.energy)
    for axes in (value_axes(moments, 3, 2), own_axes(moments, torch.randn(5, 12).double(), 3, 2)):
        torch.testing.assert_close(axes.mT @ axes, torch.eye(2, dtype=torch.float64).repeat(3, 1, 1))


def test_directions_that_proj_does_not_read_go_first() -> None:
    moments = problem(2, 4, 5, seed=1)
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).double()
    weight[:, [1, 3, 4, 7]] = 0

    axes = own_axes(moments, weight, 2, 2)

    # What is kept of a head is all that the read dimensions 0 and 2 (5 and 6) can be told from.
    seen = moments.gram / moments.weight + torch.outer(moments.mean_in, moments.mean_in)
    for head, dims in enumerate(([0, 2], [1, 2])):
        own = seen[4 * head : 4 * head + 4, 4 * head : 4 * head + 4]
        a = axes[head]
        told = torch.linalg.solve(a.T @ own @ a, a.T @ own)  # least squares of all dimensions on those kept
        torch.testing.assert_close((a @ told)[:, dims], torch.eye(4, dtype=torch.float64)[:, dims], atol=1e-2, rtol=0)


def test_fewer_targets_than_directions_are_no_trouble() -> None:
    moments = problem(2, 5, 1, seed=2)

    axes = value_axes(moments, 2, 3)

    assert axes.shape == (2, 5, 3)
    assert error(moments, block_diagonal(axes)) <= error(moments, torch.eye(10).double()) + 1e-3 * moments.energy
