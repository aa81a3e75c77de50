"""DGMR's order against the loop that its authors describe, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.prune_mlp.dgmr import order_by_diversity


def greedy_loop(rows: Tensor, *, count: int) -> list[int]:
    """The paper's algorithm, written down without thought for speed: rounds of modified Gram-Schmidt on the rest."""
    left = list(range(len(rows)))
    picks: list[int] = []
    while len(picks) < count:
        residual = rows[left].double().clone()
        taken: list[int] = []
        for _ in range(min(rows.shape[1], len(left), count - len(picks))):
            norms = residual.norm(dim=1)
            norms[taken] = -1
            best = int(norms.argmax())
            taken.append(best)
            direction = residual[best] / norms[best]
            residual -= torch.outer(residual @ direction, direction)
        picks += [left[index] for index in taken]
        left = [index for index in left if index not in set(picks)]
    return picks


def random_rows(width: int, depth: int, *, seed: int, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(width, depth, generator=generator, dtype=torch.float64)
    return rows * torch.exp(spread * torch.randn(width, 1, generator=generator, dtype=torch.float64))


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.floats(0, 1), st.integers(0, 10**6))
def test_the_order_is_that_of_the_greedy_loop(depth: int, width: int, share: float, seed: int) -> None:
    rows = random_rows(width, depth, seed=seed)
    count = max(1, round(share * width))

    assert order_by_diversity(rows, count=count).tolist() == greedy_loop(rows, count=count)


def test_the_order_is_that_of_the_greedy_loop_at_the_size_of_a_real_mlp() -> None:
    rows = random_rows(768, 192, seed=1, spread=0.3).float()  # r = 4: four rounds

    assert order_by_diversity(rows, count=400).tolist() == greedy_loop(rows, count=400)


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(2, 30), st.integers(0, 10**6), st.data())
def test_a_smaller_answer_is_the_beginning_of_a_larger_one(
    depth: int, width: int, seed: int, data: st.DataObject
) -> None:
    rows = random_rows(width, depth, seed=seed)
    count = data.draw(st.integers(1, width - 1))

    smaller, larger = order_by_diversity(rows, count=count), order_by_diversity(rows, count=width)

    assert smaller.tolist() == larger[:count].tolist()
    assert sorted(larger.tolist()) == list(range(width))


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(0, 10**6))
def test_rank_deficient_rows_are_picked_once_and_span_everything_first(rank: int, seed: int) -> None:
    rows = random_rows(24, rank, seed=seed) @ random_rows(rank, 10, seed=seed + 1)

    picks = order_by_diversity(rows, count=24)

    assert sorted(picks.tolist()) == list(range(24))
    assert int(torch.linalg.matrix_rank(rows[picks[:rank]])) == rank


def test_a_copy_waits_until_the_space_is_spanned() -> None:
    rows = random_rows(8, 8, seed=3)
    doubled = torch.cat([rows, rows])

    first_round = order_by_diversity(doubled, count=8) % 8

    assert sorted(first_round.tolist()) == list(range(8))


def test_rows_of_zeros_come_last() -> None:
    rows = random_rows(6, 4, seed=0)
    rows[[1, 4]] = 0

    assert sorted(order_by_diversity(rows, count=6)[4:].tolist()) == [1, 4]


@pytest.mark.parametrize("count", [0, 7])
def test_an_impossible_count_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=r"count must be in 1\.\.6"):
        order_by_diversity(torch.ones(6, 4), count=count)
