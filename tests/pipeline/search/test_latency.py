"""The latency table: probes in, times of any shape out; and what puts it right."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.search.latency import Correction, LatencyTable, MeasuredAttention, MeasuredMlp, bytes_line


def a_table(**changes) -> LatencyTable:
    fields = {
        "unpruned_p50_ms": 4.0,
        "rest": 0.04,
        "mlp": [MeasuredMlp(width=width, share=0.002 + width * 6e-5) for width in (96, 192, 384, 768)],
        "attention": [
            MeasuredAttention(heads=h, d_qk=q, d_v=v, share=0.001 + h * (0.002 + 1e-4 * q + 2e-4 * v))
            for h, q, v in [(3, 64, 64), (3, 32, 32), (3, 16, 16), (3, 32, 64), (3, 64, 32), (1, 64, 64), (2, 64, 64)]
        ],
    }
    return LatencyTable(**{**fields, **changes})


def test_measured_widths_come_back_and_others_lie_between() -> None:
    table = a_table()

    assert table.mlp_share(384) == pytest.approx(0.002 + 384 * 6e-5)
    assert table.mlp_share(288) == pytest.approx(0.002 + 288 * 6e-5)
    assert table.mlp_share(48) == pytest.approx(0.002 + 48 * 6e-5)  # below the narrowest probe
    assert table.mlp_share(0) == 0


@given(st.lists(st.floats(-0.01, 0.2), min_size=4, max_size=4))
def test_a_wider_mlp_is_never_faster_whatever_noise_was_measured(shares: list[float]) -> None:
    table = a_table(
        mlp=[MeasuredMlp(width=w, share=s) for w, s in zip((96, 192, 384, 768), shares, strict=True)],
    )
    times = [table.mlp_share(width) for width in range(0, 769, 16)]

    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(times))
    assert min(times) >= 0


def test_attention_is_read_off_a_formula_that_noise_free_probes_determine() -> None:
    table = a_table()

    for shape in [(3, 48, 24), (2, 16, 64), (1, 8, 8)]:
        heads, d_qk, d_v = shape
        assert table.attention_share(shape) == pytest.approx(0.001 + heads * (0.002 + 1e-4 * d_qk + 2e-4 * d_v))
    assert table.attention_share((0, 0, 0)) == 0
    assert table.residual() < 1e-9


@given(st.lists(st.floats(0.0, 0.2), min_size=7, max_size=7).filter(lambda shares: max(shares) > 0.01))
def test_more_attention_never_takes_less(shares: list[float]) -> None:
    clean = a_table()
    table = a_table(
        attention=[one.replace(share=share) for one, share in zip(clean.attention, shares, strict=True)],
    )

    assert table.attention_share((2, 32, 32)) <= table.attention_share((3, 32, 32)) + 1e-12
    assert table.attention_share((3, 32, 32)) <= table.attention_share((3, 32, 64)) + 1e-12
    assert table.attention_share((3, 32, 64)) <= table.attention_share((3, 64, 64)) + 1e-12


def test_a_model_is_the_sum_of_its_parts(plain_spec) -> None:
    table = a_table()
    blocks = plain_spec.blocks
    off = plain_spec.replace(
        blocks=(blocks[0].replace(attention="off", heads=0, d_qk=0, d_v=0), blocks[1].replace(mlp=False, mlp_width=0))
    )

    whole = table.rest + 2 * (table.attention_share((2, 8, 8)) + table.mlp_share(64))
    assert table.share(plain_spec.replace(blocks=blocks[:2])) == pytest.approx(whole)
    assert table.share(off) == pytest.approx(table.rest + table.attention_share((2, 8, 8)) + table.mlp_share(64))


def test_one_point_scales_two_make_a_line() -> None:
    one = Correction.through([(0.9, 1.0)])
    two = Correction.through([(0.9, 1.0), (0.5, 0.7)])

    assert one.measured(0.45) == pytest.approx(0.5)
    assert two.measured(0.9) == pytest.approx(1.0)
    assert two.measured(0.5) == pytest.approx(0.7)
    assert two.allowed(two.measured(0.62)) == pytest.approx(0.62)


def test_of_more_points_the_last_is_met_exactly() -> None:
    correction = Correction.through([(0.9, 1.0), (0.5, 0.7), (0.4, 0.58)])

    assert correction.measured(0.4) == pytest.approx(0.58)
    assert correction.b > 0


def test_noise_that_turns_the_line_around_is_not_believed() -> None:
    correction = Correction.through([(0.9, 1.0), (0.8, 1.1)])

    assert correction.b > 0
    assert correction.measured(0.8) == pytest.approx(1.1)


def test_a_steep_line_of_noise_foretells_no_negative_time() -> None:
    correction = Correction.through([(0.5758, 0.5619), (0.5828, 0.6103), (0.5663, 0.5488)])

    assert correction.a < 0
    assert correction.measured(0.5663) == pytest.approx(0.5488)
    assert correction.measured(0.01) == pytest.approx(0.5488 * 0.01 / 0.5663)


positive = st.floats(0.01, 2)


any_sum = st.one_of(positive, st.floats(-1, 0))
"""an engine may fuse so well that its parts sum to less than nothing beside the rest"""


@given(points=st.lists(st.tuples(any_sum, positive), min_size=1, max_size=5), sums=st.tuples(positive, positive))
def test_more_parts_take_longer_and_no_time_is_negative(
    points: list[tuple[float, float]], sums: tuple[float, float]
) -> None:
    correction = Correction.through(points)
    low, high = sorted(sums)

    assert 0 < correction.measured(low) <= correction.measured(high)
    assert correction.allowed(correction.measured(low)) == pytest.approx(low, rel=1e-6)
    told = [point for point in points if point[0] > 0]
    assert not told or correction.measured(told[-1][0]) == pytest.approx(told[-1][1])


def test_engine_bytes_follow_parameters() -> None:
    fixed, per_param = bytes_line([(1000, 5000), (2000, 9000), (4000, 17000)])

    assert (fixed, per_param) == (pytest.approx(1000), pytest.approx(4))
    assert bytes_line([(1000, 4000)]) == (0.0, 4.0)
    assert np.isfinite(bytes_line([(1000, 4000), (1000, 4400)])[1])
