"""Several queries at once: a pool of requests that the runtime works on side by side.

Times are taken when a free request is given a query, and when its answer is there as numpy arrays. The second moment is
taken in a thread of the runtime, which has to wait for the interpreter: some microseconds late.
"""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from targets.agent.open_loop import wait_until
from targets.errors import WorkerError
from targets.runtimes.runtime import Array, ConcurrentSession, Feeds

ANSWER_SECONDS = 600
"""a query that is not answered within it has failed in the runtime"""


class Pool:
    """As many queries at once as the session answers at once."""

    def __init__(self, session: ConcurrentSession, next_feeds: Callable[[], Feeds]) -> None:
        self._session, self._next_feeds = session, next_feeds
        self.requests = session.requests
        self._free = threading.Semaphore(session.requests)
        self._failed = False

    def acquire(self) -> None:
        """Wait for a free request; raises what the runtime raised at a query before."""
        if not self._free.acquire(timeout=ANSWER_SECONDS):
            raise WorkerError(f"no query was answered within {ANSWER_SECONDS} s")
        if self._failed:
            self._free.release()
            self._session.wait()  # raises it
            raise WorkerError("a query failed, and the runtime does not say why")

    def release(self) -> None:
        """Give a request back that was acquired and not used."""
        self._free.release()

    def submit(self, answered: Callable[[], None]) -> None:
        """Start a query with a request that was acquired; `answered` is called when its answer is there."""

        def done(answers: dict[str, Array] | None) -> None:
            try:
                if answers is None:
                    self._failed = True
                else:
                    answered()
            finally:
                self._free.release()

        self._session.submit(self._next_feeds(), done)

    def wait(self) -> None:
        """Wait until all queries are answered; raises what the runtime raised."""
        self._session.wait()
        for _ in range(self.requests):
            self.acquire()
        for _ in range(self.requests):
            self.release()


def saturate(pool: Pool, queries: int, *, clock_ns: Callable[[], int] = time.perf_counter_ns) -> int:
    """Run queries with all requests busy until none is left; nanoseconds from the first start to the last answer."""
    ended: list[int] = []  # several threads append: what each read before it wrote would be lost in a maximum

    start = clock_ns()
    for _ in range(queries):
        pool.acquire()
        pool.submit(lambda: ended.append(clock_ns()))
    pool.wait()
    return max(ended, default=start) - start


def serve_at_once(
    due_ns: Sequence[int],
    pool: Pool,
    *,
    limit_ns: int,
    clock_ns: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], object] = time.sleep,
) -> dict[str, list[int]]:
    """Give each query that is due to a free request, in order; the result and the rest are as for `open_loop.serve`."""
    started: list[int] = []
    ended: list[int] = []
    origin = clock_ns()

    def note_end(index: int) -> None:
        ended[index] = clock_ns() - origin

    for due in due_ns:
        wait_until(due, origin, clock_ns=clock_ns, sleep=sleep)
        pool.acquire()
        now = clock_ns() - origin
        if now > limit_ns:
            pool.release()
            break
        started.append(now)
        ended.append(0)
        pool.submit(partial(note_end, len(started) - 1))
    pool.wait()
    return {"started_ns": started, "ended_ns": ended}
