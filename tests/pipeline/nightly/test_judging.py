"""Nights through the whole path, history to report: what is told, what stays quiet, what can be judged again."""

from typing import Any

import pytest

from pipeline.nightly.judging import Judging, rejudge
from pipeline.nightly.rules import Policy


def alarms(report: Any) -> list[tuple[str, str, str]]:
    return [(one.series.device, one.series.metric, one.verdict.kind) for one in report.alarms]


def quiet_nights(lab: Any, count: int = 7) -> Any:
    for _ in range(count):
        report = lab.night()
        assert alarms(report) == []
    return report


def of(report: Any, device: str, metric: str = "latency_p50_ms") -> Any:
    return next(one for one in report.series if (one.series.device, one.series.metric) == (device, metric))


def test_a_slower_engine_is_measured_again_beside_the_good_one_and_told_the_same_night(lab: Any) -> None:
    quiet_nights(lab)
    lab.builder.speed = lambda unit: 1.06

    report = lab.night()

    one = of(report, "red")
    assert one.verdict.kind == "regression"
    assert one.verdict.change == pytest.approx(0.06, abs=0.01)
    assert one.verdict.change_ci95 is not None
    assert one.verdict.change_ci95[0] > 0.04
    assert one.verdict.culprit is not None
    assert (one.verdict.culprit.last_good.commit, one.verdict.culprit.first_bad.commit) == ("commit-6", "commit-7")
    assert lab.boards["red"].asked[-2:] == [("engine",), ("engine", "good")]
    assert one.verdict.reproduce.startswith("git checkout commit-7 && vitrim build digits.yaml --target cpu")
    assert any("commit-6 → commit-7" in hint for hint in one.verdict.hints)


def test_a_night_on_which_the_board_alone_is_slow_blames_no_commit(lab: Any) -> None:
    quiet_nights(lab)
    lab.boards["green"].factor = 1.1

    report = lab.night()

    assert of(report, "green").verdict.kind == "invalid"
    assert "the board's doing" in of(report, "green").verdict.sentence
    assert alarms(report) == []


def test_a_board_that_stays_slow_is_put_aside(lab: Any) -> None:
    quiet_nights(lab)
    lab.boards["green"].factor = 1.1
    for _ in range(2):
        lab.night()

    report = lab.night()

    assert ("green", "latency_p50_ms", "quarantine") in alarms(report)
    assert {device for device, _, _ in alarms(report)} == {"green"}


def test_another_driver_begins_a_new_segment_and_is_drawn(lab: Any) -> None:
    quiet_nights(lab)
    lab.boards["blue"].environment = {"driver": "570", "power_mode": "15W"}
    lab.boards["blue"].factor = 1.3

    report = lab.night()

    assert of(report, "blue").verdict.kind == "environment_changed"
    assert of(report, "blue").verdict.hints[0] == "driver: driver 560 → 570"
    assert [mark.what for mark in of(report, "blue").marks] == ["environment"]
    assert alarms(report) == []


def test_a_regression_without_the_good_engine_stays_suspicious_and_is_decided_by_nights(lab: Any) -> None:
    quiet_nights(lab)
    for path in (lab.store.files / "objects").rglob("*.z"):
        path.unlink()  # the shelf is lost
    lab.builder.speed = lambda unit: 1.06

    first, second = lab.night(), lab.night()

    assert of(first, "red").verdict.kind == "suspicious"
    assert of(second, "red").verdict.kind == "regression"


def test_throttled_values_count_for_nothing(lab: Any) -> None:
    quiet_nights(lab)
    lab.boards["red"].throttled, lab.boards["red"].factor = True, 1.5

    report = lab.night()

    assert of(report, "red").verdict.kind == "invalid"
    assert of(report, "red", "top1").verdict.kind == "ok"  # a board that throttles answers no worse
    assert alarms(report) == []


def test_an_accepted_regression_is_the_new_baseline(lab: Any) -> None:
    quiet_nights(lab)
    lab.builder.speed = lambda unit: 1.06
    bad = lab.night()
    for one in bad.alarms:
        lab.store.mark("accept", matrix="lab", run=bad.run, series=one.key, who="me", note="wanted")

    later = [lab.night() for _ in range(6)]

    assert [alarms(report) for report in later] == [[]] * 6
    assert of(later[-1], "red").verdict.kind == "ok"
    assert of(later[-1], "red").verdict.baseline == pytest.approx(10.6, rel=0.02)
    assert "accepted" in [mark.what for mark in of(later[-1], "red").marks]


def test_a_regression_stays_until_it_is_mended(lab: Any) -> None:
    quiet_nights(lab)
    lab.builder.speed = lambda unit: 1.06
    bad = [lab.night() for _ in range(3)]
    lab.builder.speed = lambda unit: 1.0
    mended = lab.night()

    assert [of(report, "red").verdict.kind for report in bad] == ["regression"] * 3
    assert of(bad[-1], "red").verdict.culprit.first_bad.commit == "commit-7"
    assert of(mended, "red").verdict.kind == "ok"
    assert alarms(mended) == []


