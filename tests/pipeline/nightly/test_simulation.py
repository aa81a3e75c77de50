"""What the policy is worth on histories whose truth is known; the full table is benchmarks/nightly_simulation.py."""

import pytest

from pipeline.nightly.simulation import Seen, Truth, simulate

SERIES = 30


def play(truth: Truth, *, reruns: bool = True) -> list[Seen]:
    return [simulate(truth, seed=seed, reruns=reruns) for seed in range(SERIES)]


def found(seen: list[Seen], within: int) -> float:
    delays = [one.delay() for one in seen]
    return sum(delay is not None and delay <= within for delay in delays) / len(seen)


@pytest.mark.parametrize("noise", [0.005, 0.01, 0.02])
def test_false_alarms_are_rarer_than_one_in_a_hundred_nights(noise: float) -> None:
    seen = play(Truth(noise=noise))

    assert sum(one.false_alarms() for one in seen) / (SERIES * 40) <= 0.01


def test_five_percent_is_found_in_two_nights_on_a_quiet_board() -> None:
    assert found(play(Truth(noise=0.005, step=0.05)), 2) >= 0.97
    assert found(play(Truth(noise=0.005, step=0.05), reruns=False), 2) >= 0.97


def test_five_percent_is_found_on_a_usual_board_by_reruns_at_once_and_without_them_in_ten_nights() -> None:
    assert found(play(Truth(noise=0.01, step=0.05)), 2) >= 0.97
    assert found(play(Truth(noise=0.01, step=0.05), reruns=False), 10) >= 0.97


def test_a_board_that_became_slower_is_put_aside_and_no_commit_is_blamed() -> None:
    seen = play(Truth(board_step=0.06))

    assert sum(one.delay("quarantine") is not None for one in seen) >= 0.97 * SERIES
    assert sum(one.delay("regression") is not None for one in seen) == 0


def test_a_swapped_board_that_says_so_raises_no_alarm() -> None:
    seen = play(Truth(board_step=0.2, swapped=True))

    assert {one.verdicts[20].kind for one in seen} == {"environment_changed"}
    assert sum(bool(one.openings()) for one in seen) <= 0.1 * SERIES


def test_throttled_nights_are_void() -> None:
    seen = play(Truth(throttled=0.2))

    assert sum(verdict.kind == "invalid" for one in seen for verdict in one.verdicts) >= 0.15 * SERIES * 40
    assert sum(one.false_alarms() for one in seen) / (SERIES * 40) <= 0.01
