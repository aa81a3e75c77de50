"""Answers of one night against those of a good one, image by image.

N images, C classes. The gate is non-inferiority: the 95 % interval of the drop has to lie below the margin, else a
warning says that these images do not show it, and how many would. An alarm is what is beyond the margin and no chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.nightly.record import Culprit, Kind, Night, Verdict
from pipeline.nightly.rules import Policy
from pipeline.statistics import count_changes, images_to_decide, mcnemar, top_k_right
from targets.record import Record

if TYPE_CHECKING:
    from pipeline.statistics import Booleans, Floats, Integers

RESAMPLES = 10_000
SEED = 20261127  # the same answers always give the same interval
SAME_COSINE = 0.99
"""features of one image that are further apart count as another answer"""
DETERMINISTIC = 1e-4
"""share of images that one engine may answer otherwise than it did before"""
BAD: tuple[Kind, ...] = ("regression", "quarantine", "failed", "missing", "invalid", "suspicious")
"""nights that are no reference"""


@dataclass(frozen=True)
class Answers:
    """What one engine answered."""

    values: "Floats"
    """[N, C] logits or [N, D] features"""
    labels: "Integers | None"
    """[N]; None where the images have none, or the model has no head"""
    images: str
    """fingerprint"""
    kind: Literal["logits", "features"] = "logits"


class ClassDrop(Record):
    """What one class lost."""

    index: int
    images: int
    lost: int
    gained: int
    p_value: float
    """one-sided exact test, adjusted for all classes"""

    @property
    def points(self) -> float:
        """Of its own images."""
        return 100 * (self.lost - self.gained) / self.images


class Change(Record):
    """Tonight's answers against good ones. A drop is positive where tonight is worse."""

    images: int = Field(gt=0)
    flips: int
    """images answered otherwise"""
    lost: int | None = None
    gained: int | None = None
    drop_ci95: tuple[float, float] | None = None
    """points"""
    p_value: float | None = None
    """exact two-sided McNemar"""
    worst: ClassDrop | None = None
    """class with the largest drop among those that lost for sure, else among all"""

    @property
    def drop_points(self) -> float | None:
        """Of top-1."""
        return None if self.lost is None or self.gained is None else 100 * (self.lost - self.gained) / self.images


def compare_answers(good: Answers, tonight: Answers, policy: Policy) -> Change:
    """Compare answers to the same images; ValueError where they are not the same."""
    import numpy as np

    if good.values.shape != tonight.values.shape or good.images != tonight.images:
        raise ValueError("answers to other images, or of another width, cannot be compared")
    images = len(tonight.values)
    flips = int(_differ(good, tonight).sum())
    if tonight.labels is None or tonight.kind == "features":
        return Change(images=images, flips=flips)
    before, after = top_k_right(good.values, tonight.labels), top_k_right(tonight.values, tonight.labels)
    lost, gained, _ = count_changes(before, after)
    low, high = drop_interval(lost, gained, images)
    return Change(
        images=images,
        flips=flips,
        lost=lost,
        gained=gained,
        drop_ci95=(100 * low, 100 * high),
        p_value=mcnemar(lost, gained),
        worst=_worst_class(before, after, np.asarray(tonight.labels), policy),
    )


def top1_percent(answers: Answers) -> float:
    """Share of images that are answered right, or answered at all where nothing says what is right; percent."""
    import numpy as np

    if answers.labels is None or answers.kind == "features":
        return 100 * float(np.isfinite(answers.values).all(axis=1).mean())
    return 100 * float(top_k_right(answers.values, answers.labels).mean())


