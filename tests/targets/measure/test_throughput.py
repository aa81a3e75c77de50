"""Throughput with all requests at work: known engines give known rates."""

from collections.abc import Callable
from pathlib import Path

import pytest
import sleep_runtime
from tiny_graphs import images

from targets.measure.open_loop import open_loop, open_loop_figures
from targets.measure.procedure import EngineUnderTest, Procedure
from targets.measure.throughput import BLOCKS, LEAST_ROUNDS, Throughput, images_per_second, throughput
from targets.worker import Worker

SMALL = Procedure(
    processes=2,
    queries=20,
    seconds=0,
    blocks=4,
    warmup_queries=5,
    warmup_seconds=0,
    warmup_limit_seconds=1,
)
MakeWorker = Callable[[int | None], Worker]


def start(threads: int | None) -> Worker:
    return Worker(threads, runtimes={"sleep": Path(sleep_runtime.__file__)})


def asleep(folder: Path, **plan: int) -> EngineUnderTest:
    return EngineUnderTest(folder=sleep_runtime.make_engine(folder, **plan), batch=1, threads=1)


def test_three_requests_answer_three_times_as_many_images(tmp_path: Path) -> None:
    measured = throughput(
        asleep(tmp_path / "pool", milliseconds=20, requests=3), images(2), level="quick", start=start, procedure=SMALL
    )

    assert (measured.requests, len(measured.runs)) == (3, 2)
    assert all(run.block == LEAST_ROUNDS * 3 and len(run.seconds) == BLOCKS for run in measured.runs)
    assert 60 < images_per_second(measured) <= 150


def test_an_engine_that_answers_one_after_the_other_is_measured_as_such(tmp_path: Path) -> None:
    measured = throughput(
        asleep(tmp_path / "one", milliseconds=5), images(2), level="quick", start=start, procedure=SMALL
    )

    assert measured.requests == 1
    assert images_per_second(measured) <= 200


def test_images_per_second_are_those_of_all_blocks_and_the_median_of_the_runs() -> None:
    runs = [{"block": 10, "seconds": (1.0, 3.0), "stable": True}, {"block": 10, "seconds": (1.0,), "stable": True}]
    facts = {"conditions_before": {}, "conditions_after": {}, "started_at": "2026-11-27T00:00:00Z"}
    measured = Throughput.model_validate(
        {"level": "quick", "engine_sha256": "", "batch": 4, "requests": 2, "runs": runs, **facts}
    )

    assert images_per_second(measured) == pytest.approx((20.0 + 40.0) / 2)


def test_two_requests_hold_a_rate_that_one_does_not(tmp_path: Path) -> None:
    def held(name: str, **plan: int) -> dict[str, object]:
        engine = asleep(tmp_path / name, milliseconds=20, **plan)
        loop = open_loop(engine, images(2), rate_ips=75, level="quick", arrivals="fixed", start=start, procedure=SMALL)
        return open_loop_figures(loop)

    one, two = held("one"), held("two", requests=2)

    assert (one["holds_rate"], one["requests"]) == (False, 1)
    assert (two["holds_rate"], two["requests"]) == (True, 2)
