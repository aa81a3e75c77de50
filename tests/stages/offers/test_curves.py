"""Interpolation between measured losses."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.offers.curves import between, spread


def test_what_was_measured_comes_back() -> None:
    found = between([1.0, 0.4, 0.1], [5.0, 0.8, 0.1], [1.0, 0.4, 0.1, 0.0])

    assert found.tolist() == pytest.approx([5.0, 0.8, 0.1, 0.0])


@given(
    st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(-0.1, 10.0)), min_size=1, max_size=6),
    st.lists(st.floats(0.0, 1.2), min_size=2, max_size=20),
)
def test_a_larger_error_never_loses_less(points: list[tuple[float, float]], wanted: list[float]) -> None:
    errors, losses = zip(*points, strict=True)
    at = sorted(wanted)

    found = between(errors, losses, at).tolist()

    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(found))
    assert min(found) >= -1e-12


def test_widths_are_spread_over_what_is_legal() -> None:
    assert spread([0.25, 0.5, 0.75], [16, 32, 48, 64], 64) == [16, 32, 48]
    assert spread([0.1, 0.12], [16, 32, 48, 64], 64) == [16]
    assert spread([0.5], [64], 64) == []
