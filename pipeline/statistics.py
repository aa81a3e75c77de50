"""How much accuracy an engine lost against its baseline, image by image, and how sure that is.

Arithmetic on numpy arrays: no model, no file. Letters: N images, C classes, D width of a feature.
A drop is baseline minus engine, in percentage points: positive is worse. `lost` counts the images that only the
baseline gets right, `gained` those that only the engine gets right.

Why a score interval and not the bootstrap for right and wrong: resampling cannot draw what was not seen. Of 1,000
images with 0.2 % really lost and 0.1 % really gained, the true drop lies above a percentile bootstrap interval in 13
of 100 cases instead of 2.5, and where no image changed the bootstrap claims certainty. Tango's score interval misses
in 1 of 100 there (tests/pipeline/test_statistics.py).
"""

import math
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.report.record import Accuracy
from targets.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    Floats: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]
    Integers: TypeAlias = np.ndarray[Any, np.dtype[np.integer[Any]]]
    Booleans: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

Z95 = 1.959963984540054
"""97.5 % quantile of the normal distribution"""
RESAMPLES = 10_000
MOST_IMAGES = 10_000_000
"""beyond this, "collect more images" is no advice"""


# Comparisons: what the checks call.


def compare_answers(
    baseline: "Floats",
    engine: "Floats",
    labels: "Integers",
    *,
    metric: str = "top1",
    budget_points: float | None = None,
) -> Accuracy:
    """Compare two classifiers on the same labelled images.

    baseline, engine: logits [N, C], in the same order of images; labels: [N], 0..C-1.
    A row that is not finite counts as wrong and as a different answer. Top-5 is left out for five classes or fewer.
    """
    if not len(baseline):
        raise InputError("accuracy needs at least one image, got none")
    top5 = baseline.shape[1] > 5
    right, engine_right = top_k_right(baseline, labels), top_k_right(engine, labels)
    return _accuracy_of_right(
        metric,
        right,
        engine_right,
        budget_points,
        agreement=agreement(baseline, engine),
        baseline_top5=float(top_k_right(baseline, labels, k=5).mean()) if top5 else None,
        engine_top5=float(top_k_right(engine, labels, k=5).mean()) if top5 else None,
    )


def compare_features(
    baseline: "Floats", engine: "Floats", *, labels: "Integers | None" = None, budget_points: float | None = None
) -> Accuracy:
    """Compare two models without a head by the features they give the same images.

    baseline, engine: [N, D]. With labels [N] the metric is `knn_top1`, each image classified by the others;
    without, it is `knn_agreement`: the share of the ten nearest other images that both models name, 1 for the baseline.
    """
    from pipeline.features import feature_cosine, knn_answers, shared_neighbours

    cosine = float(feature_cosine(baseline, engine).mean())
    if labels is not None:
        answers, engine_answers = knn_answers(baseline, labels), knn_answers(engine, labels)
        same = float((answers == engine_answers).mean())
        return _accuracy_of_right(
            "knn_top1",
            answers == labels,
            engine_answers == labels,
            budget_points,
            agreement=same,
            feature_cosine=cosine,
        )
    shared = shared_neighbours(baseline, engine)
    accuracy = compare_scores("knn_agreement", shared * 0 + 1, shared, budget_points=budget_points)
    return accuracy.replace(agreement=float(shared.mean()), feature_cosine=cosine)


def compare_right(
    metric: str, baseline_right: "Booleans", engine_right: "Booleans", *, budget_points: float | None = None
) -> Accuracy:
    """Compare by which images are answered right, [N] each, in the same order."""
    return _accuracy_of_right(metric, baseline_right, engine_right, budget_points)


