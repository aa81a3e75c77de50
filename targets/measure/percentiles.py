"""Figures from samples: medians over processes, tails that enough queries back, paired ratios, intervals.

Samples of one process resemble each other more than those of two, so a process run is the unit: medians are medians of
run medians, and intervals resample runs first, then the blocks within each.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from targets.measure.measurement import Measurement, Run
from targets.measure.sampling import median_of_runs

CONFIDENCE = 0.99
RESAMPLES = 2000
RESAMPLES_OF_RUN = 400
SEED = 20261120  # the same samples always give the same interval

Interval = tuple[float, float]


def p50_of(measurement: Measurement) -> float:
    """Median of the medians of the runs, in the measurement's unit."""
    return median_of_runs([run.samples for run in measurement.runs])


def p50_ci95(measurement: Measurement) -> Interval:
    """95 % interval of `p50_of`: percentile bootstrap over runs and, within each, over blocks.

    One run alone says nothing of how processes differ, the two of `quick` little; `full` has five.
    """
    random = np.random.default_rng(SEED)
    medians = np.array([_resampled_medians(run, random) for run in measurement.runs])  # [R runs, S resamples]
    runs = random.integers(len(medians), size=(len(medians), RESAMPLES))
    found = medians[runs, random.integers(medians.shape[1], size=runs.shape)]
    return _interval(np.median(found, axis=0), around=p50_of(measurement), runs=len(medians))


def paired_ratio(numerator: Measurement, denominator: Measurement) -> tuple[float, Interval]:
    """How many times as long the one takes as the other, with its 95 % interval.

    The blocks were interleaved, so each pair of blocks ran in the same moment: the median of the ratios of their
    medians does not feel the drift of the machine. Raises ValueError for measurements that were not interleaved.
    """
    ratios = np.array(
        [
            [np.median(one) / np.median(other) for one, other in zip(_blocks(a), _blocks(b), strict=True)]
            for a, b in zip(numerator.runs, denominator.runs, strict=True)
        ]
    )  # [R runs, B blocks]
    random = np.random.default_rng(SEED)
    runs = random.integers(ratios.shape[0], size=(RESAMPLES, ratios.shape[0], 1))
    blocks = random.integers(ratios.shape[1], size=(RESAMPLES, *ratios.shape))
    ratio = float(np.median(ratios))
    return ratio, _interval(np.median(ratios[runs, blocks], axis=(1, 2)), around=ratio, runs=len(ratios))


def throughput_ips(measurement: Measurement) -> float:
    """Images per second in the closed loop: images over the time of all queries, median over the runs."""
    per_run = [len(run.samples) * measurement.batch * 1000 / sum(run.samples) for run in measurement.runs]
    return float(np.median(per_run))


def tail_percentile(samples: Sequence[float], share: float) -> float | None:
    """Upper percentile that holds with 99 % confidence; None where too few samples back it (p99: fewer than 662).

    An order statistic, as in MLPerf LoadGen's early stopping: with t slow queries, the largest number that a system
    just missing the bound would still show with a probability of 1 % at most, the t-th slowest is the answer.
    """
    slow = _allowed_slow(len(samples), share)
    return float(sorted(samples)[-slow]) if slow else None


def queries_needed(share: float) -> int:
    """Fewest queries that back a percentile: 64 for p90, 130 for p95, 662 for p99."""
    count = 1
    while not _allowed_slow(count, share):
        count += 1
    return count


def _allowed_slow(count: int, share: float) -> int:
    """Largest t with P(at most t of count queries are slow) <= 1 %, where each is slow with probability 1 - share."""
    from scipy.stats import binom

    return max(0, int(binom.ppf(1 - CONFIDENCE, count, 1 - share)) - 1)


def _blocks(run: Run) -> list[NDArray[np.float64]]:
    samples = np.array(run.samples)
    return np.split(samples, np.cumsum(run.blocks)[:-1]) if run.blocks else [samples]


def _resampled_medians(run: Run, random: np.random.Generator) -> list[float]:
    """Medians of a run whose blocks are drawn with replacement."""
    blocks = _blocks(run)
    draws = random.integers(len(blocks), size=(RESAMPLES_OF_RUN, len(blocks)))
    return [float(np.median(np.concatenate([blocks[index] for index in draw]))) for draw in draws]


def _interval(found: NDArray[np.float64], *, around: float, runs: int) -> Interval:
    """Percentile interval, widened by sqrt(R / (R - 1)): a resample of R runs varies by that much too little."""
    widening = (runs / (runs - 1)) ** 0.5 if runs > 1 else 1.0
    low, high = np.percentile(found, [2.5, 97.5])
    return float(around - widening * (around - low)), float(around + widening * (high - around))
