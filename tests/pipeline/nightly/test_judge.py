"""Verdicts: what each kind of night is called, and what it does to the nights after it."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.nightly.judge import judge
from pipeline.nightly.record import Night, Rerun, Verdict

Make = Callable[..., Night]
Judge = Callable[..., list[tuple[Night, Verdict]]]
WOBBLE = (0.0, 0.02, -0.02, 0.01, -0.01)


def quiet(night: Make, count: int, *, start: int = 0, level: float = 10.0, **fields: Any) -> list[Night]:
    return [night(start + index, level + WOBBLE[index % 5], **fields) for index in range(count)]


def kinds(history: list[tuple[Night, Verdict]]) -> list[str]:
    return [verdict.kind for _, verdict in history]


def test_quiet_nights_are_ok_once_there_are_enough_of_them(night: Make, judged: Judge) -> None:
    history = judged(quiet(night, 12))

    assert kinds(history) == ["insufficient_data"] * 5 + ["ok"] * 7
    assert not any(verdict.alarms for _, verdict in history)
    assert history[-1][1].sentence == "median latency 10.02 ms (+0.2 %): as before"


def test_one_night_beyond_the_band_asks_for_a_rerun_beside_the_last_good_engine(night: Make, judged: Judge) -> None:
    history = judged(quiet(night, 10))
    tonight = night(10, 10.6)

    verdict = judge(history, tonight)

    assert (verdict.kind, verdict.rerun_wanted, verdict.rule) == ("suspicious", True, "fast")
    assert verdict.culprit is not None
    assert verdict.culprit.last_good.artifact == "engine 9"


@pytest.mark.parametrize(
    ("ratio", "interval", "kind"),
    [(1.06, (1.05, 1.07), "regression"), (0.94, (0.93, 0.95), "improvement"), (1.0, (0.99, 1.01), "invalid")],
)
def test_the_rerun_decides(night: Make, judged: Judge, ratio: float, interval: tuple[float, float], kind: str) -> None:
    history = judged(quiet(night, 10))
    rerun = Rerun(ratio=ratio, ratio_ci95=interval, good_artifact="engine 9")

    verdict = judge(history, night(10, 10.6), rerun=rerun)

    assert verdict.kind == kind
    if kind != "invalid":
        assert verdict.change == pytest.approx(ratio - 1)
        assert verdict.culprit is not None
        assert verdict.culprit.changes == ("commit commit 9 → commit 10", "the engine")


def test_a_regression_stays_until_it_is_mended_and_the_nights_of_it_are_no_baseline(night: Make, judged: Judge) -> None:
    nights = [*quiet(night, 10), *quiet(night, 20, start=10, level=10.6), *quiet(night, 3, start=30)]

    history = judged(nights, can_rerun=False)

    assert kinds(history)[10:12] == ["suspicious", "regression"]
    assert set(kinds(history)[11:30]) == {"regression"}
    assert kinds(history)[30:] == ["ok"] * 3
    opened = history[11][1]
    assert opened.culprit is not None
    assert (opened.culprit.last_good.commit, opened.culprit.first_bad.commit) == ("commit 9", "commit 10")
    assert "not over since 2026-01-11" in history[29][1].sentence
    assert "back to what it was" in history[30][1].sentence


def test_what_became_faster_is_the_new_baseline(night: Make, judged: Judge) -> None:
    nights = [*quiet(night, 10), *quiet(night, 10, start=10, level=9.0), *quiet(night, 3, start=20)]

    history = judged(nights, can_rerun=False)

    assert "improvement" in kinds(history)[10:13]
    assert set(kinds(history)[13:20]) <= {"ok", "insufficient_data"}
    assert kinds(history)[-1] == "regression"  # as slow as before the improvement


def test_another_driver_begins_a_new_segment_and_is_no_regression(night: Make, judged: Judge) -> None:
    nights = [*quiet(night, 10), *quiet(night, 8, start=10, level=11.0, environment={"driver": "570"})]

    history = judged(nights)

    assert kinds(history)[10] == "environment_changed"
    assert "driver 560 → 570" in history[10][1].sentence
    assert history[10][1].change == pytest.approx(0.1)
    assert kinds(history)[11:] == ["insufficient_data"] * 4 + ["ok"] * 3


def test_the_same_engine_slower_in_the_same_environment_is_the_boards_doing(night: Make, judged: Judge) -> None:
    nights = quiet(night, 10, artifact="engine")
    nights += quiet(night, 4, start=10, level=10.8, artifact="engine")

    history = judged(nights)

    assert kinds(history)[10:13] == ["invalid", "invalid", "quarantine"]
    assert "the board changed, not the code" in history[12][1].sentence
    assert "regression" not in kinds(history)


def test_an_outlier_night_is_forgotten(night: Make, judged: Judge) -> None:
    history = judged(quiet(night, 10))
    outlier = night(10, 11.5)
    rerun = Rerun(ratio=1.002, ratio_ci95=(0.995, 1.009), good_artifact="engine 9")
    history.append((outlier, judge(history, outlier, rerun=rerun)))

    after = night(11, 10.0)

    assert history[-1][1].kind == "invalid"
    assert judge(history, after).kind == "ok"
    assert judge(history, after).baseline == pytest.approx(10.0)


def test_a_creep_of_a_little_every_night_is_held_against_the_release(night: Make, judged: Judge) -> None:
    nights = [night(index, 10 * 1.0008**index) for index in range(60)]
    release = nights[0]

    alone = judged(nights)
    pinned = judged(nights, release=release)

    assert "regression" not in kinds(alone)
    first = next(verdict for verdict in (one for _, one in pinned) if verdict.kind == "regression")
    assert first.rule == "creep"
    assert first.change is not None
    assert 0.03 < first.change < 0.04
    assert first.culprit is not None
    assert first.culprit.last_good == release


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        (
            {"status": "failed", "values": (), "reason": "the engine did not build"},
            "failed",
            "the engine did not build",
        ),
        ({"status": "missing", "values": ()}, "missing", "was not run"),
        ({"status": "device_lost", "values": ()}, "failed", "lost its board"),
        ({"flags": ("throttled",)}, "invalid", "throttled"),
        ({"values": ()}, "invalid", "no run gave a value"),
    ],
)
def test_a_night_without_a_value_says_so_and_touches_nothing(
    night: Make, judged: Judge, fields: dict[str, Any], kind: str, words: str
) -> None:
    nights = [*quiet(night, 10), night(10, **{"value": 99.0, **fields}), *quiet(night, 3, start=11)]

    history = judged(nights)

    assert history[10][1].kind == kind
    assert words in history[10][1].sentence
    assert kinds(history)[11:] == ["ok"] * 3


def test_a_noisy_board_is_told_what_it_hides(night: Make, judged: Judge) -> None:
    nights = [night(index, 10 * (1 + 0.03 * (-1) ** index)) for index in range(12)]

    (warning,) = judged(nights)[-1][1].warnings

    assert "varies by" in warning
    assert "lock its clocks" in warning