def compare_scores(
    metric: str, baseline: "Floats", engine: "Floats", *, budget_points: float | None = None
) -> Accuracy:
    """Compare by any score from 0 to 1 per image, [N]; the metric is its mean."""
    for name, scores in (("baseline", baseline), ("engine", engine)):
        if not ((scores >= 0) & (scores <= 1)).all():
            raise InputError(
                f"metric {metric!r} gave the {name} a score outside 0..1; scale it to a share of the best possible"
            )
    if baseline.shape != engine.shape or not len(baseline):
        raise InputError(
            f"metric {metric!r} scored {len(baseline)} images of the baseline and {len(engine)} of the engine; "
            "it needs the same images, at least one"
        )
    drop = float((baseline - engine).mean()) * 100
    low, high = mean_interval(baseline - engine, bounds=(-1, 1))
    interval = (low * 100, high * 100)
    needed = None
    if budget_points is not None and interval[0] <= budget_points < interval[1]:
        needed = _images_by_width(budget_points, drop, interval, images=len(baseline))
    return Accuracy(
        metric=metric,
        baseline=float(baseline.mean()),
        engine=float(engine.mean()),
        drop_points=drop,
        drop_ci95=interval,
        agreement=None,
        images=len(baseline),
        images_to_decide=needed,
    )


def compare_totals(metric: str, baseline: float, engine: float, *, images: int) -> Accuracy:
    """Compare by one number from 0 to 1 per model; nothing says how sure it is, so there is no interval."""
    for name, value in (("baseline", baseline), ("engine", engine)):
        if not 0 <= value <= 1:
            raise InputError(f"metric {metric!r} gave the {name} {value!r}; give it as a share from 0 to 1")
    return Accuracy(
        metric=metric,
        baseline=baseline,
        engine=engine,
        drop_points=(baseline - engine) * 100,
        drop_ci95=None,
        agreement=None,
        images=images,
    )


def _accuracy_of_right(
    metric: str, baseline_right: "Booleans", engine_right: "Booleans", budget_points: float | None, **more: Any
) -> Accuracy:
    lost, gained, images = count_changes(baseline_right, engine_right)
    needed = None if budget_points is None else images_to_decide(budget_points, lost=lost, gained=gained, images=images)
    low, high = paired_interval(lost, gained, images)
    return Accuracy(
        metric=metric,
        baseline=float(baseline_right.mean()),
        engine=float(engine_right.mean()),
        drop_points=(lost - gained) / images * 100,
        drop_ci95=(low * 100, high * 100),
        images=images,
        lost=lost,
        gained=gained,
        mcnemar_p=mcnemar(lost, gained),
        images_to_decide=needed,
        **{"agreement": None, **more},
    )


# Right and wrong.


def count_changes(baseline_right: "Booleans", engine_right: "Booleans") -> tuple[int, int, int]:
    """Count (lost, gained, images) in two vectors [N] of the same images."""
    if baseline_right.shape != engine_right.shape:
        raise ValueError(f"both must judge the same images, got {len(baseline_right)} and {len(engine_right)}")
    return int((baseline_right & ~engine_right).sum()), int((engine_right & ~baseline_right).sum()), len(baseline_right)


