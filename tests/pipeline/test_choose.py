"""Which candidates may compete by speed: those that are not shown to answer worse than the best."""

import math

import numpy as np
import pytest

from pipeline.answers import divergence, likeness, usable_likeness
from pipeline.choose import Choice, as_good_as_the_best, pairs_of
from pipeline.report.record import CandidateRow

IMAGES = 1000


def answers(wrong: int, start: int = 0) -> np.ndarray:
    """Whether each image is answered like the source does: so many in a row are not."""
    same = np.ones(IMAGES, dtype=bool)
    same[start : start + wrong] = False
    return same


@pytest.mark.parametrize(
    ("other", "fits"),
    [
        (answers(110), True),  # one point behind: near, though every image that changed got worse
        (answers(120), False),  # two points, no image the other way: worse beyond doubt
        (answers(120, start=500), True),  # two points, as 120 against 100 others: may be chance
        (answers(140, start=500), False),  # four points: too much, chance or not
    ],
)
def test_a_candidate_competes_unless_it_is_worse_by_much_or_beyond_doubt(other: np.ndarray, fits: bool) -> None:
    same = {"best": answers(100), "other": other}
    agreements = {name: float(one.mean()) for name, one in same.items()}

    assert as_good_as_the_best(agreements, same) == (["best", "other"] if fits else ["best"])


def test_features_are_compared_by_their_cosine_alone() -> None:
    assert as_good_as_the_best({"a": 0.95, "b": 0.945, "c": 0.93}, {}) == ["a", "b"]


def test_answers_that_are_not_finite_never_compete() -> None:
    assert as_good_as_the_best({"a": math.nan, "b": 0.2}, {"a": answers(0), "b": answers(800)}) == ["b"]
    assert as_good_as_the_best({"a": math.nan}, {}) == []


@pytest.mark.parametrize("has_head", [True, False])
def test_one_answer_that_is_not_finite_is_enough(has_head: bool) -> None:
    reference = np.random.default_rng(0).normal(size=(200, 8))
    broken = reference.copy()
    broken[17] = np.nan

    assert likeness(reference, broken, has_head=has_head) == pytest.approx(0.995)
    assert math.isnan(usable_likeness(reference, broken, has_head=has_head))
    assert usable_likeness(reference, reference, has_head=has_head) == pytest.approx(1.0)


def row(runtime: str, precision: str, p50_ms: float | None, *, chosen: bool, reason: str) -> CandidateRow:
    return CandidateRow(
        runtime=runtime, precision=precision, p50_ms=p50_ms, agreement=1.0, bytes=1, chosen=chosen, reason=reason
    )


UNPRUNED = Choice(
    winner="openvino int8",
    rows=(
        row("openvino", "int8", 4.0, chosen=True, reason="fastest of those that agree with the source"),
        row("openvino", "fp32", 8.0, chosen=False, reason="takes twice as long"),
        row("onnxruntime", "int8", 9.0, chosen=False, reason="agrees on 40 %"),
    ),
    losses={"openvino int8": 0.05, "openvino fp32": 0.0},
)


def test_a_search_knows_the_winner_and_those_that_answer_as_well() -> None:
    first, others = pairs_of(UNPRUNED)

    assert (first.name, first.p50_ms, first.loss) == ("openvino int8", 4.0, 0.05)
    assert [(one.name, one.p50_ms, one.loss) for one in others] == [("openvino fp32", 8.0, 0.0)]
    assert pairs_of(UNPRUNED.replace(losses={}))[1] == []


def test_whoever_lost_before_the_search_or_in_it_is_told_with_the_reason() -> None:
    only = row("openvino", "fp32", None, chosen=True, reason="the only candidate")
    final = Choice(winner="openvino fp32", rows=(only,))

    told = final.joined_with(UNPRUNED, {"openvino int8": "searched, too: it loses more"})

    assert [(one.runtime, one.precision, one.reason) for one in told.rows] == [
        ("openvino", "fp32", "it loses least at the same milliseconds"),
        ("openvino", "int8", "searched, too: it loses more"),
        ("onnxruntime", "int8", "of the unpruned engines: agrees on 40 %"),
    ]
    assert [one.chosen for one in told.rows] == [True, False, False]


def test_of_two_that_were_built_after_a_search_each_keeps_its_own_reason() -> None:
    told = UNPRUNED.joined_with(UNPRUNED, {})

    assert told.rows == UNPRUNED.rows


def test_the_divergence_is_that_of_the_offers() -> None:
    torch = pytest.importorskip("torch")
    wanted, found = np.random.default_rng(0).normal(size=(2, 50, 7)).astype(np.float32)
    logs = [torch.from_numpy(one).double().log_softmax(-1) for one in (wanted, found)]
    expected = torch.nn.functional.kl_div(logs[1], logs[0], reduction="sum", log_target=True) / 50

    assert divergence(wanted, found, has_head=True) == pytest.approx(float(expected))
    assert divergence(wanted, wanted, has_head=True) == pytest.approx(0, abs=1e-12)
    assert divergence(wanted, np.broadcast_to(wanted.mean(0), wanted.shape), has_head=False) == pytest.approx(1)
    assert divergence(wanted, np.full_like(wanted, np.nan), has_head=True) == math.inf
