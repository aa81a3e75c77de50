"""Several requests of one compiled graph at once, each with a thread that waits for it.

OpenVINO's own AsyncInferQueue calls back from its threads. Such a thread still wants the interpreter when the queue is
given up, and whoever gives it up holds that: the process hangs now and then (openvino 2026.4; the tests play it).
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from queue import SimpleQueue
from typing import Any

from targets.runtimes.runtime import Answered, Array, Feeds


class RequestPool:
    """So many requests, and the queries that are under way."""

    def __init__(self, compiled: Any, requests: int, answer: Callable[[Any, Feeds], dict[str, Array]]) -> None:
        """answer: what one request says to a query, in arrays of its own."""
        self._one = answer
        self._free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(requests):
            self._free.put(compiled.create_infer_request())
        self._threads = ThreadPoolExecutor(requests, thread_name_prefix="openvino-request")
        self._under_way: deque[Future[None]] = deque()

    def submit(self, feeds: Feeds, answered: Answered) -> None:
        """Start a query, waiting for a free request where all are busy."""
        request = self._free.get()
        self._under_way.append(self._threads.submit(self._answer, request, feeds, answered))
        while self._under_way and self._under_way[0].done() and self._under_way[0].exception() is None:
            self._under_way.popleft()

    def wait(self) -> None:
        """Wait until all queries are answered; raises what one of them raised, once."""
        under_way, self._under_way = self._under_way, deque()
        wait_for(under_way)
        for one in under_way:
            one.result()

    def close(self) -> None:
        """Wait, and give threads and requests back."""
        self._threads.shutdown(wait=True)

    def _answer(self, request: Any, feeds: Feeds, answered: Answered) -> None:
        try:
            try:
                answers = self._one(request, feeds)
            except BaseException:
                answered(None)  # who waits for a free request must not wait for this one
                raise
            answered(answers)
        finally:
            self._free.put(request)
