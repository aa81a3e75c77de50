"""A run: every planned cell gets an outcome, boards do not disturb each other, and what was cut short goes on."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from pipeline.nightly.stop import Stop
from targets.errors import DeviceBusyError, DeviceLostError, DeviceRefusedError, InputError, WorkerError

Make = Callable[..., Any]


def kinds(report: Any, metric: str = "latency_p50_ms") -> dict[str, str]:
    return {one.series.device: one.verdict.kind for one in report.series if one.series.metric == metric}


def status(report: Any) -> dict[str, str]:
    return {one.device: one.status for one in report.cells}


def test_every_cell_is_measured_on_every_board_and_built_once(lab: Any) -> None:
    report = lab.night()

    assert status(report) == {"red": "measured", "green": "measured", "blue": "measured"}
    assert lab.builder.built == ["digits/cpu"]
    assert {one.series.metric for one in report.series} == {
        *("latency_p50_ms", "energy_mj", "power_w", "memory_bytes", "engine_bytes", "top1")
    }
    assert report.exit_code == 0
    assert report.ended == "finished"


def test_boards_measure_at_the_same_time(lab: Any) -> None:
    meeting = threading.Barrier(3, timeout=60)  # opens when all three are there
    for board in lab.boards.values():
        board.during = meeting.wait

    assert status(lab.night()) == {"red": "measured", "green": "measured", "blue": "measured"}


def test_boards_that_are_this_machine_measure_one_after_the_other(lab: Any) -> None:
    alone = threading.Lock()

    def during() -> None:
        assert alone.acquire(blocking=False)
        alone.release()

    for board in lab.boards.values():
        board.shares_host, board.during = True, during

    assert set(status(lab.night()).values()) == {"measured"}


def test_a_lost_board_is_tried_again_and_the_tries_are_told(lab: Any) -> None:
    lab.boards["red"].trouble = [DeviceLostError("the link broke"), DeviceLostError("the link broke again")]

    report = lab.night()

    (red,) = [one for one in report.cells if one.device == "red"]
    assert red.status == "measured"
    assert red.tries == ("device_lost: the link broke", "device_lost: the link broke again")
    assert len(lab.boards["green"].asked) == 1


def test_a_board_that_stays_lost_is_a_failure_of_its_own(lab: Any) -> None:
    lab.boards["red"].trouble = [DeviceLostError("gone")] * 3

    report = lab.night()

    assert status(report) == {"red": "device_lost", "green": "measured", "blue": "measured"}
    assert report.exit_code == 1
    assert kinds(report)["red"] == "failed"
    assert "lost its board: gone" in next(one for one in report.series if one.series.device == "red").verdict.sentence


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (WorkerError("the engine does not load"), "failed"),
        (DeviceRefusedError("another host key"), "failed"),
        (InputError("no such precision"), "failed"),
        (DeviceBusyError("held by process 7"), "missing"),
    ],
)
def test_what_another_try_would_not_mend_is_not_tried_again(lab: Any, error: Exception, expected: str) -> None:
    lab.boards["red"].trouble = [error]

    report = lab.night()

    assert status(report)["red"] == expected
    assert len(lab.boards["red"].asked) == 1
    assert report.exit_code == 1


def test_a_failed_build_fails_its_cells_and_says_why(make_lab: Make) -> None:
    lab = make_lab(
        "format: vitrim.matrix/1\nname: lab\nlevel: quick\ndevices: [red]\n"
        "recipes: [{recipe: digits.yaml}, {recipe: letters.yaml}]\n",
        recipes=("digits", "letters"),
    )
    lab.builder.trouble = lambda unit: "parity failed" if unit.name == "digits" else None

    report = lab.night()

    found = {one.recipe: (one.status, one.reason) for one in report.cells}
    assert found == {"digits": ("failed", "parity failed"), "letters": ("measured", "")}


def test_a_cell_that_failed_has_a_failed_night_in_each_of_its_series(lab: Any) -> None:
    lab.night()
    lab.boards["blue"].trouble = [WorkerError("no")]

    report = lab.night()

    blue = [one for one in report.series if one.series.device == "blue"]
    assert len(blue) == 6
    assert {one.verdict.kind for one in blue} == {"failed"}
    assert kinds(report)["red"] == "insufficient_data"


def test_a_metric_that_is_not_measured_any_more_is_missing(lab: Any) -> None:
    lab.night()
    lab.boards["green"].energy = False

    report = lab.night()

    green = {one.series.metric: one.verdict.kind for one in report.series if one.series.device == "green"}
    assert green["energy_mj"] == green["power_w"] == "missing"
    assert green["latency_p50_ms"] == "insufficient_data"
    assert report.sentence == "2 metrics missing"


def test_what_the_deadline_leaves_undone_is_missing(lab: Any) -> None:
    lab.change(deadline="0s")

    report = lab.night()

    assert set(status(report).values()) == {"missing"}
    assert report.ended == "deadline"
    assert "deadline" in report.cells[0].reason
    assert lab.builder.built == []


def test_an_interrupted_run_goes_on_without_its_finished_cells(lab: Any) -> None:
    stop = Stop()

    def interrupt() -> None:
        raise KeyboardInterrupt

    lab.change(devices=("red", "green", "blue"))
    first = lab.boards["red"]
    done = threading.Event()
    lab.boards["green"].during = lambda: (done.wait(60), interrupt())
    lab.boards["blue"].during = lambda: (done.wait(60), interrupt())
    told = lab.said.append

    def tell(text: str) -> None:
        told(text)
        if text.startswith("digits@red: measured"):
            done.set()

    lab.said = type("Said", (list,), {"append": lambda self, text: tell(text)})()
    with pytest.raises(KeyboardInterrupt):
        lab.night(stop=stop)
    assert lab.report().ended is None
    assert lab.report().waiting == ("digits@blue", "digits@green")

    for name in ("green", "blue"):
        lab.boards[name].during = lambda: None
    lab.nights -= 1
    report = lab.night()

    assert report.runs == 1
    assert status(report) == {"red": "measured", "green": "measured", "blue": "measured"}
    assert len(first.asked) == 1
    assert lab.boards["green"].asked == [("engine",), ("engine",)]


def test_a_run_of_another_commit_does_not_go_on_and_its_gaps_are_failures(lab: Any) -> None:
    lab.boards["red"].during = _raise_interrupt
    with pytest.raises(KeyboardInterrupt):
        lab.night()
    lab.boards["red"].during = lambda: None

    report = lab.night()

    assert report.runs == 2
    assert report.ended == "finished"
    first = lab.store.runs("lab")[0]
    assert first.ended == "abandoned"
    old = lab.report(first.id)
    assert {"red": "missing"}.items() <= status(old).items()
    assert old.exit_code == 1


def _raise_interrupt() -> None:
    raise KeyboardInterrupt


def test_two_runs_of_one_matrix_exclude_each_other(lab: Any) -> None:
    refused: list[str] = []

    def second() -> None:
        if not refused:
            with pytest.raises(InputError, match="is under way: process"):
                lab.night()
            refused.append("yes")

    lab.boards["red"].during = second
    lab.night()

    assert refused == ["yes"]


def test_runs_of_one_day_have_ids_of_their_own(lab: Any) -> None:
    lab.night()
    lab.nights -= 1
    lab.night()

    assert [run.id for run in lab.store.runs("lab")] == ["lab-2026-01-01", "lab-2026-01-01.2"]


def test_old_engines_go_and_samples_stay(lab: Any) -> None:
    lab.change(history=lab.matrix.history.replace(keep_engines=2))
    for _ in range(4):
        lab.night()

    objects = lab.store.objects
    facts = [lab.store.cells(run.id)[0].facts for run in lab.store.runs("lab")]
    assert [objects.has_folder(one["bundle"]) for one in facts] == [False, False, True, True]
    assert all(objects.get_json(one["raw"])["measurements"] for one in facts)
    assert all(len(objects.get_arrays(one["answers"])["values"]) for one in facts)


def test_a_run_that_began_yesterday_is_another_nights(lab: Any) -> None:
    lab.boards["red"].during = _raise_interrupt
    with pytest.raises(KeyboardInterrupt):
        lab.night(commit="same")
    lab.boards["red"].during = lambda: None

    assert lab.night(commit="same").runs == 2  # a day later
    assert timedelta(days=1) > timedelta(hours=20)
