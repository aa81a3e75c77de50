"""Open loop: queries come when they come, whether or not the last one is answered; none left out.

The time of a query that has to wait counts from when it was due, so one stall shows in all queries that came meanwhile
(a closed loop would see one slow query: coordinated omission). Here they are answered one after the other; `at_once`
has the same for several at once.
"""

import time
from collections.abc import Callable, Sequence

SPIN_NS = 200_000
"""the last part of a wait is not slept: a sleeper wakes up too late by about this much"""


def serve(
    due_ns: Sequence[int],
    query: Callable[[], object],
    *,
    limit_ns: int,
    clock_ns: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], object] = time.sleep,
) -> dict[str, list[int]]:
    """Run one query for each time it is due; {"started_ns", "ended_ns"}, since the first was due.

    due_ns: rising, from 0. limit_ns: no query starts after it, so the lists may be shorter than due_ns.
    """
    started: list[int] = []
    ended: list[int] = []
    origin = clock_ns()
    for due in due_ns:
        now = wait_until(due, origin, clock_ns=clock_ns, sleep=sleep)
        if now > limit_ns:
            break
        started.append(now)
        query()
        ended.append(clock_ns() - origin)
    return {"started_ns": started, "ended_ns": ended}


def wait_until(due_ns: int, origin_ns: int, *, clock_ns: Callable[[], int], sleep: Callable[[float], object]) -> int:
    """Wait until a moment after the origin, if it is not past already; returns the time since the origin."""
    now = clock_ns() - origin_ns
    while now < due_ns:
        if due_ns - now > SPIN_NS:
            sleep((due_ns - now - SPIN_NS) / 1e9)
        now = clock_ns() - origin_ns
    return now
