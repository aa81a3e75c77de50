"""A bundle that was measured again, held against its build: the paired drop of accuracy, and its limits."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.told import NO_CLASS
from targets.bundle.expected import Expected

if TYPE_CHECKING:
    from pipeline.report.record import Accuracy
    from stages.data.images import ImageSet
    from targets.measure.measurement import Measurement
    from targets.profile import Budget

BY_CLASS = ("top1", "agreement")
"""metrics that a class for each image decides, with no more than labels"""


def expected_of(budget: "Budget", accuracy: "Accuracy | None", per_image: Mapping[str, Sequence[int]]) -> Expected:
    """What a bundle keeps of its build. per_image: answers of `baseline` and `engine`, and `label` if any."""
    if accuracy is None or accuracy.metric not in BY_CLASS or not per_image:
        return Expected(budget=budget)
    return Expected(
        budget=budget,
        metric=accuracy.metric,
        images_digest=accuracy.images_digest,
        baseline=tuple(per_image["baseline"]),
        engine=tuple(per_image["engine"]),
        label=tuple(per_image.get("label", ())),
    )


def against_build(
    expected: Expected | None,
    *,
    measurement: "Measurement",
    images: "ImageSet | None" = None,
    answers: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Plain figures by name, and `verdict` where the build had a budget that can be judged of an engine alone.

    expected: of the bundle. measurement: of its engine. answers: the class that was answered for each of `images`. The
    drop is told where these are the images of the build: the bundle holds the source's answers to them. Limits on
    ratios, size and shapes are the report's.
    """
    from pipeline.report.compose import figures
    from pipeline.verdict import NO_IMAGES, judge_engine

    if expected is None:
        return {}
    told: dict[str, Any] = {}
    accuracy: Accuracy | None = None
    missing = NO_IMAGES
    if not expected.metric:
        missing = "the build's metric needs more than this bundle"
    elif images is not None and answers is not None:
        if expected.images_digest == images.fingerprint:
            accuracy = compare_with_source(expected, answers)
            told |= _drop(expected, accuracy, answers)
        else:
            missing = "these are not the images of the build, with their labels"
            told["drop"] = f"not told: {missing}"
    verdict = judge_engine(
        expected.budget,
        accuracy=accuracy,
        without=missing,
        engine=figures(measurement),
        level=measurement.level,
        memory_bytes=max((run.peak_memory_bytes or 0 for run in measurement.runs), default=0) or None,
    )
    if verdict is not None:
        told["verdict"] = {"status": verdict.status, "sentence": verdict.sentence}
    return told


def compare_with_source(expected: Expected, answers: Sequence[int]) -> "Accuracy":
    """Answers against the source's, image by image: by the labels, or where there are none by the source itself."""
    import numpy as np

    from pipeline.statistics import compare_right, compare_scores

    source, own, limit = np.array(expected.baseline), np.array(answers), expected.budget.accuracy_drop_points
    if expected.label:
        label = np.array(expected.label)
        return compare_right(expected.metric, source == label, own == label, budget_points=limit)
    same = ((own == source) & (own != NO_CLASS)).astype(float)
    return compare_scores(expected.metric, np.ones_like(same), same, budget_points=limit)


def _drop(expected: Expected, accuracy: "Accuracy", answers: Sequence[int]) -> dict[str, Any]:
    assert accuracy.drop_ci95 is not None
    changed = sum(one != other for one, other in zip(expected.engine, answers, strict=True))
    return {
        **(
            {"source_top1": round(accuracy.baseline, 4)}
            if expected.label
            else {"agreement_with_source": round(accuracy.engine, 4)}
        ),
        "drop_points": round(accuracy.drop_points, 2),
        "drop_points_ci95": [round(edge, 2) for edge in accuracy.drop_ci95],
        "answered_otherwise": changed,  # than by the engine of the build, or its graph
    }