def drop_interval(lost: int, gained: int, images: int) -> tuple[float, float]:
    """95 % interval of the drop (lost - gained) / images by paired bootstrap, as shares.

    Drawing images anew is drawing how many of them are lost and gained: one multinomial draw a resample. One image of
    each kind is added, without which a sample with no change would claim certainty (see `statistics.mean_interval`).
    """
    import numpy as np

    counts = np.array([lost + 1, gained + 1, images - lost - gained], dtype=float)
    drawn = np.random.default_rng(SEED).multinomial(images + 2, counts / counts.sum(), size=RESAMPLES)
    drops = (drawn[:, 0] - drawn[:, 1]) / (images + 2)
    low, high = np.quantile(drops, (0.025, 0.975))
    drop = (lost - gained) / images
    return min(float(low), drop), max(float(high), drop)


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for there being many (Benjamini and Hochberg 1995): at most q of those below q are false."""
    from scipy.stats import false_discovery_control

    return [float(one) for one in false_discovery_control(p_values)] if len(p_values) else []


def reference_of(history: Sequence[tuple[Night, Verdict]], tonight: Night) -> Night | None:
    """The last good night whose images were tonight's; None where there is none."""
    for night, verdict in reversed(history):
        if night.valid and night.answers and night.images == tonight.images and verdict.kind not in BAD:
            return night
    return None


def judge_answers(
    history: Sequence[tuple[Night, Verdict]],
    tonight: Night,
    *,
    reference: Night | None,
    change: Change | None,
    p_value: float | None,
    released: tuple[Night, Change] | None = None,
    policy: Policy,
) -> Verdict:
    """Say what became of the answers tonight. For nights that gave answers.

    reference, change: the last good night and what differs from it; None on the first. p_value: adjusted for all
    series of the night. released: a pinned night, and what differs from that.
    """
    if reference is None or change is None:
        told = "other images than before" if any(night.valid for night, _ in history) else "the first night"
        kind: Kind = "environment_changed" if told.startswith("other") else "insufficient_data"
        return _told(kind, tonight, None, told, rule="segment")
    opened = _opened(history, reference)
    culprit = Culprit(last_good=reference, first_bad=opened or tonight)
    if tonight.artifact and tonight.artifact == reference.artifact and opened is None:
        if change.flips > DETERMINISTIC * change.images:
            text = f"the same engine answers {change.flips:,} of {change.images:,} images otherwise: the board's doing"
            return _told("quarantine", tonight, change, text, rule="determinism", p_value=p_value)
        return _told("ok", tonight, change, "the same engine, the same answers", p_value=p_value)
    found = _lost(tonight, change, p_value, policy, culprit)
    if found is None and released is not None and released[1].drop_ci95 is not None:
        night, since = released
        if _beyond(since, policy):
            text = f"{_counts(since)} since the release of {night.at.date()}: it crept down"
            crept = Culprit(last_good=night, first_bad=opened or tonight)
            found = _told("regression", tonight, since, text, rule="creep", culprit=crept)
    if found is not None:
        return found
    if change.flips > policy.flips * change.images:
        text = f"{change.flips / change.images:.1%} of the answers are others than those of the last good engine"
        return _told("suspicious", tonight, change, text, rule="flips", culprit=culprit, p_value=p_value)
    return _held(tonight, change, p_value, policy)


def _held(tonight: Night, change: Change, p_value: float | None, policy: Policy) -> Verdict:
    """Not more was lost than may be, for sure or as far as these images tell."""
    if change.drop_ci95 is None:
        return _told("ok", tonight, change, f"{change.flips:,} of {change.images:,} answers are others")
    if change.drop_ci95[1] <= policy.accuracy_points:
        better = change.drop_ci95[1] < 0 and p_value is not None and p_value <= policy.false_discoveries
        text = f"{_counts(change)}, within {policy.accuracy_points:g} points"
        return _told("improvement" if better else "ok", tonight, change, text, rule="accuracy", p_value=p_value)
    needed = images_to_decide(
        policy.accuracy_points, lost=change.lost or 0, gained=change.gained or 0, images=change.images
    )
    more = f"; about {needed:,} images would tell" if needed else ""
    lacking = f"{change.images:,} images do not show that at most {policy.accuracy_points:g} points are lost"
    text = f"{_counts(change)}: {lacking}{more}"
    return _told("ok", tonight, change, text, rule="accuracy", p_value=p_value).replace(warnings=(text,))


