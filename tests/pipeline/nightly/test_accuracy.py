"""Answers image by image: known answers, what the gate misses and what it cries about, by simulation."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.nightly.accuracy import Answers, adjusted, compare_answers, drop_interval, judge_answers, reference_of
from pipeline.nightly.record import Night, Verdict
from pipeline.nightly.rules import Policy
from pipeline.nightly.simulation import AnswersTruth, simulate_answers

POLICY = Policy()


def answers(predictions: Any, labels: Any, *, images: str = "same") -> Answers:
    return Answers(
        values=np.eye(10, dtype=np.float32)[np.asarray(predictions)], labels=np.asarray(labels), images=images
    )


def pair(images: int, lost: int, gained: int) -> tuple[Answers, Answers]:
    """Two engines of which one loses some images, spread over the classes, and gains others."""
    labels = np.arange(images) % 10
    good, tonight = labels.copy(), labels.copy()
    tonight[:lost] = (labels[:lost] + 1) % 10
    good[lost : lost + gained] = (labels[lost : lost + gained] + 1) % 10
    return answers(good, labels), answers(tonight, labels)


def night(index: int, **fields: Any) -> Night:
    from pipeline.nightly.simulation import night_of_answers

    return night_of_answers(index, **fields)


def judged(images: int, lost: int, gained: int, **more: Any) -> Verdict:
    good, tonight = pair(images, lost, gained)
    change = compare_answers(good, tonight, POLICY)
    reference = night(0)
    history = [(reference, Verdict(kind="ok", sentence="ok"))]
    p_value = more.pop("p_value", change.p_value)
    asked = {"reference": reference, "change": change, "p_value": p_value, "policy": POLICY, **more}
    return judge_answers(history, night(1), **asked)


def test_counts_are_those_of_the_images_that_changed() -> None:
    change = compare_answers(*pair(1000, 30, 10), POLICY)

    assert (change.lost, change.gained, change.flips, change.images) == (30, 10, 40, 1000)
    assert change.drop_points == pytest.approx(2.0)
    assert change.p_value == pytest.approx(0.0022, abs=0.0002)  # exact McNemar, binomial(40, 0.5) at 30


@pytest.mark.parametrize(
    ("images", "lost", "gained", "kind", "rule"),
    [
        (10_000, 20, 20, "ok", "accuracy"),
        (10_000, 260, 60, "regression", "accuracy"),
        (10_000, 60, 20, "ok", "accuracy"),  # 0.4 points: a loss for sure, and within the margin for sure
        (200, 3, 1, "ok", "accuracy"),  # too few images to tell
        (1000, 12, 3, "ok", "accuracy"),  # a loss for sure, of less than the margin as far as one can tell
        (10_000, 20, 160, "improvement", "accuracy"),
        (10_000, 400, 395, "suspicious", "flips"),
    ],
)
def test_the_margin_decides(images: int, lost: int, gained: int, kind: str, rule: str) -> None:
    verdict = judged(images, lost, gained)

    assert (verdict.kind, verdict.rule) == (kind, rule)


def test_too_few_images_say_how_many_would_tell() -> None:
    (warning,) = judged(200, 2, 1).warnings

    assert "200 images do not show that at most 1 points are lost; about" in warning


def test_a_loss_that_is_chance_among_many_series_is_no_regression() -> None:
    assert judged(1000, 32, 15, p_value=0.018).kind == "regression"
    assert judged(1000, 32, 15, p_value=0.3).kind == "ok"


def test_one_class_that_is_lost_is_named_though_the_whole_is_within_the_margin() -> None:
    labels = np.arange(10_000) % 100 % 10
    good, tonight = labels.copy(), labels.copy()
    own = np.flatnonzero(labels == 7)[:120]
    tonight[own] = 3
    other = np.flatnonzero(labels == 2)[:70]
    good[other] = 4
    change = compare_answers(answers(good, labels), answers(tonight, labels), POLICY)
    verdict = judge_answers([], night(1), reference=night(0), change=change, p_value=change.p_value, policy=POLICY)

    assert change.worst is not None
    assert (change.worst.index, change.worst.lost) == (7, 120)
    assert verdict.kind == "regression"
    assert verdict.rule == "classes"
    assert "class 7 lost 12.0 points of its 1,000 images" in verdict.sentence


def test_the_same_engine_that_answers_otherwise_is_the_boards_doing() -> None:
    good, tonight = pair(1000, 1, 0)
    change = compare_answers(good, tonight, POLICY)
    same = night(1, artifact="engine 0")
    verdict = judge_answers([], same, reference=night(0), change=change, p_value=1.0, policy=POLICY)

    assert (verdict.kind, verdict.rule) == ("quarantine", "determinism")


def test_other_images_are_never_compared() -> None:
    good, _ = pair(100, 0, 0)
    with pytest.raises(ValueError, match="other images"):
        compare_answers(good, answers(np.arange(100) % 10, np.arange(100) % 10, images="other"), POLICY)
    history = [(night(0), Verdict(kind="ok", sentence="ok"))]
    tonight = night(1, images="other")

    assert reference_of(history, tonight) is None
    told = judge_answers(history, tonight, reference=None, change=None, p_value=None, policy=POLICY)
    assert told.kind == "environment_changed"


def test_bad_nights_are_no_reference() -> None:
    history = [
        (night(0), Verdict(kind="ok", sentence="")),
        (night(1), Verdict(kind="regression", sentence="")),
        (night(2), Verdict(kind="suspicious", sentence="")),
    ]

    assert reference_of(history, night(3)) == history[0][0]


def test_answers_without_labels_are_judged_by_flips() -> None:
    good, tonight = pair(1000, 100, 0)
    bare = [Answers(values=one.values, labels=None, images="same") for one in (good, tonight)]
    change = compare_answers(bare[0], bare[1], POLICY)

    assert change.drop_points is None
    assert change.flips == 100
    verdict = judge_answers([], night(1), reference=night(0), change=change, p_value=None, policy=POLICY)
    assert (verdict.kind, verdict.rule) == ("suspicious", "flips")


def test_features_flip_where_they_turn() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(50, 32)).astype(np.float32)
    turned = values.copy()
    turned[:5] = random.normal(size=(5, 32))
    both = [Answers(values=one, labels=None, images="x", kind="features") for one in (values, turned * 1.01)]

    assert compare_answers(both[0], both[1], POLICY).flips == 5


def test_answers_that_are_not_finite_are_wrong_and_flipped() -> None:
    good, tonight = pair(100, 0, 0)
    values = tonight.values.copy()
    values[3] = np.nan
    change = compare_answers(good, Answers(values=values, labels=tonight.labels, images="same"), POLICY)

    assert (change.lost, change.flips) == (1, 1)


@given(lost=st.integers(0, 200), gained=st.integers(0, 200))
def test_the_interval_holds_the_drop_and_mirrors_when_engines_swap(lost: int, gained: int) -> None:
    low, high = drop_interval(lost, gained, 1000)
    other_low, other_high = drop_interval(gained, lost, 1000)

    assert low <= (lost - gained) / 1000 <= high
    assert (low, high) == (pytest.approx(-other_high, abs=0.002), pytest.approx(-other_low, abs=0.002))
    assert high > low


@given(st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=30))
def test_adjusted_p_values_are_never_smaller_and_keep_their_order(p_values: list[float]) -> None:
    found = adjusted(p_values)

    assert all(one >= own - 1e-12 for one, own in zip(found, p_values, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(np.diff(np.asarray(found)[order]) >= -1e-12)


def test_the_interval_misses_the_truth_as_rarely_as_it_claims() -> None:
    random = np.random.default_rng(1)
    missed = 0
    for _ in range(400):
        lost, gained, _ = random.multinomial(2000, [0.02, 0.01, 0.97])
        low, high = drop_interval(int(lost), int(gained), 2000)
        missed += not low <= 0.01 <= high
    assert missed / 400 <= 0.075  # 5 % and twice its standard error


def test_engines_that_only_differ_by_chance_raise_hardly_an_alarm() -> None:
    seen = [simulate_answers(AnswersTruth(images=2000, noise=0.01), seed=seed) for seed in range(20)]

    assert sum(one.false_alarms() for one in seen) / sum(len(one.verdicts) for one in seen) <= 0.01


def test_three_points_are_found_the_same_night() -> None:
    seen = [simulate_answers(AnswersTruth(images=2000, noise=0.01, drop=0.03), seed=seed) for seed in range(20)]

    assert sum(one.delay() == 1 for one in seen) >= 19
