"""What the samples of a measurement tell: conditions in figures, and whether the machine really throttled.

Plain JSON and the standard library only, in Python 3.10: a board has no pydantic. `measurement.Watched` is the record.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from targets.measure.sampler import Sample
from targets.measure.sources.nvml import REAL

FIGURES = (
    "cpu_mhz",
    "temperature_c",
    "gpu_mhz",
    "gpu_memory_mhz",
    "gpu_power_w",
    "gpu_temperature_c",
    "gpu_utilisation",
    "board_power_w",
)
COUNTERS = {"cpu_throttle_count": "processor throttled", "overcurrent_count": "over-current"}
"""counters that rise when a machine slows itself down, and what that is called"""


def real_throttling(samples: Sequence[Sample]) -> tuple[str, ...]:
    """Why the machine was slower than it wanted to be, in words; empty where it was not, or does not tell.

    Rest, settings of clocks and the display do not count (`sources.nvml.REAL`).
    """
    found = {word for sample in samples for word in sample.get("gpu_reasons", ()) if word in REAL}
    for name, word in COUNTERS.items():
        counts = [sample[name] for sample in samples if name in sample]
        if counts and counts[-1] > counts[0]:
            found.add(word)
    return tuple(sorted(found))


def summarise(samples: Sequence[Sample], told: Mapping[str, Any], *, void: Sequence[str]) -> dict[str, Any]:
    """Figures of all samples, as `measurement.Watched` says.

    told: what `Watcher.watch` gave. void: of each process run that was thrown away, why.
    """
    return {
        "sources": {name: obstacle or "" for name, obstacle in told["sources"].items()},
        "facts": dict(told["facts"]),
        "samples": len(samples),
        "figures": {name: _spread([sample[name] for sample in samples if name in sample]) for name in FIGURES},
        "reasons": dict(Counter(word for sample in samples for word in sample.get("gpu_reasons", ()))),
        "void_runs": list(void),
    }


def peak_gpu_memory_bytes(samples: Sequence[Sample], pid: int) -> int | None:
    """Most memory that a process held on the GPU in any sample; None where NVML does not tell of it."""
    return max(
        (held for sample in samples if (held := sample.get("gpu_process_bytes", {}).get(str(pid))) is not None),
        default=None,
    )


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}
