"""Several queries at once: all requests at work, none asked twice at a time, each query timed by itself."""

import threading
from typing import Any

import numpy as np
import pytest
from sleep_runtime import SleepingPool

from targets.agent.at_once import Pool, saturate, serve_at_once
from targets.errors import WorkerError

MILLISECOND = 1_000_000


def sleeping(requests: int, milliseconds: float = 20) -> tuple[SleepingPool, Pool]:
    session = SleepingPool({"milliseconds": milliseconds, "requests": requests})
    feeds = {"image": np.zeros((1, 3, 8, 8), np.float32)}
    return session, Pool(session, lambda: feeds)


@pytest.mark.parametrize("requests", [1, 2, 4])
def test_all_requests_are_at_work_and_never_more(requests: int) -> None:
    session, pool = sleeping(requests)

    seconds = saturate(pool, 8) / 1e9

    assert session.most <= requests + 1  # a thread that has answered may not be gone yet
    assert 8 / requests * 0.020 <= seconds
    if requests > 1:
        assert seconds < 8 * 0.020


def test_a_block_ends_with_its_last_answer() -> None:
    _, pool = sleeping(2, milliseconds=30)
    ended: list[int] = []
    clock = iter(range(1000))

    taken = saturate(pool, 3, clock_ns=lambda: ended.append(1) or next(clock))

    assert taken == len(ended) - 1 == 3  # one look at the start, one for each answer


def test_what_two_requests_can_do_is_served_without_a_queue_and_more_waits() -> None:
    due = [index * 12 * MILLISECOND for index in range(20)]  # one of 20 ms every 12 ms: too much for one, not for two

    _, one = sleeping(1)
    _, two = sleeping(2)
    waiting = serve_at_once(due, one, limit_ns=10**12)
    served = serve_at_once(due, two, limit_ns=10**12)

    late = [begin - moment for begin, moment in zip(waiting["started_ns"], due, strict=True)]
    assert late[-1] > 100 * MILLISECOND
    assert (
        np.median([begin - moment for begin, moment in zip(served["started_ns"], due, strict=True)]) < MILLISECOND * 8
    )


def test_every_query_has_its_own_times() -> None:
    _, pool = sleeping(3, milliseconds=10)

    told = serve_at_once([0] * 9, pool, limit_ns=10**12)

    assert len(told["started_ns"]) == len(told["ended_ns"]) == 9
    assert told["started_ns"] == sorted(told["started_ns"])
    assert all(end - begin >= 10 * MILLISECOND for begin, end in zip(*told.values(), strict=True))


def test_what_is_due_after_the_limit_is_left() -> None:
    _, pool = sleeping(2, milliseconds=10)

    told = serve_at_once([0] * 50, pool, limit_ns=30 * MILLISECOND)

    assert 2 <= len(told["started_ns"]) < 50
    assert max(told["started_ns"]) <= 30 * MILLISECOND
    assert min(told["ended_ns"]) > 0


def test_the_last_answer_counts_though_an_earlier_one_is_written_down_later() -> None:
    """Two threads of a runtime: the first looks at the clock, and the second answers before the first goes on."""
    asked, second_done = threading.Event(), threading.Event()

    def clock() -> int:
        if threading.current_thread().name == "first":
            asked.set()
            assert second_done.wait(60)
            return 10
        return 20 if threading.current_thread().name == "second" else 0

    class Two:
        requests = 2
        threads: list[threading.Thread] = []

        def submit(self, feeds: Any, answered: Any) -> None:
            def first() -> None:
                answered({})

            def second() -> None:
                assert asked.wait(60)
                answered({})
                second_done.set()

            work = (first, second)[len(self.threads)]
            self.threads.append(threading.Thread(target=work, name=work.__name__))
            self.threads[-1].start()

        def wait(self) -> None:
            for one in self.threads:
                one.join()

    assert saturate(Pool(Two(), dict), 2, clock_ns=clock) == 20


def test_a_query_that_fails_without_a_reason_is_told_all_the_same() -> None:
    class Silent:
        requests = 1

        def submit(self, feeds: Any, answered: Any) -> None:
            answered(None)

        def wait(self) -> None:
            pass

    with pytest.raises(WorkerError, match="a query failed, and the runtime does not say why"):
        saturate(Pool(Silent(), dict), 1)


def test_what_the_runtime_raises_is_told() -> None:
    class Broken:
        requests = 2

        def submit(self, feeds: Any, answered: Any) -> None:
            raise RuntimeError("no kernel for this")

        def wait(self) -> None:
            pass

    with pytest.raises(RuntimeError, match="no kernel for this"):
        saturate(Pool(Broken(), dict), 1)
