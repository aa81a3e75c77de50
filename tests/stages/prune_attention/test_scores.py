"""SNP's closed form against the N x N way that its authors draw."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.prune_attention.scores import best, pair_alignment, value_diversity


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_the_score_of_pairs_is_the_cosine_with_the_leading_parts_of_the_logits(
    width: int, directions: int, seed: int
) -> None:
    q, k = draw(2, 3, 9, width, seed=seed), draw(2, 3, 9, width, seed=seed + 1)

    scores = pair_alignment(q, k, directions=directions)

    for image in range(2):
        for head in range(3):
            logits = q[image, head] @ k[image, head].T
            left, sigma, right = torch.linalg.svd(logits)
            for pair in range(width):
                own = torch.outer(q[image, head, :, pair], k[image, head, :, pair])
                expected = 0.0
                for j in range(min(directions, width)):
                    part = sigma[j] * torch.outer(left[:, j], right[j])
                    expected += abs(float((part * own).sum() / (part.norm() * own.norm())))
                assert abs(float(scores[image, head, pair]) - expected) < 1e-9


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 10**6))
def test_the_score_of_values_is_their_distance_to_all_of_all_heads(heads: int, width: int, seed: int) -> None:
    values = draw(heads, width, 7, seed=seed)

    scores = value_diversity(values)

    for head in range(heads):
        for neuron in range(width):
            own = values[head, neuron]
            expected = sum(1 - abs(float(own @ other / (own.norm() * other.norm()))) for other in values.reshape(-1, 7))
            assert abs(float(scores[head, neuron]) - expected) < 1e-9


def test_a_copy_in_another_head_lowers_the_score() -> None:
    values = draw(2, 4, 50, seed=0)
    values[1, 2] = -3 * values[0, 1]

    scores = value_diversity(values)

    assert {(0, 1), (1, 2)} == {divmod(int(index), 4) for index in scores.flatten().argsort()[:2]}


def test_dead_dimensions_score_lowest_and_equal_ones_go_from_the_back() -> None:
    q, k = draw(1, 1, 9, 4, seed=0), draw(1, 1, 9, 4, seed=1)
    q[..., 2] = 0

    assert int(pair_alignment(q, k, directions=2)[0, 0].argmin()) == 2
    assert best(torch.ones(2, 5), 3).tolist() == [[0, 1, 2]] * 2
