"""Open loop under a clock of its own: the queue grows above capacity and does not below."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import sleep_runtime
from tiny_graphs import images

from targets.agent.open_loop import serve
from targets.errors import InputError
from targets.measure.measurement import Arrivals
from targets.measure.open_loop import (
    OpenLoop,
    OpenRun,
    arrival_times,
    latencies_ms,
    open_loop,
    open_loop_figures,
    queue_lengths,
)
from targets.measure.procedure import EngineUnderTest, Procedure
from targets.worker import Worker

MILLISECOND = 1_000_000
SECOND = 1000 * MILLISECOND


class Clock:
    """Time that passes only in sleep and at work; looking at it takes a microsecond."""

    def __init__(self) -> None:
        self.now = 5 * SECOND

    def __call__(self) -> int:
        self.now += 1000
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


def simulate(
    due: list[int], work_ns: Callable[[int], int], *, rate: float, batch: int = 1, limit: int = 10**15
) -> OpenLoop:
    """Serve queries that take work_ns(index)."""
    clock, asked = Clock(), iter(range(10**9))

    def query() -> None:
        clock.now += work_ns(next(asked))

    told = serve(due, query, limit_ns=limit, clock_ns=clock, sleep=clock.sleep)
    served = len(told["started_ns"])
    run = OpenRun(
        due_ns=tuple(due[:served]),
        started_ns=tuple(told["started_ns"]),
        ended_ns=tuple(told["ended_ns"]),
        unserved=len(due) - served,
        stable=True,
    )
    facts = {"conditions_before": {}, "conditions_after": {}, "started_at": "2026-11-26T00:00:00Z"}
    return OpenLoop.model_validate(
        {"level": "full", "engine_sha256": "", "batch": batch, "arrivals": "fixed", "rate_ips": rate, "seed": 1}
        | {"runs": (run,), **facts}
    )


def test_below_capacity_no_queue_grows_and_latency_is_that_of_a_query() -> None:
    due = arrival_times(1000, 50, arrivals="fixed", seed=1)
    measured = simulate(due, lambda index: 10 * MILLISECOND, rate=50)
    found = open_loop_figures(measured)

    assert found["holds_rate"]
    assert max(found["queue"]) <= 1
    assert found["late_starts"] == 0
    assert found["capacity_ips"] == pytest.approx(100, rel=0.01)
    assert found["achieved_ips"] == pytest.approx(50, rel=0.01)
    assert found["latency_p99_ms"] == pytest.approx(10, rel=0.01)


def test_above_capacity_the_queue_grows_and_every_query_waits_longer() -> None:
    due = arrival_times(1000, 200, arrivals="fixed", seed=1)
    measured = simulate(due, lambda index: 10 * MILLISECOND, rate=200)
    found = open_loop_figures(measured)

    assert not found["holds_rate"]
    assert found["queue"] == sorted(found["queue"])
    assert found["queue"][-1] == pytest.approx(500, rel=0.02)
    assert found["achieved_ips"] == pytest.approx(100, rel=0.01)
    assert found["late_starts"] == 999
    assert latencies_ms(measured) == sorted(latencies_ms(measured))
    assert found["latency_max_ms"] == pytest.approx(5000, rel=0.01)


def test_one_stall_shows_in_all_queries_that_came_meanwhile() -> None:
    due = arrival_times(1000, 100, arrivals="fixed", seed=1)
    measured = simulate(due, lambda index: (1000 if index == 300 else 1) * MILLISECOND, rate=100)
    samples = latencies_ms(measured)

    assert sum(sample > 100 for sample in samples) == pytest.approx(101, abs=3)  # a closed loop would show one
    assert open_loop_figures(measured)["latency_p50_ms"] < 2
    assert samples[300] == pytest.approx(1000, rel=0.01)
    assert samples[301] == pytest.approx(991, rel=0.01)


def test_random_arrivals_have_their_rate_are_repeatable_and_queue_more_than_regular_ones() -> None:
    due = arrival_times(5000, 80, arrivals="poisson", seed=3)

    assert due == arrival_times(5000, 80, arrivals="poisson", seed=3)
    assert due != arrival_times(5000, 80, arrivals="poisson", seed=4)
    assert due == sorted(due)
    assert len(due) / due[-1] * SECOND == pytest.approx(80, rel=0.05)
    steps = [later - earlier for earlier, later in pairwise(due)]
    mean = sum(steps) / len(steps)
    assert (sum((step - mean) ** 2 for step in steps) / len(steps)) ** 0.5 == pytest.approx(mean, rel=0.1)
    random, regular = (
        open_loop_figures(simulate(times, lambda index: 10 * MILLISECOND, rate=80))
        for times in (due, arrival_times(5000, 80, arrivals="fixed", seed=3))
    )
    assert random["latency_p90_ms"] > 2 * regular["latency_p90_ms"]
    assert random["holds_rate"]
    # Pollaczek-Khinchine for a constant 10 ms at 80 %: a mean wait of 0.8 / (2 * 0.2) * 10 = 20 ms.
    waits = [one - 10 for one in latencies_ms(simulate(due, lambda index: 10 * MILLISECOND, rate=80))]
    assert sum(waits) / len(waits) == pytest.approx(20, rel=0.35)


def test_an_engine_that_is_behind_is_given_up_at_the_limit() -> None:
    due = arrival_times(1000, 1000, arrivals="fixed", seed=1)
    found = open_loop_figures(simulate(due, lambda index: 10 * MILLISECOND, rate=1000, limit=SECOND))

    assert found["queries"] == pytest.approx(101, abs=1)
    assert found["queries"] + found["unserved"] == 1000
    assert not found["holds_rate"]


def test_rates_are_in_images_where_a_query_holds_several() -> None:
    due = arrival_times(100, 10, arrivals="fixed", seed=1)
    found = open_loop_figures(simulate(due, lambda index: 50 * MILLISECOND, rate=80, batch=8))

    assert found["capacity_ips"] == pytest.approx(160, rel=0.01)
    assert found["achieved_ips"] == pytest.approx(80, rel=0.02)


def test_the_queue_is_counted_at_ten_moments() -> None:
    run = OpenRun(
        due_ns=(0, 10, 20, 30), started_ns=(0, 40, 60, 80), ended_ns=(40, 60, 80, 100), unserved=0, stable=True
    )

    assert queue_lengths(run) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize(("rate", "arrivals", "holds"), [(20.0, "fixed", True), (2000.0, "poisson", False)])
def test_a_worker_serves_at_a_rate(tmp_path: Path, rate: float, arrivals: Arrivals, holds: bool) -> None:
    procedure = Procedure(
        processes=2, queries=20, seconds=0, blocks=1, warmup_queries=5, warmup_seconds=0, warmup_limit_seconds=2
    )
    measured = open_loop(
        EngineUnderTest(folder=sleep_runtime.make_engine(tmp_path / "engine", milliseconds=5), batch=1, threads=1),
        images(16),
        rate_ips=rate,
        level="quick",
        arrivals=arrivals,
        procedure=procedure,
        start=lambda threads: Worker(threads, runtimes={"sleep": Path(sleep_runtime.__file__)}),
    )
    found = open_loop_figures(measured)

    assert OpenLoop.model_validate_json(measured.model_dump_json()) == measured
    assert len(measured.runs) == 2
    assert measured.runs[0].due_ns[:3] != measured.runs[1].due_ns[:3] or arrivals == "fixed"
    assert min(latencies_ms(measured)) >= 5
    assert found["holds_rate"] is holds
    assert all(begin >= due for run in measured.runs for due, begin in zip(run.due_ns, run.started_ns, strict=True))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(tmp_path: Path, rate: float) -> None:
    with pytest.raises(InputError, match="images per second above 0"):
        open_loop(EngineUnderTest(folder=tmp_path, batch=1), images(4), rate_ips=rate, level="quick")
