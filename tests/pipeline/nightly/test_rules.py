"""Rules on rows of numbers: what they must find, and what must not move them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.nightly.rules import Policy, Window, change_point, creep, fast, slow

POLICY = Policy()
QUIET = (10.0, 10.1, 9.9, 10.0, 10.05, 9.95, 10.0, 10.1, 9.9, 10.0)
VALUES = st.lists(st.floats(9.5, 10.5, allow_nan=False), min_size=8, max_size=20)


def test_noise_is_that_of_the_usual_nights_not_of_outliers() -> None:
    assert Window((*QUIET, 14.0)).level == pytest.approx(10.0)
    assert Window((*QUIET, 14.0)).noise == pytest.approx(1.4826 * 0.05 / 10.0)


@pytest.mark.parametrize(("tonight", "found"), [(10.0, False), (10.25, False), (10.45, True), (9.5, True)])
def test_one_night_is_beyond_the_band_or_not(tonight: float, found: bool) -> None:
    assert fast(POLICY, QUIET, tonight) is found


def test_three_nights_decide_where_one_of_them_does_not() -> None:
    assert slow(POLICY, [*QUIET, 10.0, 10.6, 10.0]) is None
    assert slow(POLICY, [*QUIET, 10.6, 10.0, 10.6]) == pytest.approx(0.06)
    assert slow(POLICY, [*QUIET, 9.4, 9.4, 9.4]) == pytest.approx(-0.06)


def test_too_few_nights_say_nothing() -> None:
    assert slow(POLICY, [10.0, 10.0, 10.0, 10.0, 11.0, 11.0, 11.0]) is None
    assert creep(POLICY, [11.0] * (POLICY.creep_nights - 1), 10.0) is None


def test_a_creep_that_the_window_forgets_is_seen_from_the_release() -> None:
    values = [10.0 * 1.003**night for night in range(40)]

    assert slow(POLICY, values) is not None or creep(POLICY, values, values[0]) is not None
    assert creep(POLICY, [10.1] * 20, 10.0) is None
    assert creep(POLICY, [10.4] * 20, 10.0) == pytest.approx(0.04)
    assert creep(POLICY, [9.0] * 20, 10.0) is None  # faster than the release is no creep


@given(values=VALUES, scale=st.floats(0.001, 1000))
def test_the_unit_does_not_matter(values: list[float], scale: float) -> None:
    scaled = [scale * one for one in values]

    assert slow(POLICY, scaled) == pytest.approx(slow(POLICY, values))
    assert fast(POLICY, scaled[:-1], scaled[-1]) is fast(POLICY, values[:-1], values[-1])


@given(before=st.integers(3, 12), after=st.integers(2, 12), step=st.floats(0.05, 0.5))
def test_the_first_night_after_a_step_is_named(before: int, after: int, step: float) -> None:
    values = [QUIET[index % 10] for index in range(before)] + [(1 + step) * 10.0] * after

    assert change_point(values) == before


def test_one_value_cannot_be_parted() -> None:
    with pytest.raises(ValueError, match="1 values cannot be parted"):
        change_point([10.0])
