"""A baseline that is not what is known of the model: told, unless the images are too few to say so."""

import pytest

from pipeline.plausible import implausible
from pipeline.report.record import Accuracy


def seen(baseline: float, images: int) -> Accuracy:
    return Accuracy(
        metric="top1", baseline=baseline, engine=baseline, drop_points=0, drop_ci95=(0, 0), agreement=1, images=images
    )


@pytest.mark.parametrize(
    ("baseline", "images", "known", "told"),
    [
        (0.79, 1100, 0.755, False),
        (0.79, 1100, 0.85, False),  # within five points of the interval
        (0.683, 914, 0.839, True),
        (0.111, 914, 0.839, True),
        (0.95, 914, 0.839, True),  # labels that leak are no better news
        (0.6, 10, 0.839, False),  # ten images say next to nothing
        (0.683, 0, 0.839, True),  # a user's own metric, which has no images
    ],
)
def test_a_source_far_from_what_is_known_of_it_is_told(baseline: float, images: int, known: float, told: bool) -> None:
    said = implausible(seen(baseline, images), known)

    assert bool(said) is told
    if told:
        assert f"{100 * baseline:.1f} % here, and {100 * known:.1f} % is known of it" in said
        assert "mean, std, crop, scale" in said


def test_where_nothing_is_known_nothing_is_said() -> None:
    assert implausible(seen(0.1, 1000), None) == ""
    assert implausible(None, 0.8) == ""
