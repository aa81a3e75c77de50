"""Compare the latency of engines: a process per engine, one at work, their blocks of queries interleaved.

All others are stopped meanwhile: idle threads of ONNX Runtime spin for some 20 ms after a query, which made OpenVINO's
first queries after it half as slow again. The first queries of a block find cold caches and are not counted.

On a machine whose speed drifts by a factor of three only this tells which engine is faster: in every moment that was
slow, it was slow for all. Closed loop: the next query starts when the last one is answered.

Meanwhile clocks, heat and power are sampled. A process run in which the machine slowed itself down is void and
repeated. Where power is measured, each engine also works alone for some seconds: these queries count for energy only.

The result is plain JSON, and the code Python 3.10 without pydantic: the agent on a board runs this procedure, and no
other. `latency` makes records of it.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from numpy.typing import NDArray

from targets.measure.conditions import read_conditions
from targets.measure.contender import Contender, enter
from targets.measure.energy import energy_of, mean_power_w, measures_power
from targets.measure.floor import check_floor
from targets.measure.procedure import LEVELS, EngineUnderTest, Level, Procedure
from targets.measure.sampler import Sample, Sampler, Watcher
from targets.measure.watching import real_throttling, summarise
from targets.worker import Normalisation, Worker

Array = NDArray[Any]
Tell = Callable[[str, float | None], None]
FORMAT = "vitrim.comparison/1"
METHOD = "latency/2"
REPEATS = 2
"""how often a process run that was throttled is repeated"""
NO_POWER = "nothing on this machine tells power"


@dataclass(frozen=True)
class _ProcessRun:
    """All engines in one process each."""

    runs: dict[str, dict[str, Any]]
    contenders: dict[str, Contender]
    watched: list[Sample]
    throttled: tuple[str, ...]


def sample(
    engines: Mapping[str, EngineUnderTest],
    inputs: Array,
    *,
    level: Level,
    tell: Tell = lambda message, share: None,
    preprocess: Normalisation | None = None,
    start: Callable[[int | None], Worker] = Worker,
    procedure: Procedure | None = None,
    watcher: Watcher | None = None,
    rest: Callable[[float], object] = time.sleep,
) -> dict[str, Any]:
    """Measure engines against each other: plain JSON, as `measurement.Comparison` says.

    engines: by role. inputs: real images, float32 [N, 3, H, W], or uint8 [N, H, W, 3] with a preprocess; 16 or more
    make the queries differ. start: makes a worker with this number of threads. procedure: instead of the level's own.
    watcher: who samples the machine that the workers run on; by default a thread of ours, for workers of this machine.
    Raises WorkerError for a latency that the hardware cannot reach.
    """
    if watcher is None:
        with closing(Sampler()) as own:
            return _Comparing(engines, inputs, level, tell, preprocess, start, procedure, own, rest).all()
    return _Comparing(engines, inputs, level, tell, preprocess, start, procedure, watcher, rest).all()


@dataclass(frozen=True)
class _Comparing:
    """One comparison under way."""

    engines: Mapping[str, EngineUnderTest]
    inputs: Array
    level: Level
    tell: Tell
    preprocess: Normalisation | None
    start: Callable[[int | None], Worker]
    procedure: Procedure | None
    watcher: Watcher
    rest: Callable[[float], object]

    @property
    def plan(self) -> Procedure:
        return self.procedure or LEVELS[self.level]

    def all(self) -> dict[str, Any]:
        """Measure it."""
        began, conditions_before = time.perf_counter(), read_conditions()
        started_at = datetime.now(timezone.utc)
        told = self.watcher.watch()
        idle = self._idle()
        kept, void = self._processes(energy=bool(idle))
        watched = [sample for one in kept for sample in one.watched]
        return {
            "format": FORMAT,
            "measurements": {role: self._measurement(role, kept, watched, energy=bool(idle)) for role in self.engines},
            "conditions_before": conditions_before,
            "conditions_after": read_conditions(),
            "started_at": started_at.isoformat(),
            "seconds": time.perf_counter() - began,
            "watched": {**summarise(watched, told, void=void), "idle_power_w": idle},
        }

    def _idle(self) -> dict[str, float]:
        """Power at rest by scope; empty where none is measured or no energy is wanted."""
        if not self.plan.energy_seconds or not self.watcher.watched():
            return {}
        self.rest(0.3)
        if not measures_power(self.watcher.watched()):
            return {}
        self.tell("power at rest", 0.0)
        self.rest(self.plan.idle_seconds)
        return mean_power_w(self.watcher.watched())

    def _processes(self, *, energy: bool) -> tuple[list[_ProcessRun], list[str]]:
        """All process runs, and why each void one was; once one stays throttled, no more is repeated."""
        kept: list[_ProcessRun] = []
        void: list[str] = []
        for index in range(self.plan.processes):
            one = self._process(index, energy=energy)
            for _ in range(0 if any(other.throttled for other in kept) else REPEATS):
                if not one.throttled:
                    break
                void.append(f"process {index + 1}: {', '.join(one.throttled)}")
                self.tell(f"{void[-1]}; cooling down", index / self.plan.processes)
                self.rest(self.plan.throttle_pause_seconds)
                one = self._process(index, energy=energy)
            kept.append(one)
        return kept, void

    def _process(self, index: int, *, energy: bool) -> _ProcessRun:
        """Measure all engines in a fresh process each."""
        plan = self.plan
        of = f"process {index + 1} of {plan.processes}"
        with ExitStack() as alive:
            contenders: dict[str, Contender] = {}
            for role, engine in self.engines.items():
                self.tell(f"{of}: warming up {role}", index / plan.processes)
                worker = alive.enter_context(self.start(engine.threads))
                contenders[role] = one = enter(worker, engine, self.inputs, self.preprocess, plan)
                check_floor(role, one.warm.query_ms, engine.floor_ms)
            self.watcher.watched()  # what was before does not count
            for block in range(plan.blocks):
                done = (index + (block + 1) / (plan.blocks + 1)) / plan.processes
                self.tell(f"{of}: block {block + 1} of {plan.blocks}", done)
                for role in _order(list(self.engines), index * plan.blocks + block):
                    contenders[role].measure()
            for role in _order(list(self.engines), index) if energy else ():
                self.tell(f"{of}: energy of {role}", done)
                contenders[role].use_energy(plan.energy_seconds)
            watched = self.watcher.watched()
            throttled = real_throttling(watched)
            runs = {role: one.run(plan.blocks, watched, throttled) for role, one in contenders.items()}
        return _ProcessRun(runs, contenders, watched, throttled)

    def _measurement(
        self, role: str, kept: list[_ProcessRun], watched: list[Sample], *, energy: bool
    ) -> dict[str, Any]:
        engine = self.engines[role]
        runs = [one.runs[role] for one in kept]
        used: list[dict[str, Any]] = []
        note = NO_POWER
        if not self.plan.energy_seconds:
            note = f"level {self.level} measures no energy"
        elif energy:
            windows = [window for one in kept for window in one.contenders[role].windows]
            images = [count for one in kept for count in one.contenders[role].images]
            used = energy_of(watched, windows, images=images)
            note = "" if used else "too few samples of power while it was at work"
        check_floor(role, median_of_runs([run["samples"] for run in runs]), engine.floor_ms)
        return {
            "method": METHOD,
            "level": self.level,
            "engine_sha256": kept[-1].contenders[role].loaded.engine_sha256,
            "batch": engine.batch,
            "runs": runs,
            "flags": _flags(runs),
            "energy": used,
            "energy_note": note,
            "floor_ms": engine.floor_ms,
        }


def median_of_runs(samples: Sequence[Sequence[float]]) -> float:
    """Median of the medians of process runs, in the samples' unit: the p50 of all figures."""
    return statistics.median(statistics.median(one) for one in samples)


def _order(roles: list[str], block: int) -> list[str]:
    """Another order in every block, the same in every comparison."""
    return random.Random(block).sample(roles, len(roles))


def _flags(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    unstable = not all(run["stable"] for run in runs)
    throttled = any(run["throttled"] for run in runs)
    return [*(["unstable_warmup"] if unstable else []), *(["throttled"] if throttled else [])]
