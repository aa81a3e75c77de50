"""Figures from samples against known answers, and their error rates by simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.measure.measurement import Measurement, Run
from targets.measure.percentiles import p50_ci95, p50_of, paired_ratio, queries_needed, tail_percentile

Runs = list[list[list[float]]]
BLOCK = st.lists(st.floats(1, 9), min_size=1, max_size=4)


def measurement(runs: Runs) -> Measurement:
    """Make a measurement of runs of blocks of samples."""
    made = tuple(
        Run(
            samples=tuple(sample for block in run for sample in block),
            blocks=tuple(len(block) for block in run),
            load_seconds=0,
            first_ms=0,
            warmup_queries=0,
            warmup_seconds=0,
            stable=True,
        )
        for run in runs
    )
    return Measurement(level="full", engine_sha256="0" * 64, batch=1, runs=made)


def simulated(
    random: np.random.Generator,
    *,
    shape: tuple[int, int, int] = (5, 20, 8),
    speed: float = 1.0,
    drift: "np.ndarray | float" = 1.0,
) -> Measurement:
    """Processes 0.5 % apart, queries with 2 % spread. shape: [R processes, B blocks, queries]; drift: [R, B, 1]."""
    shift = 1 + 0.005 * random.normal(size=(shape[0], 1, 1))
    return measurement((speed * drift * shift * (1 + 0.02 * random.normal(size=shape))).tolist())


@pytest.mark.parametrize(
    ("share", "queries", "rank"),
    [
        (0.90, 64, 64),
        (0.90, 200, 191),
        (0.90, 500, 467),
        (0.90, 1_000, 923),
        (0.90, 5_000, 4_551),
        (0.90, 10_000, 9_071),
        (0.95, 200, 198),
        (0.95, 500, 488),
        (0.95, 1_000, 967),
        (0.95, 5_000, 4_787),
        (0.95, 10_000, 9_552),
        (0.99, 1_000, 999),
        (0.99, 5_000, 4_968),
        (0.99, 10_000, 9_924),
    ],
)
def test_tails_are_the_order_statistics_of_loadgen(share: float, queries: int, rank: int) -> None:
    assert tail_percentile(range(1, queries + 1), share) == rank


@pytest.mark.parametrize(("share", "needed"), [(0.90, 64), (0.95, 130), (0.99, 662), (0.999, 6_636)])
def test_too_few_queries_give_no_tail(share: float, needed: int) -> None:
    assert queries_needed(share) == needed
    assert tail_percentile(range(needed - 1), share) is None
    assert tail_percentile(range(needed), share) == needed - 1


@given(st.lists(st.floats(0.1, 100), min_size=64, max_size=300))
def test_a_tail_lies_between_the_median_and_the_slowest(samples: list[float]) -> None:
    tail = tail_percentile(samples, 0.90)

    assert tail is not None
    assert np.median(samples) <= tail <= max(samples)


def test_the_median_counts_processes_not_queries() -> None:
    odd_process = [[9.0] * 50] * 4
    others = [[[1.0]], [[2.0]]]

    assert p50_of(measurement([odd_process, *others])) == 2.0


@settings(max_examples=25)
@given(st.lists(st.lists(BLOCK, min_size=1, max_size=4), min_size=1, max_size=3), st.sampled_from([0.25, 2.0, 8.0]))
def test_figures_follow_the_unit_and_are_always_the_same(runs: Runs, scale: float) -> None:
    one = measurement(runs)
    scaled = measurement([[[scale * sample for sample in block] for block in run] for run in runs])

    low, high = p50_ci95(one)

    assert low <= high
    assert p50_ci95(one) == (low, high)
    assert p50_of(scaled) == pytest.approx(scale * p50_of(one))
    assert p50_ci95(scaled) == pytest.approx((scale * low, scale * high))


def test_equal_samples_leave_no_doubt() -> None:
    assert p50_ci95(measurement([[[3.0] * 4] * 4] * 3)) == (3.0, 3.0)


@pytest.mark.parametrize("shape", [(5, 20, 8), (2, 16, 4)], ids=["as in full", "as in quick"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(shape: tuple[int, int, int]) -> None:
    random = np.random.default_rng(0)
    intervals = np.array([p50_ci95(simulated(random, shape=shape)) for _ in range(60)])

    covered = np.mean((intervals[:, 0] <= 1) & (intervals[:, 1] >= 1))

    assert 0.85 <= covered <= 1.0
    assert np.mean(intervals[:, 1] - intervals[:, 0]) < 0.03


@pytest.mark.parametrize("shape", [(5, 20, 8), (2, 16, 4)], ids=["as in full", "as in quick"])
def test_equal_engines_are_rarely_called_different(shape: tuple[int, int, int]) -> None:
    random = np.random.default_rng(2)
    found = [paired_ratio(simulated(random, shape=shape), simulated(random, shape=shape))[1] for _ in range(200)]

    assert np.mean([not low <= 1 <= high for low, high in found]) <= 0.1


def test_a_paired_ratio_does_not_feel_the_drift_of_the_machine() -> None:
    random = np.random.default_rng(1)
    drift = np.exp(np.cumsum(0.1 * random.normal(size=(5, 20, 1)), axis=1))  # up to a factor of three
    fast, slow = simulated(random, drift=drift), simulated(random, speed=1.1, drift=drift)

    ratio, (low, high) = paired_ratio(slow, fast)

    assert ratio == pytest.approx(1.1, rel=0.01)
    assert 1.08 < low < ratio < high < 1.12
    assert p50_ci95(slow)[0] < p50_ci95(fast)[1]  # unpaired, the two cannot be told apart


def test_a_ratio_turned_round_is_its_inverse() -> None:
    random = np.random.default_rng(3)
    one, other = simulated(random), simulated(random, speed=2)

    assert paired_ratio(one, other)[0] == pytest.approx(1 / paired_ratio(other, one)[0], rel=1e-3)


def test_measurements_that_were_not_interleaved_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_ratio(measurement([[[1.0], [1.0]]]), measurement([[[1.0]]]))
