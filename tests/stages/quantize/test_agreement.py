"""Comparing a candidate with fp32, and choosing one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.quantize.agreement import Agreement, choose, compare

Floats = NDArray[np.float32]


def logits(count: int = 200, classes: int = 10, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(count, classes)).astype(np.float32)


def disturbed(answers: Floats, noise: float, seed: int = 1) -> Floats:
    return (answers + noise * np.random.default_rng(seed).normal(size=answers.shape)).astype(np.float32)


def candidate(share: float, divergence: float, *, count: int = 200, seed: int = 0) -> Agreement:
    """Make one that is right on this share of the images, which they are by chance."""
    scores = np.zeros(count)
    scores[np.random.default_rng(seed).permutation(count)[: round(share * count)]] = 1
    return Agreement(scores, divergence)


@pytest.mark.parametrize("name", ["logits", "features"])
def test_the_same_answers_agree_wholly(name: str) -> None:
    answers = {name: logits()}

    found = compare(answers, answers)

    assert found.share == pytest.approx(1)
    assert found.divergence == pytest.approx(0, abs=1e-12)


def test_agreement_is_the_share_of_images_with_the_same_top_class() -> None:
    right = np.eye(4, dtype=np.float32)
    wrong = right[[0, 1, 3, 2]]

    found = compare({"logits": right}, {"logits": wrong})

    assert found.scores.tolist() == [1, 1, 0, 0]
    assert found.share == 0.5


def test_divergence_is_that_of_kullback_and_leibler() -> None:
    right, got = logits(3), logits(3, seed=5)
    p, q = (np.exp(one) / np.exp(one).sum(axis=1, keepdims=True) for one in (right, got))

    assert compare({"logits": right}, {"logits": got}).divergence == pytest.approx(
        float((p * np.log(p / q)).sum(axis=1).mean()), rel=1e-5
    )


@given(shift=st.floats(-1e4, 1e4))
def test_a_constant_added_to_all_logits_changes_nothing(shift: float) -> None:
    right = logits(20).astype(np.float64)

    found = compare({"logits": right}, {"logits": right + shift})

    assert found.share == 1
    assert found.divergence == pytest.approx(0, abs=1e-6)


@given(noises=st.lists(st.floats(0.01, 3), min_size=2, max_size=2, unique=True))
def test_more_noise_never_diverges_less(noises: list[float]) -> None:
    low, high = sorted(noises)
    for name in ("logits", "features"):
        near, far = (compare({name: logits()}, {name: disturbed(logits(), noise)}) for noise in (low, high))

        assert near.divergence <= far.divergence


def test_a_model_without_logits_is_compared_by_the_cosine_of_its_first_output() -> None:
    features = np.array([[1, 0], [1, 1]], np.float32)
    turned = np.array([[0, 2], [3, 3]], np.float32)
    tokens = np.zeros((2, 5, 2), np.float32)

    found = compare({"features": features, "patch_tokens": tokens}, {"features": turned, "patch_tokens": tokens + 1})

    np.testing.assert_allclose(found.scores, [0, 1], atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_answers_that_are_not_finite_agree_with_nothing_and_are_never_chosen(bad: float) -> None:
    right = logits()
    broken = right.copy()
    broken[3, 2] = bad

    found = compare({"logits": right}, {"logits": broken})

    assert found.share == 0
    assert choose([found, compare({"logits": right}, {"logits": disturbed(right, 9.0)})]) == 1


def test_clearly_more_agreement_wins_whatever_the_divergence() -> None:
    assert choose([candidate(0.70, 0.001), candidate(0.95, 0.5)]) == 1


def test_within_the_standard_error_the_least_divergence_wins() -> None:
    good, luckier = candidate(0.950, 0.01, seed=1), candidate(0.955, 0.05, seed=2)

    assert choose([luckier, good]) == 1
    assert choose([good, luckier]) == 0


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 2), st.integers(0, 9)), min_size=1, max_size=5),
)
def test_no_candidate_is_better_in_both_than_the_one_chosen(rows: list[tuple[float, float, int]]) -> None:
    candidates = [candidate(share, divergence, seed=seed) for share, divergence, seed in rows]

    best = candidates[choose(candidates)]

    assert not any(one.share > best.share and one.divergence < best.divergence for one in candidates)


def test_a_candidate_is_not_left_out_for_being_nearer_to_the_best() -> None:
    best, near, far = np.ones(100), np.ones(100), np.ones(100)
    best[10:60] = 0  # share 0.50
    near[8:60] = 0  # 0.48, on the same images: more than its standard error away
    far[46:] = 0  # 0.46, on other images: less than its standard error away

    assert choose([Agreement(best, 0.3), Agreement(near, 0.1), Agreement(far, 0.2)]) == 1