def test_a_board_that_was_put_aside_can_be_taken_as_it_is(lab: Any) -> None:
    quiet_nights(lab)
    lab.boards["green"].factor = 1.1
    for _ in range(3):
        report = lab.night()
    for one in report.alarms:
        lab.store.mark("accept", matrix="lab", run=report.run, series=one.key, who="me", note="another fan")

    later = [lab.night() for _ in range(7)]

    assert [alarms(report) for report in later] == [[]] * 7
    assert of(later[-1], "green").verdict.kind == "ok"
    assert of(later[-1], "green").verdict.baseline == pytest.approx(11, rel=0.02)


def test_a_creep_is_held_against_the_pinned_run(lab: Any) -> None:
    lab.boards = {name: board for name, board in lab.boards.items() if name == "red"}
    lab.change(devices=("red",))
    lab.boards["red"].noise = 0.0005
    quiet_nights(lab, 6)
    pinned = lab.report()
    lab.store.mark("pin", matrix="lab", run=pinned.run, who="me", note="1.0")
    lab.builder.speed = lambda unit: 1 + 0.0015 * (lab.nights - 6)
    reports = [lab.night() for _ in range(30)]

    found = [of(report, "red").verdict for report in reports]
    first = next(one for one in found if one.kind == "regression")
    assert first.rule == "creep"
    assert first.culprit.last_good.commit == pinned.commit
    assert reports[-1].release.run == pinned.run


def test_lost_accuracy_is_told_with_its_interval_and_only_where_it_was_lost(lab: Any) -> None:
    quiet_nights(lab, 2)
    lab.builder.wrong = lambda unit: 20

    report = lab.night()

    one = of(report, "red", "top1")
    assert one.verdict.kind == "regression"
    assert one.verdict.rule == "accuracy"
    assert one.verdict.change_ci95[1] < 0
    assert one.verdict.p_value < 0.01
    assert "20 images lost and 0 gained" in one.verdict.sentence
    assert {metric for _, metric, _ in alarms(report)} == {"top1"}


def test_accuracy_that_came_back_is_ok_again(lab: Any) -> None:
    quiet_nights(lab, 2)
    lab.builder.wrong = lambda unit: 20
    lab.night()
    bad = lab.night()
    lab.builder.wrong = lambda unit: 0

    report = lab.night()

    assert of(bad, "red", "top1").verdict.culprit.first_bad.commit == "commit-2"
    assert of(report, "red", "top1").verdict.kind == "ok"


def test_another_runtime_begins_new_series_and_is_no_alarm(lab: Any) -> None:
    quiet_nights(lab)
    lab.builder.runtime = "openvino"
    lab.builder.speed = lambda unit: 0.8

    report = lab.night()

    assert of(report, "red").verdict.kind == "environment_changed"
    assert "onnxruntime int8 → openvino int8" in of(report, "red").verdict.sentence
    assert alarms(report) == []


def test_a_changed_kernel_is_named_as_the_cause(lab: Any) -> None:
    def layer(kernel: str, share: float) -> dict[str, Any]:
        return {"name": "fc1", "kernel": kernel, "precision": "int8", "provider": "CPU", "share": share}

    lab.builder.layers = [layer("gemm_a", 0.3)]
    quiet_nights(lab)
    lab.builder.layers = [layer("gemm_b", 0.4)]
    lab.builder.speed = lambda unit: 1.06

    report = lab.night()

    assert "tactic: layer fc1: kernel gemm_a → gemm_b" in of(report, "red").verdict.hints


def test_the_reference_graph_tells_a_slow_board_from_a_slow_engine(lab: Any) -> None:
    for board in lab.boards.values():
        board.health_ms = (5.0, 5.01)
    quiet_nights(lab)
    lab.boards["blue"].factor = 1.08
    for _ in range(2):
        lab.night()

    report = lab.night()

    assert of(report, "blue", "health_ms").verdict.kind == "quarantine"
    assert of(report, "red", "health_ms").verdict.kind == "ok"


def test_a_history_can_be_judged_again_by_another_policy_and_back(lab: Any) -> None:
    quiet_nights(lab)
    lab.builder.speed = lambda unit: 1.06
    lab.night()
    before = lab.store.verdicts()

    def judged(policy: Policy) -> Any:
        return rejudge(Judging(store=lab.store, matrix="lab", policy=policy), repository=lab.folder)

    lax = judged(Policy(fast_change=0.2, slow_change=0.2))
    assert "regression" not in {one.kind for one in lax.values()}
    assert lab.store.verdicts() == lax
    assert judged(lab.matrix.policy) == before


def test_one_false_alarm_in_hundreds_of_quiet_nights_is_all_that_is_allowed(lab: Any) -> None:
    lab.change(devices=("red",))
    lab.boards = {"red": lab.boards["red"]}
    lab.boards["red"].noise = 0.01
    reports = [lab.night() for _ in range(40)]

    assert sum(bool(report.alarms) for report in reports) <= 1
