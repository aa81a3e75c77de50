"""Compare the latency of engines, as a record: `sampling` says how it is measured, here and on a board."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from targets.measure.measurement import Comparison
from targets.measure.procedure import LEVELS, EngineUnderTest, Level, Procedure
from targets.measure.sampler import Watcher
from targets.measure.sampling import sample
from targets.worker import Normalisation, Worker

__all__ = ["LEVELS", "EngineUnderTest", "Procedure", "compare"]


def compare(
    engines: Mapping[str, EngineUnderTest],
    inputs: NDArray[Any],
    *,
    level: Level,
    tell: Callable[[str, float | None], None] = lambda message, share: None,
    preprocess: Normalisation | None = None,
    start: Callable[[int | None], Worker] = Worker,
    procedure: Procedure | None = None,
    watcher: Watcher | None = None,
    rest: Callable[[float], object] = time.sleep,
) -> Comparison:
    """Measure engines against each other; milliseconds per query, from numpy in to numpy out. See `sampling.sample`."""
    return Comparison.model_validate(
        sample(
            engines,
            inputs,
            level=level,
            tell=tell,
            preprocess=preprocess,
            start=start,
            procedure=procedure,
            watcher=watcher,
            rest=rest,
        )
    )
