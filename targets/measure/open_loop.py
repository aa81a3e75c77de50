"""Open loop: does an engine hold a rate? Queries come at fixed or random times, and wait where it is behind.

Latency counts from when a query was due. A fixed rate is a camera, Poisson many independent callers. Never compare
these percentiles with those of `latency`, which has no queue.
"""

import math
import random
import statistics
from bisect import bisect_right
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

from numpy.typing import NDArray
from pydantic import Field

from targets.errors import InputError
from targets.measure.conditions import read_conditions
from targets.measure.contender import enter
from targets.measure.floor import check_floor
from targets.measure.measurement import Arrivals, Level
from targets.measure.percentiles import tail_percentile
from targets.measure.procedure import LEVELS, EngineUnderTest, Procedure
from targets.preprocess import Preprocess
from targets.record import Record
from targets.worker import Served, Worker

METHOD = "open_loop/2"
SEED = 20261126
LATE_NS = 1_000_000
"""a query that starts this long after it was due is late"""
LIMIT = 4
"""an engine that is behind is given up after this many times the planned time"""
QUEUE_POINTS = 10


class OpenRun(Record):
    """What one fresh process served; nanoseconds since the first query was due."""

    due_ns: tuple[int, ...]
    started_ns: tuple[int, ...]
    ended_ns: tuple[int, ...]
    unserved: int = Field(ge=0)
    """queries left when the engine was given up"""
    stable: bool


class OpenLoop(Record):
    """Queries at given times, and what became of them."""

    format: Literal["vitrim.open_loop/1"] = "vitrim.open_loop/1"
    method: str = METHOD
    level: Level
    engine_sha256: str
    batch: int = Field(gt=0)
    requests: int = Field(default=1, gt=0)
    """queries that the engine answers at once"""
    arrivals: Arrivals
    rate_ips: float = Field(gt=0)
    """images per second that were to come"""
    seed: int
    runs: tuple[OpenRun, ...] = Field(min_length=1)
    conditions_before: dict[str, Any]
    conditions_after: dict[str, Any]
    started_at: datetime


def open_loop(
    engine: EngineUnderTest,
    inputs: NDArray[Any],
    *,
    rate_ips: float,
    level: Level,
    arrivals: Arrivals = "poisson",
    seed: int = SEED,
    preprocess: Preprocess | None = None,
    start: Callable[[int | None], Worker] = Worker,
    procedure: Procedure | None = None,
    tell: Callable[[str, float | None], None] = lambda message, share: None,
) -> OpenLoop:
    """Serve images at a rate. A query holds a batch, so queries come at rate / batch.

    inputs: as for `compare`. The number of queries is the level's, or as many as come in its seconds.
    """
    if not (math.isfinite(rate_ips) and rate_ips > 0):
        raise InputError(f"rate must be a number of images per second above 0, got {rate_ips}")
    plan = procedure or LEVELS[level]
    per_second = rate_ips / engine.batch
    queries = max(plan.queries, math.ceil(plan.seconds * per_second))
    before, started_at = read_conditions(), datetime.now(UTC)
    runs, digest, requests = [], "", 1
    for index in range(plan.processes):
        tell(f"process {index + 1} of {plan.processes}: {rate_ips:g} images/s", index / plan.processes)
        due = arrival_times(queries, per_second, arrivals=arrivals, seed=seed + index)
        with start(engine.threads) as worker:
            one = enter(worker, engine, inputs, preprocess, plan)
            check_floor("engine", one.warm.query_ms, engine.floor_ms)
            worker.resume()
            served = worker.serve(due, limit_seconds=LIMIT * due[-1] / 1e9 + 1)
            digest, requests = one.loaded.engine_sha256, one.loaded.requests
        runs.append(_run(served, stable=one.warm.stable))
    return OpenLoop(
        level=level,
        engine_sha256=digest,
        batch=engine.batch,
        requests=requests,
        arrivals=arrivals,
        rate_ips=rate_ips,
        seed=seed,
        runs=tuple(runs),
        conditions_before=before,
        conditions_after=read_conditions(),
        started_at=started_at,
    )


def arrival_times(queries: int, per_second: float, *, arrivals: Arrivals, seed: int) -> list[int]:
    """When each query is due, in nanoseconds since the first; the same for the same seed."""
    if arrivals == "fixed":
        return [int(index / per_second * 1e9) for index in range(queries)]
    chance, moment = random.Random(seed), 0.0
    found = [0]
    while len(found) < queries:
        moment += chance.expovariate(per_second)
        found.append(int(moment * 1e9))
    return found


def latencies_ms(measured: OpenLoop) -> list[float]:
    """Of all queries: end minus when it was due."""
    return [one for run in measured.runs for one in _latencies_ms(run)]


def open_loop_figures(measured: OpenLoop) -> dict[str, Any]:
    """Plain figures by name; rates in images per second.

    p50 is the median of the medians of the runs, p90 and p99 are those of `tail_percentile`. holds_rate: the
    engine is faster than queries come and left none unserved; several requests are taken to be as fast side by side as
    they were in this run. queue: queries that wait, at ten moments from the first
    arrival to the last, most of all runs.
    """
    runs, samples = measured.runs, latencies_ms(measured)
    busy = sum(sum(run.ended_ns) - sum(run.started_ns) for run in runs)
    capacity = measured.requests * len(samples) * measured.batch * 1e9 / busy
    spans = [max(*run.ended_ns, run.due_ns[-1], 1) for run in runs]
    unserved = sum(run.unserved for run in runs)
    return {
        "rate_ips": measured.rate_ips,
        "arrivals": measured.arrivals,
        "requests": measured.requests,
        "achieved_ips": len(samples) * measured.batch * 1e9 / sum(spans),
        "capacity_ips": capacity,
        "holds_rate": capacity > measured.rate_ips and not unserved,
        "latency_p50_ms": statistics.median(statistics.median(_latencies_ms(run)) for run in runs),
        "latency_p90_ms": tail_percentile(samples, 0.9),
        "latency_p99_ms": tail_percentile(samples, 0.99),
        "latency_max_ms": max(samples),
        "queries": len(samples),
        "unserved": unserved,
        "late_starts": sum(
            begin - due > LATE_NS for run in runs for due, begin in zip(run.due_ns, run.started_ns, strict=True)
        ),
        "queue": [max(one) for one in zip(*(queue_lengths(run) for run in runs), strict=True)],
    }


def queue_lengths(run: OpenRun) -> list[int]:
    """How many served queries were due and not yet started, at ten moments up to the last arrival."""
    moments = [run.due_ns[-1] * (point + 1) // QUEUE_POINTS for point in range(QUEUE_POINTS)]
    return [bisect_right(run.due_ns, moment) - bisect_right(run.started_ns, moment) for moment in moments]


def _latencies_ms(run: OpenRun) -> list[float]:
    return [(end - due) / 1e6 for due, end in zip(run.due_ns, run.ended_ns, strict=True)]


def _run(served: Served, *, stable: bool) -> OpenRun:
    return OpenRun(
        due_ns=served.due_ns,
        started_ns=served.started_ns,
        ended_ns=served.ended_ns,
        unserved=served.unserved,
        stable=stable,
    )
