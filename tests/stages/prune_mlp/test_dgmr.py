"""DGMR's order against the loop that its authors describe, in float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stages.prune_mlp import dgmr
from stages.prune_mlp.dgmr import order_by_diversity
from stages.prune_mlp.neurons import input_rows
from stages.vit.files import read_checkpoint
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec


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


@given(st.integers(1, 12), st.integers(1, 40), st.floats(0, 1), st.integers(0, 10**6))
def test_the_order_is_that_of_the_greedy_loop(depth: int, width: int, share: float, seed: int) -> None:
    rows = random_rows(width, depth, seed=seed)
    count = max(1, round(share * width))

    assert order_by_diversity(rows, count=count).tolist() == greedy_loop(rows, count=count)


def test_the_order_is_that_of_the_greedy_loop_at_the_size_of_a_real_mlp() -> None:
    rows = random_rows(768, 192, seed=1, spread=0.3).float()  # r = 4: four rounds

    assert order_by_diversity(rows, count=400).tolist() == greedy_loop(rows, count=400)


@given(st.integers(1, 8), st.integers(2, 30), st.integers(0, 10**6), st.data())
def test_a_smaller_answer_is_the_beginning_of_a_larger_one(
    depth: int, width: int, seed: int, data: st.DataObject
) -> None:
    rows = random_rows(width, depth, seed=seed)
    count = data.draw(st.integers(1, width - 1))

    smaller, larger = order_by_diversity(rows, count=count), order_by_diversity(rows, count=width)

    assert smaller.tolist() == larger[:count].tolist()
    assert sorted(larger.tolist()) == list(range(width))


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


@given(
    st.integers(1, 12),
    st.integers(1, 40),
    st.floats(0, 1),
    st.integers(1, 6),
    st.integers(1, 5),
    st.floats(0, 1.5),
    st.integers(0, 10**6),
)
def test_few_candidates_and_small_blocks_give_the_same_order(
    depth: int, width: int, share: float, candidates: int, picks: int, spread: float, seed: int
) -> None:
    rows = random_rows(width, depth, seed=seed, spread=spread)
    count = max(1, round(share * width))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dgmr, "CANDIDATES", candidates)
        patch.setattr(dgmr, "PICKS", picks)
        found = order_by_diversity(rows, count=count)

    assert found.tolist() == greedy_loop(rows, count=count)


@pytest.mark.parametrize(("width", "depth", "count"), [(3072, 96, 96), (1500, 64, 200), (1200, 200, 90)])
def test_the_order_is_that_of_the_greedy_loop_where_most_rows_are_no_candidates(
    width: int, depth: int, count: int
) -> None:
    """r = 1, above 3, and below 1; singular values fall over three decades."""
    rows = random_rows(width, depth, seed=5, spread=0.2) @ torch.diag(torch.logspace(0, -3, depth, dtype=torch.float64))

    assert order_by_diversity(rows, count=count).tolist() == greedy_loop(rows, count=count)


@pytest.mark.parametrize("rank", [1, 5, 40])
def test_where_the_rank_is_exhausted_a_round_ends_and_the_next_one_is_again_the_greedy_loop(rank: int) -> None:
    """Low rank without a single copy: the plain loop would go on among rounding errors and pick rows twice."""
    rows = random_rows(150, rank, seed=1, spread=0.3) @ random_rows(rank, 60, seed=2)

    picks = order_by_diversity(rows, count=3 * rank).tolist()

    left = list(range(len(rows)))
    for start in range(0, 3 * rank, rank):
        expected = [left[index] for index in greedy_loop(rows[left], count=rank)]
        assert picks[start : start + rank] == expected
        left = [index for index in left if index not in set(picks[: start + rank])]


@pytest.mark.parametrize("picks", [1, 2, 64])
def test_rows_along_the_axes_are_ordered_by_length(picks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reflections that change nothing (a row that is an axis already) must change nothing."""
    monkeypatch.setattr(dgmr, "PICKS", picks)
    lengths = torch.tensor([3.0, 1.0, 5.0, 2.0, 4.0])

    assert order_by_diversity(torch.diag(lengths), count=5).tolist() == [2, 4, 0, 3, 1]


def test_picks_that_fill_a_few_axes_leave_the_others_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second reflection of a block of two has nothing to do here, but overlaps with the first."""
    monkeypatch.setattr(dgmr, "PICKS", 2)
    rows = torch.block_diag(*(10.0**-place * random_rows(4, 2, seed=place) for place in range(3)))

    assert order_by_diversity(rows, count=6).tolist() == greedy_loop(rows, count=6)


def test_equally_long_rows_are_taken_from_the_first() -> None:
    assert order_by_diversity(torch.eye(7), count=7).tolist() == list(range(7))


def test_half_precision_weights_are_compared_in_float64() -> None:
    rows = random_rows(300, 32, seed=4, spread=0.1).bfloat16()

    assert order_by_diversity(rows, count=64).tolist() == greedy_loop(rows, count=64)


@pytest.mark.parametrize(
    "kind",
    [{"mlp_kind": "glu", "activation": "silu"}, {"mlp_kind": "swiglu", "activation": "silu", "mlp_norm_eps": 1e-6}],
    ids=["SwiGLUPacked", "SwiGLU with a norm"],
)
def test_gated_neurons_are_ordered_by_the_loop_on_both_halves(
    make_model: Callable[..., tuple[ViT, ViTSpec]], kind: dict[str, Any]
) -> None:
    model, _ = make_model(mlp_width=80, **kind)
    mlp = model.blocks[0].mlp
    weights = [mlp.fc1.weight] if mlp.kind == "glu" else [mlp.fc1_g.weight, mlp.fc1_x.weight]
    both = torch.cat([half for weight in weights for half in weight.split(80)], dim=1)

    assert both.shape == (80, 32)
    assert order_by_diversity(input_rows(mlp), count=70).tolist() == greedy_loop(both, count=70)


@pytest.mark.real
@pytest.mark.parametrize("count", [96, 192, 500])
def test_the_order_is_that_of_the_greedy_loop_on_real_weights(assets: Path, count: int) -> None:
    state = read_checkpoint(next((assets / "vit_tiny_patch16_224").glob("*.safetensors")))

    for block in (0, 5, 11):
        rows = state[f"blocks.{block}.mlp.fc1.weight"]
        assert order_by_diversity(rows, count=count).tolist() == greedy_loop(rows, count=count)
