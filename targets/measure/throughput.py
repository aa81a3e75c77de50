"""Throughput of an engine that answers several queries at once: closed loop, always all of its requests at work.

A new query starts when one is answered, whichever. The latency of a query is then longer than alone, and is not told.
Never compare it with `throughput_ips` of one query after the other of another engine: measure both here.
"""

import math
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

from numpy.typing import NDArray
from pydantic import Field

from targets.measure.conditions import read_conditions
from targets.measure.contender import enter
from targets.measure.floor import check_floor
from targets.measure.measurement import Level
from targets.measure.procedure import LEVELS, EngineUnderTest, Procedure
from targets.preprocess import Preprocess
from targets.record import Record
from targets.worker import Worker

METHOD = "throughput/1"
BLOCKS = 8
"""in each process; fewer and longer than those of latency, because requests run dry at the end of each"""
LEAST_ROUNDS = 16
"""queries of each request in a block"""


class ThroughputRun(Record):
    """What one fresh process answered."""

    block: int = Field(gt=0)
    """queries in each block"""
    seconds: tuple[float, ...] = Field(min_length=1)
    """of each block, from the first start to the last answer"""
    stable: bool


class Throughput(Record):
    """Blocks of queries, as many at once as the engine answers at once."""

    format: Literal["vitrim.throughput/1"] = "vitrim.throughput/1"
    method: str = METHOD
    level: Level
    engine_sha256: str
    batch: int = Field(gt=0)
    requests: int = Field(gt=0)
    """queries at once"""
    runs: tuple[ThroughputRun, ...] = Field(min_length=1)
    conditions_before: dict[str, Any]
    conditions_after: dict[str, Any]
    started_at: datetime


def throughput(
    engine: EngineUnderTest,
    inputs: NDArray[Any],
    *,
    level: Level,
    preprocess: Preprocess | None = None,
    start: Callable[[int | None], Worker] = Worker,
    procedure: Procedure | None = None,
    tell: Callable[[str, float | None], None] = lambda message, share: None,
) -> Throughput:
    """Measure it in fresh processes. inputs: as for `compare`. Queries, seconds and processes are the level's."""
    plan = procedure or LEVELS[level]
    before, started_at = read_conditions(), datetime.now(UTC)
    runs, digest, requests = [], "", 1
    for index in range(plan.processes):
        tell(f"process {index + 1} of {plan.processes}: all requests at work", index / plan.processes)
        with start(engine.threads) as worker:
            one = enter(worker, engine, inputs, preprocess, plan)
            check_floor("engine", one.warm.query_ms, engine.floor_ms)
            digest, requests = one.loaded.engine_sha256, one.loaded.requests
            queries = max(plan.queries, math.ceil(plan.seconds * 1000 / one.warm.query_ms))
            block = max(LEAST_ROUNDS * requests, math.ceil(queries / BLOCKS))
            worker.resume()
            seconds = tuple(worker.saturate(block) / 1e9 for _ in range(BLOCKS))
        runs.append(ThroughputRun(block=block, seconds=seconds, stable=one.warm.stable))
    return Throughput(
        level=level,
        engine_sha256=digest,
        batch=engine.batch,
        requests=requests,
        runs=tuple(runs),
        conditions_before=before,
        conditions_after=read_conditions(),
        started_at=started_at,
    )


def images_per_second(measured: Throughput) -> float:
    """Images over the time of all blocks, median over the runs."""
    return statistics.median(len(run.seconds) * run.block * measured.batch / sum(run.seconds) for run in measured.runs)
