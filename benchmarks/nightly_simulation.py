"""What the nightly rules are worth: false alarms and detections on simulated histories whose truth is known.

    python benchmarks/nightly_simulation.py [--series 400]

40 nights a series; from night 21 on the engine (or the board) takes longer. On 5 % of the nights the board takes 5 to
20 % longer, as boards do. `re-run`: a suspicion is measured again beside the last good engine, twice the runs,
interleaved; `alone`: that engine is gone and only rows of nights decide. A false alarm is a regression or a quarantine
that begins before anything has happened. Delay 1 is the same night.

Answers: 30 nights; every build answers some images in its own way (`noise`); from night 16 on some are lost.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.conditions import write_result
from pipeline.nightly.rules import Policy
from pipeline.nightly.simulation import AnswersTruth, Truth, simulate, simulate_answers

NOISES = (0.005, 0.01, 0.02)
CASES: dict[str, dict[str, Any]] = {
    "nothing happens": {},
    "+2 %": {"step": 0.02},
    "+3 %": {"step": 0.03},
    "+5 %": {"step": 0.05},
    "+0.3 % every night": {"creep": 0.003},
    "nothing, no outliers": {"outliers": 0.0},
    "nothing, 20 % of the nights throttled": {"throttled": 0.2},
    "board 6 % slower, silently": {"board_step": 0.06},
    "board swapped for one 20 % slower": {"board_step": 0.2, "swapped": True},
}

IMAGES = (1000, 5000, 20_000)
ANSWER_CASES: dict[str, dict[str, Any]] = {
    "nothing happens": {},
    "nothing, builds differ by 3 %": {"noise": 0.03},
    "1.5 points lost": {"drop": 0.015},
    "3 points lost": {"drop": 0.03},
    "3 points lost, all of one class": {"drop": 0.03, "lost_class": True},
}


def answers_row(name: str, images: int, *, series: int) -> dict[str, Any]:
    """Play one case of answers."""
    truth = AnswersTruth(images=images, **ANSWER_CASES[name])
    seen = [simulate_answers(truth, seed=seed) for seed in range(series)]
    calm = (truth.at if truth.drop else truth.nights) * series
    delays = [delay for delay in (one.delay() for one in seen) if delay is not None]
    return {
        "case": name,
        "images": images,
        "noise": truth.noise,
        "false_alarms_per_100_nights": round(100 * sum(one.false_alarms() for one in seen) / calm, 3),
        "found_same_night": round(sum(delay == 1 for delay in delays) / series, 4) if truth.drop else None,
        "found_in_10_nights": round(sum(delay <= 10 for delay in delays) / series, 4) if truth.drop else None,
    }


def row(name: str, noise: float, *, reruns: bool, series: int) -> dict[str, Any]:
    """Play one case."""
    truth = Truth(noise=noise, **CASES[name])
    seen = [simulate(truth, seed=seed, reruns=reruns) for seed in range(series)]
    kind = "quarantine" if truth.board_step and not truth.swapped else "regression"
    happens = bool(truth.step or truth.creep or kind == "quarantine")
    calm = (truth.at if happens else truth.nights) * series
    delays = [delay for delay in (one.delay(kind) for one in seen) if delay is not None]
    return {
        "case": name,
        "noise": noise,
        "decides": "re-run" if reruns else "alone",
        "false_alarms_per_100_nights": round(100 * sum(one.false_alarms() for one in seen) / calm, 3),
        "found_as": kind if happens else None,
        "found_in_2_nights": round(sum(delay <= 2 for delay in delays) / series, 4) if happens else None,
        "found_in_10_nights": round(sum(delay <= 10 for delay in delays) / series, 4) if happens else None,
        "median_delay_nights": median(delays) if happens and delays else None,
        "reruns_per_100_nights": round(100 * sum(one.reruns for one in seen) / (series * truth.nights), 2),
    }


def main() -> None:
    """Play every case and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=400)
    asked = parser.parse_args()
    rows = []
    with ProcessPoolExecutor() as pool:
        waiting = [
            pool.submit(row, name, noise, reruns=reruns, series=asked.series)
            for reruns in (True, False)
            for noise in NOISES
            for name in CASES
        ]
        asked_too = [
            pool.submit(answers_row, name, images, series=max(asked.series // 4, 1))
            for images in IMAGES
            for name in ANSWER_CASES
        ]
        for one in waiting:
            rows.append(one.result())
            print(rows[-1], flush=True)
        answers = []
        for one in asked_too:
            answers.append(one.result())
            print(answers[-1], flush=True)
    policy = Policy().model_dump(mode="json")
    write_result(
        "nightly_simulation", {"series": asked.series, "nights": 40, "policy": policy, "rows": rows, "answers": answers}
    )


if __name__ == "__main__":
    main()
