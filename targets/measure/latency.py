"""Compare the latency of engines: a process per engine, one at work, their blocks of queries interleaved.

All others are stopped meanwhile: idle threads of ONNX Runtime spin for some 20 ms after a query, which made OpenVINO's
first queries after it half as slow again. The first queries of a block find cold caches and are not counted.

On a machine whose speed drifts by a factor of three only this tells which engine is faster: in every moment that was
slow, it was slow for all. Closed loop: the next query starts when the last one is answered.
"""

import math
import random
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from targets.measure.conditions import read_conditions, was_throttled
from targets.measure.measurement import Comparison, Level, Measurement, Run
from targets.preprocess import Preprocess
from targets.worker import Loaded, WarmUp, Worker

Array = NDArray[Any]
Tell = Callable[[str, float | None], None]
METHOD = "latency/2"
LEAD_IN = 2
"""queries at the start of each block that are not counted"""


@dataclass(frozen=True, kw_only=True)
class EngineUnderTest:
    """One engine of a comparison."""

    folder: Path
    batch: int
    threads: int | None = None
    """None: all cores that this process may use"""
    inputs: Array | None = None
    """its own images, float32 [N, 3, H, W], where its input has another size than the others'; None: those of all"""


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """How much is measured, of each engine in each process."""

    processes: int
    queries: int
    seconds: float
    blocks: int
    warmup_queries: int
    warmup_seconds: float
    warmup_limit_seconds: float


LEVELS: Mapping[Level, Procedure] = {
    "quick": Procedure(
        processes=2,
        queries=64,
        seconds=0,
        blocks=16,
        warmup_queries=15,
        warmup_seconds=0.5,
        warmup_limit_seconds=5,
    ),
    "full": Procedure(
        processes=5,
        queries=662,  # p99 with 99 % confidence
        seconds=10,
        blocks=50,
        warmup_queries=50,
        warmup_seconds=2,
        warmup_limit_seconds=30,
    ),
}


@dataclass
class _Contender:
    """One engine in one process, and what was measured of it there."""

    worker: Worker
    loaded: Loaded
    warm: WarmUp
    block: int
    """queries per block"""
    samples: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Run one block; before and behind it the process is paused."""
        self.worker.resume()
        self.worker.measure(LEAD_IN)
        self.samples += [nanoseconds / 1e6 for nanoseconds in self.worker.measure(self.block)]
        self.worker.pause()

    def run(self, blocks: int) -> Run:
        """What was measured; lets the process go on."""
        self.worker.resume()
        return Run(
            samples=tuple(self.samples),
            blocks=(self.block,) * blocks,
            load_seconds=self.loaded.seconds,
            first_ms=self.warm.first_ms,
            warmup_queries=self.warm.queries,
            warmup_seconds=self.warm.seconds,
            stable=self.warm.stable,
            peak_memory_bytes=self.worker.peak_memory_bytes(),
        )


def compare(
    engines: Mapping[str, EngineUnderTest],
    inputs: Array,
    *,
    level: Level,
    tell: Tell = lambda message, share: None,
    preprocess: Preprocess | None = None,
    start: Callable[[int | None], Worker] = Worker,
    procedure: Procedure | None = None,
) -> Comparison:
    """Measure engines against each other; milliseconds per query, from numpy in to numpy out.

    engines: by role. inputs: real images, float32 [N, 3, H, W], or uint8 [N, H, W, 3] with a preprocess; 16 or more
    make the queries differ. start: makes a worker with this number of threads. procedure: instead of the level's own.
    """
    plan = procedure or LEVELS[level]
    began, conditions_before = time.perf_counter(), read_conditions()
    started_at = datetime.now(UTC)
    runs: dict[str, list[Run]] = {role: [] for role in engines}
    digests: dict[str, str] = {}
    for index in range(plan.processes):
        with ExitStack() as alive:
            contenders: dict[str, _Contender] = {}
            for role, engine in engines.items():
                tell(f"process {index + 1} of {plan.processes}: warming up {role}", index / plan.processes)
                contenders[role] = _enter(alive.enter_context(start(engine.threads)), engine, inputs, preprocess, plan)
                digests[role] = contenders[role].loaded.engine_sha256
            for block in range(plan.blocks):
                done = (index + (block + 1) / (plan.blocks + 1)) / plan.processes
                tell(f"process {index + 1} of {plan.processes}: block {block + 1} of {plan.blocks}", done)
                for role in _order(list(engines), index * plan.blocks + block):
                    contenders[role].measure()
            for role, one in contenders.items():
                runs[role].append(one.run(plan.blocks))
    conditions_after = read_conditions()
    throttled = was_throttled(conditions_before, conditions_after)
    return Comparison(
        measurements={
            role: Measurement(
                method=METHOD,
                level=level,
                engine_sha256=digests[role],
                batch=engine.batch,
                runs=tuple(runs[role]),
                flags=_flags(runs[role], throttled=throttled),
            )
            for role, engine in engines.items()
        },
        conditions_before=conditions_before,
        conditions_after=conditions_after,
        started_at=started_at,
        seconds=time.perf_counter() - began,
    )


def _enter(
    worker: Worker, engine: EngineUnderTest, inputs: Array, preprocess: Preprocess | None, plan: Procedure
) -> _Contender:
    """Load an engine, warm it up, and plan its blocks by how fast it turned out to be."""
    loaded = worker.load(engine.folder, threads=engine.threads)
    if engine.inputs is not None:
        inputs, preprocess = engine.inputs, None
    worker.rotate(inputs, batch=engine.batch, preprocess=preprocess)
    warm = worker.warm_up(
        seconds=plan.warmup_seconds, queries=plan.warmup_queries, limit_seconds=plan.warmup_limit_seconds
    )
    worker.pause()
    queries = max(plan.queries, math.ceil(plan.seconds * 1000 / warm.query_ms))
    return _Contender(worker=worker, loaded=loaded, warm=warm, block=math.ceil(queries / plan.blocks))


def _order(roles: list[str], block: int) -> list[str]:
    """Another order in every block, the same in every comparison."""
    return random.Random(block).sample(roles, len(roles))


def _flags(runs: list[Run], *, throttled: bool) -> tuple[str, ...]:
    unstable = not all(run.stable for run in runs)
    return (*(["unstable_warmup"] if unstable else []), *(["throttled"] if throttled else []))
