"""Loss curves: measured at a few shapes, and between them interpolated over what is known of all shapes.

Of an MLP, the closed-form error of the repaired fc2 is known for every width (orthogonal least squares, one pass). The
loss of the answers is a rising function of it, the sublayer's sensitivity: monotone cubic through the measured points.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NEGLIGIBLE = 1e-12
"""An error or a loss that is rounding."""


def between(known: Sequence[float], losses: Sequence[float], wanted: Sequence[float]) -> Floats:
    """Interpolate losses at the errors `wanted`, from points (error, loss); error 0 has loss 0.

    Rising: noise that lets a larger error lose less is flattened. Beyond the largest known error on a straight line.
    """
    from scipy.interpolate import PchipInterpolator

    points: dict[float, float] = {0.0: 0.0}
    for error, loss in zip(known, losses, strict=True):
        if error > NEGLIGIBLE:
            points[error] = max(loss if loss > NEGLIGIBLE else 0.0, points.get(error, 0.0))
    x = np.array(sorted(points))
    y = np.maximum.accumulate([points[error] for error in x])
    at = np.asarray(wanted, dtype=float)
    if len(x) == 1:
        return np.zeros_like(at)
    inside: Floats = PchipInterpolator(x, y)(np.clip(at, x[0], x[-1]))
    slope = (y[-1] - y[-2]) / (x[-1] - x[-2])
    return np.where(at > x[-1], y[-1] + slope * (at - x[-1]), inside)


def spread(shares: Sequence[float], legal: Sequence[int], most: int) -> list[int]:
    """The legal widths nearest to these shares of `most`, rising, without `most` itself."""
    below = [width for width in legal if width < most]
    return sorted({min(below, key=lambda width: abs(width - share * most)) for share in shares}) if below else []
