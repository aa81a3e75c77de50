"""Whether the source answers here as it is known to: a mistake that baseline and engine share moves no comparison.

Images normalised or cropped in another way than in the training, or labels in another order, spoil both sides alike.
"""

from pipeline.report import figures
from pipeline.report.record import Accuracy

TOLERANCE = 0.05
"""share by which a set of images may be harder or easier than the one that a figure is known from"""


def implausible(accuracy: Accuracy | None, known: float | None) -> str:
    """What speaks against the baseline, in words; empty where nothing does, or nothing is known.

    known: the source's metric, 0 to 1. The baseline's 95 % interval (Wilson) has to come within TOLERANCE of it.
    """
    if accuracy is None or known is None:
        return ""
    low, high = _interval(accuracy)
    if low - TOLERANCE <= known <= high + TOLERANCE:
        return ""
    return (
        f"the source itself has {figures.metric_name(accuracy.metric)} {100 * accuracy.baseline:.1f} % here, and "
        f"{100 * known:.1f} % is known of it: images are prepared in another way than in its training "
        "(mean, std, crop, scale), or labels are in another order"
    )


def _interval(accuracy: Accuracy) -> tuple[float, float]:
    from scipy.stats import binomtest

    if not accuracy.images:
        return accuracy.baseline, accuracy.baseline
    found = binomtest(round(accuracy.baseline * accuracy.images), accuracy.images).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
