"""Forward selection against closed forms and brute force."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stages.prune_mlp.ols import BATCH, error_curve, order_by_error

Problem = tuple[Tensor, Tensor, float]


def problem(neurons: int, targets: int, *, seed: int, tokens: int | None = None) -> Problem:
    """Moments of correlated neurons and noisy targets."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tokens = tokens or 4 * neurons + 10
    hidden = torch.relu(draw(tokens, max(2, neurons // 2)) @ draw(max(2, neurons // 2), neurons)) + 0.1 * draw(
        tokens, neurons
    )
    wanted = hidden @ draw(neurons, targets) + draw(tokens, targets)
    return hidden.T @ hidden, wanted.T @ hidden, float(wanted.square().sum())


def error_left(gram: Tensor, cross: Tensor, kept: list[int], energy: float) -> float:
    """Squared error of the least-squares fit on these neurons, in closed form."""
    if not kept:
        return energy
    part = cross[:, kept]
    return energy - float((torch.linalg.solve(gram[kept][:, kept], part.T).T * part).sum())


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 10**6))
def test_every_prefix_leaves_the_error_of_its_least_squares_fit(neurons: int, targets: int, seed: int) -> None:
    gram, cross, energy = problem(neurons, targets, seed=seed)

    order = order_by_error(gram, cross, energy=energy)

    assert sorted(order.picks.tolist()) == list(range(neurons))
    expected = [error_left(gram, cross, order.picks[:count].tolist(), energy) for count in range(neurons + 1)]
    assert order.errors is not None
    torch.testing.assert_close(order.errors, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7 * energy)


def test_prefixes_longer_than_a_batch_of_updates_are_exact_too() -> None:
    neurons = 2 * BATCH + 20
    gram, cross, energy = problem(neurons, 9, seed=5)

    order = order_by_error(gram, cross, energy=energy)

    assert order.errors is not None
    for count in (BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + 1, neurons):
        expected = error_left(gram, cross, order.picks[:count].tolist(), energy)
        assert float(order.errors[count]) == pytest.approx(expected, abs=1e-8 * energy)


@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 10**6))
def test_every_pick_is_the_best_next_one_by_brute_force(neurons: int, targets: int, seed: int) -> None:
    gram, cross, energy = problem(neurons, targets, seed=seed)

    picks = order_by_error(gram, cross, energy=energy).picks.tolist()

    for count, pick in enumerate(picks):
        errors = {
            other: error_left(gram, cross, [*picks[:count], other], energy)
            for other in range(neurons)
            if other not in picks[:count]
        }
        assert errors[pick] <= min(errors.values()) + 1e-8 * energy


@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 10**6))
def test_the_error_never_rises(neurons: int, targets: int, seed: int) -> None:
    gram, cross, energy = problem(neurons, targets, seed=seed, tokens=10)  # fewer tokens than neurons: singular

    order = order_by_error(gram, cross, energy=energy)

    assert order.errors is not None
    assert float(order.errors[0]) == pytest.approx(energy)
    assert bool((order.errors.diff() <= 0).all())
    assert float(order.errors[-1]) >= 0


@given(st.integers(2, 12), st.integers(0, 10**6))
def test_the_numbering_of_neurons_does_not_matter(neurons: int, seed: int) -> None:
    gram, cross, energy = problem(neurons, 3, seed=seed)
    shuffled = torch.randperm(neurons, generator=torch.Generator().manual_seed(seed))

    plain = order_by_error(gram, cross, energy=energy).picks
    other = order_by_error(gram[shuffled][:, shuffled], cross[:, shuffled], energy=energy).picks

    assert shuffled[other].tolist() == plain.tolist()


@given(st.integers(1, 10), st.integers(0, 10**6))
def test_of_twins_one_waits_until_all_others_are_taken(neurons: int, seed: int) -> None:
    gram, cross, energy = problem(neurons, 3, seed=seed)
    gram, cross = gram.repeat(2, 2), torch.cat([cross, cross], dim=1)

    order = order_by_error(gram, cross, energy=energy)

    assert sorted((order.picks[:neurons] % neurons).tolist()) == list(range(neurons))


def test_a_dead_neuron_comes_last() -> None:
    gram, cross, energy = problem(6, 2, seed=0)
    gram[2], gram[:, 2], cross[:, 2] = 0, 0, 0

    assert int(order_by_error(gram, cross, energy=energy).picks[-1]) == 2


def test_a_limit_gives_the_beginning_of_the_whole_order() -> None:
    gram, cross, energy = problem(100, 5, seed=2)

    whole, part = order_by_error(gram, cross, energy=energy), order_by_error(gram, cross, energy=energy, count=70)

    assert part.picks.tolist() == whole.picks[:70].tolist()


@given(st.integers(1, 12), st.integers(0, 10**6))
def test_the_curve_of_any_order_is_that_of_its_fits(neurons: int, seed: int) -> None:
    gram, cross, energy = problem(neurons, 3, seed=seed)
    picks = torch.randperm(neurons, generator=torch.Generator().manual_seed(seed))

    curve = error_curve(gram, cross, picks, energy=energy)

    expected = [error_left(gram, cross, picks[:count].tolist(), energy) for count in range(neurons + 1)]
    torch.testing.assert_close(curve, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6 * energy)


def test_an_impossible_count_is_refused() -> None:
    gram, cross, energy = problem(4, 2, seed=0)

    with pytest.raises(ValueError, match=r"count must be in 1\.\.4"):
        order_by_error(gram, cross, energy=energy, count=5)
