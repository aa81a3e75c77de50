"""Sampler: clocks, heat, power and throttling, ten times a second in a side thread while something is measured.

Standard library only, in Python 3.10: it runs in our own process, or in an agent on a board. A sample is a dictionary
of what was told at `time_ns` (the machine's monotonic clock); the rest is absent:
cpu_mhz, cpu_throttle_count, temperature_c, gpu_mhz, gpu_memory_mhz, gpu_power_w, gpu_energy_j, gpu_temperature_c,
gpu_utilisation (0..1), gpu_reasons (words), gpu_process_bytes (by process id), board_power_w, board_rails_w,
cpu_energy_j, overcurrent_count. Energies and counts only grow.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from targets.facts import ROOT
from targets.measure.sources.cpu import Cpu
from targets.measure.sources.ina3221 import Ina3221
from targets.measure.sources.jetson import Jetson
from targets.measure.sources.nvml import Nvml
from targets.measure.sources.rapl import Rapl
from targets.measure.sources.source import Source
from targets.measure.sources.thermal import Thermal

HERTZ = 10.0
KEPT = 36_000
"""samples, an hour; older ones are forgotten where nobody asks"""

Sample = dict[str, Any]


class Watcher(Protocol):
    """Who watches a machine: a Sampler for our own, a Worker for that which it runs on."""

    def watch(self) -> dict[str, Any]:
        """Begin: {"sources": {name: why it tells nothing, else None}, "facts": {...}}."""
        ...

    def watched(self) -> list[Sample]:
        """Samples since the last call, the last of which is the first again; one is taken right now."""
        ...


class Sampler:
    """Asks all sources; where none tells anything, no thread runs and there are no samples."""

    def __init__(
        self,
        sources: Sequence[Source] | None = None,
        *,
        hertz: float = HERTZ,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._sources = list(all_sources() if sources is None else sources)
        self._telling = [source for source in self._sources if source.obstacle is None]
        self._period_seconds, self._clock_ns = 1 / hertz, clock_ns
        self._samples: deque[Sample] = deque(maxlen=KEPT)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self) -> dict[str, Any]:
        """Begin to sample."""
        if self._telling and self._thread is None:
            self._thread = threading.Thread(target=self._go_on, name="sampler", daemon=True)
            self._thread.start()
        facts: dict[str, Any] = {}
        for source in self._telling:
            facts |= source.facts
        return {"sources": {source.name: source.obstacle for source in self._sources}, "facts": facts}

    def watched(self) -> list[Sample]:
        """Take a sample now and give all since the last call."""
        if not self._telling:
            return []
        self._take()
        with self._lock:
            found = list(self._samples)
            self._samples.clear()
            self._samples.append(found[-1])
        return found

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _go_on(self) -> None:
        while not self._ended.wait(self._period_seconds):
            self._take()

    def _take(self) -> None:
        with self._lock:  # one at a time: sources keep what they read last
            sample: Sample = {}
            for source in self._telling:
                sample.update(source.read())
            sample["time_ns"] = self._clock_ns()
            self._samples.append(sample)


def all_sources(root: Path = ROOT) -> list[Source]:
    """Every source that there is; each says whether it tells anything here."""
    return [Cpu(root), Thermal(root), Rapl(root), Jetson(root), Ina3221(root), Nvml()]
