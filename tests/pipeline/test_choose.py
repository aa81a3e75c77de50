"""Which candidates may compete by speed: those that are not shown to answer worse than the best."""

import math

import numpy as np
import pytest

from pipeline.choose import as_good_as_the_best

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
