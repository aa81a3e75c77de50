"""Contender: one engine in one process, at work in blocks and paused between them."""

import math
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from targets.measure.energy import Window
from targets.measure.procedure import EngineUnderTest, Procedure
from targets.measure.sampler import Sample
from targets.measure.watching import peak_gpu_memory_bytes
from targets.worker import Loaded, Normalisation, WarmUp, Worker

LEAD_IN = 2
"""queries at the start of each block that are not counted"""


@dataclass
class Contender:
    """One engine in one process, and what was measured of it there."""

    worker: Worker
    loaded: Loaded
    warm: WarmUp
    batch: int
    block: int
    """queries per block"""
    samples: list[float] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    """answered in each window"""

    def measure(self) -> None:
        """Run one block; before and behind it the process is paused."""
        self.samples += [nanoseconds / 1e6 for nanoseconds in self._work(self.block)]

    def use_energy(self, seconds: float) -> None:
        """Work for some seconds, of which only begin, end and number of images count."""
        self._work(math.ceil(seconds * 1000 / self.warm.query_ms))

    def _work(self, queries: int) -> list[int]:
        self.worker.resume()
        self.worker.measure(LEAD_IN)
        found = self.worker.measure(queries)
        self.windows.append(self.worker.window())
        self.images.append(queries * self.batch)
        self.worker.pause()
        return found

    def run(self, blocks: int, watched: list[Sample], throttled: tuple[str, ...]) -> dict[str, Any]:
        """What was measured, plain JSON as `measurement.Run` says; lets the process go on."""
        self.worker.resume()
        return {
            "samples": self.samples,
            "blocks": [self.block] * blocks,
            "load_seconds": self.loaded.seconds,
            "first_ms": self.warm.first_ms,
            "warmup_queries": self.warm.queries,
            "warmup_seconds": self.warm.seconds,
            "stable": self.warm.stable,
            "peak_memory_bytes": self.worker.peak_memory_bytes(),
            "peak_gpu_memory_bytes": peak_gpu_memory_bytes(watched, self.worker.own_pid),
            "throttled": list(throttled),
        }


def enter(
    worker: Worker, engine: EngineUnderTest, inputs: NDArray[Any], preprocess: Normalisation | None, plan: Procedure
) -> Contender:
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
    return Contender(
        worker=worker, loaded=loaded, warm=warm, batch=engine.batch, block=math.ceil(queries / plan.blocks)
    )
