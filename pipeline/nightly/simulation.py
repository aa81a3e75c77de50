"""Nights that were never measured: what a policy says of histories whose truth is known.

A value is the median of some runs; all runs of a night share what the night did to the board (heat, a neighbour), and
some nights are outliers. A re-run puts two engines side by side, so the night cancels out of its ratio.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.nightly.accuracy import Answers, adjusted, compare_answers, judge_answers, reference_of
from pipeline.nightly.judge import judge
from pipeline.nightly.record import Night, Rerun, Series, Verdict
from pipeline.nightly.rules import Policy

FIRST = datetime(2026, 1, 1, 2, tzinfo=UTC)
SERIES = Series(
    recipe="simulated",
    target="simulated",
    device="simulated",
    runtime="onnxruntime",
    precision="int8",
    batch=1,
    metric="latency_p50_ms",
    harness="1",
)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What really happens to a series."""

    nights: int = 40
    noise: float = 0.01
    """relative standard deviation from night to night"""
    outliers: float = 0.05
    """share of nights on which the board takes 5 to 20 % longer"""
    step: float = 0.0
    """relative change of the engine, from night `at` on"""
    creep: float = 0.0
    """relative change of the engine each night, from night `at` on"""
    board_step: float = 0.0
    """relative change of the board, from night `at` on"""
    swapped: bool = False
    """whether the environment tells of that change"""
    same_engine: bool = False
    """whether every night has the engine of the first"""
    at: int = 20
    runs: int = 5
    run_noise: float = 0.003
    throttled: float = 0.0
    """share of nights on which the board throttles and says so"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was said of it."""

    verdicts: tuple[Verdict, ...]
    truth: Truth
    reruns: int

    def openings(self) -> list[int]:
        """Nights on which an alarm began: a regression or a quarantine."""
        kinds = [one.kind for one in self.verdicts]
        bad = ("regression", "quarantine")
        return [at for at, kind in enumerate(kinds) if kind in bad and (at == 0 or kinds[at - 1] != kind)]

    def false_alarms(self) -> int:
        """Alarms that began before anything had happened, or at all where nothing ever does."""
        happens = any((self.truth.step > 0, self.truth.creep > 0, self.truth.board_step > 0 and not self.truth.swapped))
        return sum(not happens or at < self.truth.at for at in self.openings())

    def delay(self, kind: str = "regression") -> int | None:
        """Nights until it was found: 1 is the same night. None: never."""
        found = [at for at, one in enumerate(self.verdicts) if one.kind == kind and at >= self.truth.at]
        return found[0] - self.truth.at + 1 if found else None


def simulate(truth: Truth, *, seed: int, policy: Policy | None = None, reruns: bool = True) -> Seen:
    """Play one history night by night. reruns: whether the last good engine is there to be measured again."""
    draw = np.random.default_rng(seed)
    history: list[tuple[Night, Verdict]] = []
    effects: dict[str, float] = {}
    asked = 0
    release: Night | None = None
    for index in range(truth.nights):
        night = _night(truth, index, draw, effects)
        verdict = judge(history, night, policy=policy, release=release, can_rerun=reruns)
        if verdict.rerun_wanted and verdict.culprit is not None:
            asked += 1
            good = verdict.culprit.last_good
            rerun = _rerun(truth, effects[night.artifact] / effects[good.artifact], good.artifact, draw)
            verdict = judge(history, night, policy=policy, release=release, rerun=rerun)
        history.append((night, verdict))
        if index == truth.at - 1:
            release = night.replace(values=tuple(np.median([one.value for one, _ in history if one.valid])[None]))
    return Seen(verdicts=tuple(verdict for _, verdict in history), truth=truth, reruns=asked)


def _night(truth: Truth, index: int, draw: np.random.Generator, effects: dict[str, float]) -> Night:
    since = max(index - truth.at + 1, 0)
    engine = (1 + truth.step if since else 1.0) * (1 + truth.creep) ** since
    board = 1 + truth.board_step if since else 1.0
    factor = board * np.exp(draw.normal(0, truth.noise))
    if draw.random() < truth.outliers:
        factor *= 1 + draw.uniform(0.05, 0.20)
    throttled = draw.random() < truth.throttled
    values = 10 * engine * factor * np.exp(draw.normal(0, truth.run_noise, truth.runs)) * (1.3 if throttled else 1.0)
    artifact = "engine 0" if truth.same_engine else f"engine {index}"
    effects[artifact] = float(engine)
    return Night(
        series=SERIES,
        at=FIRST + timedelta(days=index),
        values=tuple(map(float, values)),
        artifact=artifact,
        environment={"board": "second" if truth.swapped and since else "first"},
        commit=f"commit {index}",
        flags=("throttled",) if throttled else (),
    )