def paired_interval(lost: float, gained: float, images: float) -> tuple[float, float]:
    """95 % score interval of the drop (lost - gained) / images, as shares.

    Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 17 (1998) 891-908. With no change at all it reaches z²/(n+z²) to either side.
    Counts need not be whole, so that the interval of a larger sample with the same rates can be computed.
    """
    from scipy.optimize import brentq

    if not (lost >= 0 and gained >= 0 and images > 0 and lost + gained <= images * (1 + 1e-9)):
        raise ValueError(
            f"lost {lost!r} and gained {gained!r} must be counts of {images!r} images, of which there is at least one"
        )

    def surprise(drop: float) -> tuple[float, float]:
        """How far the counts lie above what `drop` predicts, and the standard error of that under `drop`."""
        # The likeliest share gained under `drop` is the positive root q of 2n q² + slope q - gained·drop·(1 - drop).
        slope = (2 * images - lost + gained) * drop - lost - gained
        root = math.sqrt(max(slope * slope + 8 * images * gained * drop * (1 - drop), 0))
        share_gained = max((root - slope) / (4 * images), 0)
        return lost - gained - images * drop, math.sqrt(max(images * (2 * share_gained + drop * (1 - drop)), 0))

    def over_by(drop: float) -> float:
        above, error = surprise(drop)
        return above - Z95 * error

    def under_by(drop: float) -> float:
        above, error = surprise(drop)
        return above + Z95 * error

    measured = (lost - gained) / images
    aside = 1e-9  # at `measured` itself both terms vanish where nothing or everything changed
    low = -1.0 if measured <= -1 + aside else brentq(over_by, -1, measured - aside, xtol=1e-12)
    high = 1.0 if measured >= 1 - aside else brentq(under_by, measured + aside, 1, xtol=1e-12)
    return float(low), float(high)


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided p-value of the exact McNemar test: how likely so uneven a split is if neither model is better."""
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


def images_to_decide(budget_points: float, *, lost: int, gained: int, images: int) -> int | None:
    """How many images would make the interval exclude the budget, if the rates stay as measured; chance may want more.

    None where it is decided already, and where ten million would not do: the measured drop is all but the budget.
    """
    budget = budget_points / 100

    def undecided(count: int) -> bool:
        low, high = paired_interval(lost / images * count, gained / images * count, count)
        return low <= budget < high

    if not undecided(images):
        return None
    enough = images
    while undecided(enough):
        enough *= 2
        if enough > MOST_IMAGES:
            return None
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (middle, enough) if undecided(middle) else (too_few, middle)
    return enough


def agreement(baseline: "Floats", engine: "Floats") -> float:
    """Share of images with the same answer from both; logits [N, C]. A row that is not finite agrees with nothing."""
    import numpy as np

    finite = np.isfinite(baseline).all(axis=1) & np.isfinite(engine).all(axis=1)  # [N]
    return float(((baseline.argmax(axis=1) == engine.argmax(axis=1)) & finite).mean())


def top_k_right(logits: "Floats", labels: "Integers", *, k: int = 1) -> "Booleans":
    """Whether the label is among the k highest logits. logits [N, C], labels [N]; returns [N].

    Of equal logits the lower class comes first, as in argmax. A row that is not finite is wrong.
    """
    import numpy as np

    classes = logits.shape[1]
    if len(labels) != len(logits):
        raise InputError(f"{len(labels)} labels for {len(logits)} images")
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        raise InputError(f"labels reach from {labels.min()} to {labels.max()}, but the model answers 0..{classes - 1}")
    own = np.take_along_axis(logits, labels[:, None], axis=1)  # [N, 1]
    earlier = np.arange(classes)[None, :] < labels[:, None]  # [N, C]
    ahead = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)  # [N]
    right: Booleans = (ahead < k) & np.isfinite(logits).all(axis=1)
    return right


# Means of any score.


def mean_interval(values: "Floats", *, bounds: tuple[float, float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean by bootstrap; values [N] lie within `bounds`.

    One value at each bound is added to the sample before it is drawn from. Without them a sample of equal values would
    claim certainty; with them its interval is about as wide as a zero count allows (3/N). For large N nothing changes.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    sample = np.concatenate([values.astype(float), bounds])
    draw = max(1, 2_000_000 // len(sample))  # resamples at a time: 16 MB of indices
    means = np.concatenate(
        [
            sample[random.integers(len(sample), size=(min(draw, RESAMPLES - start), len(sample)))].mean(axis=1)
            for start in range(0, RESAMPLES, draw)
        ]
    )
    low, high = np.quantile(means, (0.025, 0.975))
    mean = float(values.mean())
    return min(float(low), mean), max(float(high), mean)


def _images_by_width(budget_points: float, drop: float, interval: tuple[float, float], *, images: int) -> int | None:
    """`images_to_decide` for a mean, whose interval narrows with the square root of the images."""
    side = interval[1] - drop if drop < budget_points else drop - interval[0]
    distance = abs(budget_points - drop)
    needed = images * (side / distance) ** 2 if distance > 0 else math.inf
    return math.ceil(needed) if needed <= MOST_IMAGES else None