def _lost(tonight: Night, change: Change, p_value: float | None, policy: Policy, culprit: Culprit) -> Verdict | None:
    """A loss that is one for sure, of all images or of one class."""
    if change.drop_ci95 is None or p_value is None:
        return None
    if _beyond(change, policy) and p_value <= policy.false_discoveries:
        return _told("regression", tonight, change, _counts(change), rule="accuracy", culprit=culprit, p_value=p_value)
    worst = change.worst
    if worst is not None and worst.p_value <= policy.false_discoveries and worst.points >= policy.class_points:
        text = f"class {worst.index} lost {worst.points:.1f} points of its {worst.images:,} images ({_counts(change)})"
        return _told("regression", tonight, change, text, rule="classes", culprit=culprit, p_value=worst.p_value)
    return None


def _beyond(change: Change, policy: Policy) -> bool:
    """A loss for sure, of more than may be lost. One that is smaller for sure is none of the night's business."""
    drop = change.drop_points
    return (
        drop is not None and change.drop_ci95 is not None and change.drop_ci95[0] > 0 and drop > policy.accuracy_points
    )


def _opened(history: Sequence[tuple[Night, Verdict]], reference: Night) -> Night | None:
    """First night of a regression that is not over: after the reference only bad nights follow."""
    for night, verdict in history:
        if night.at > reference.at and verdict.kind == "regression":
            return night
    return None


def _differ(good: Answers, tonight: Answers) -> "Booleans":
    """Which images are answered otherwise, [N]; what is not finite equals nothing."""
    import numpy as np

    finite: Booleans = np.isfinite(np.concatenate([good.values, tonight.values], axis=1)).all(axis=1)
    if tonight.kind == "logits":
        same = good.values.argmax(axis=1) == tonight.values.argmax(axis=1)
    else:
        from pipeline.features import feature_cosine

        same = np.zeros(len(finite), dtype=bool)
        same[finite] = feature_cosine(good.values[finite], tonight.values[finite]) >= SAME_COSINE
    differ: Booleans = ~(same & finite)
    return differ


def _worst_class(before: "Booleans", after: "Booleans", labels: "Integers", policy: Policy) -> ClassDrop | None:
    """The class that lost most; p-values are adjusted over the classes in which anything changed."""
    import numpy as np
    from scipy.stats import binom

    found = []
    for index in np.unique(labels):
        own = labels == index
        lost, gained, images = count_changes(before[own], after[own])
        if lost + gained:
            # P(at least so many of the changes are losses), if neither engine is better
            found.append((int(index), images, lost, gained, float(binom.sf(lost - 1, lost + gained, 0.5))))
    drops = [
        ClassDrop(index=index, images=images, lost=lost, gained=gained, p_value=p)
        for (index, images, lost, gained, _), p in zip(found, adjusted([one[-1] for one in found]), strict=True)
    ]
    sure = [one for one in drops if one.p_value <= policy.false_discoveries]
    return max(sure or drops, key=lambda one: (one.points, -one.index), default=None)


def _counts(change: Change) -> str:
    """`top-1 lost 1.2 points [0.4, 2.0]: 31 images lost, 12 gained of 1,600`."""
    drop, interval = change.drop_points, change.drop_ci95
    assert drop is not None
    assert interval is not None
    return (
        f"{drop:+.2f} points lost [{interval[0]:+.2f}, {interval[1]:+.2f}], "
        f"{change.lost:,} images lost and {change.gained:,} gained of {change.images:,}"
    )


def _told(
    kind: Kind,
    tonight: Night,
    change: Change | None,
    text: str,
    *,
    rule: str | None = None,
    culprit: Culprit | None = None,
    p_value: float | None = None,
) -> Verdict:
    name = "top-1" if tonight.series.metric == "top1" else "images answered"
    drop = None if change is None or change.drop_points is None else change.drop_points
    interval = None if change is None else change.drop_ci95
    return Verdict.model_validate(
        {
            "kind": kind,
            "rule": rule,
            "sentence": f"{name} {tonight.value:.2f} %: {text}",
            "value": tonight.value,
            "baseline": None if drop is None else tonight.value + drop,
            "change": None if drop is None else -drop / 100,
            "change_ci95": None if interval is None else (-interval[1] / 100, -interval[0] / 100),
            "culprit": culprit,
            "p_value": p_value,
        }
    )