def _rerun(truth: Truth, effect: float, good: str, draw: np.random.Generator) -> Rerun:
    """Twice the runs of each, interleaved: only the noise between runs is left."""
    deviation = truth.run_noise * (2 / (2 * truth.runs)) ** 0.5 * 1.25
    ratio = effect * float(np.exp(draw.normal(0, deviation)))
    return Rerun(ratio=ratio, ratio_ci95=(ratio * (1 - 2 * deviation), ratio * (1 + 2 * deviation)), good_artifact=good)


# Answers.


@dataclass(frozen=True, kw_only=True)
class AnswersTruth:
    """What really happens to the answers of a series."""

    nights: int = 30
    images: int = 2000
    classes: int = 10
    accuracy: float = 0.8
    noise: float = 0.01
    """share of images that every build answers in its own way: half of them are right"""
    drop: float = 0.0
    """share of images that are lost from night `at` on"""
    lost_class: bool = False
    """whether all that are lost are of one class"""
    at: int = 15


@dataclass(frozen=True, kw_only=True)
class AnswersSeen:
    """What was said of them."""

    verdicts: tuple[Verdict, ...]
    truth: AnswersTruth

    def false_alarms(self) -> int:
        """Alarms before anything had happened, or at all where nothing ever does."""
        return sum(one.alarms and (not self.truth.drop or at < self.truth.at) for at, one in enumerate(self.verdicts))

    def delay(self) -> int | None:
        """Nights until the loss was found: 1 is the same night. None: never."""
        found = [at for at, one in enumerate(self.verdicts) if one.kind == "regression" and at >= self.truth.at]
        return found[0] - self.truth.at + 1 if found else None


def simulate_answers(truth: AnswersTruth, *, seed: int, policy: Policy | None = None) -> AnswersSeen:
    """Play one history night by night: every build answers some images in its own way."""
    policy = policy or Policy()
    draw = np.random.default_rng(seed)
    labels = draw.integers(truth.classes, size=truth.images)
    right = draw.random(truth.images) < truth.accuracy
    wrong = (labels + draw.integers(1, truth.classes, truth.images)) % truth.classes
    order = np.flatnonzero(right & (labels == 0)) if truth.lost_class else draw.permutation(np.flatnonzero(right))
    lost = order[: round(truth.drop * truth.images)]
    history: list[tuple[Night, Verdict]] = []
    answers: dict[str, Answers] = {}
    for index in range(truth.nights):
        own = right.copy()
        if index >= truth.at:
            own[lost] = False
        turned = draw.random(truth.images) < truth.noise
        own[turned] = draw.random(int(turned.sum())) < 0.5
        tonight = night_of_answers(index, value=100 * float(own.mean()))
        answers[tonight.answers] = _answers(np.where(own, labels, wrong), labels, truth.classes)
        reference = reference_of(history, tonight)
        change = None
        if reference is not None:
            change = compare_answers(answers[reference.answers], answers[tonight.answers], policy)
        p_value = adjusted([change.p_value])[0] if change is not None and change.p_value is not None else None
        verdict = judge_answers(history, tonight, reference=reference, change=change, p_value=p_value, policy=policy)
        history.append((tonight, verdict))
    return AnswersSeen(verdicts=tuple(verdict for _, verdict in history), truth=truth)


def night_of_answers(index: int, *, value: float = 80.0, **fields: Any) -> Night:
    """A night of which only the answers count."""
    usual = {
        "values": (value,),
        "artifact": f"engine {index}",
        "answers": f"answers {index}",
        "images": "images",
        "commit": f"commit {index}",
    }
    series = SERIES.replace(metric="top1")
    return Night(series=series, at=FIRST + timedelta(days=index), **{**usual, **fields})


def _answers(predicted: NDArray[Any], labels: NDArray[Any], classes: int) -> Answers:
    return Answers(values=np.eye(classes, dtype=np.float32)[predicted], labels=labels, images="images")
