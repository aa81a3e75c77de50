"""The latency table: what each sublayer takes in each shape, from a few measured probes. Pure arithmetic.

Times are shares of the unpruned engine's, measured interleaved with it. A probe is a model of few equal blocks with
only attention or only an MLP in them; less what embedding and head take, over its blocks, that is one sublayer's time:

    mlp(width)               rises with the width: isotonic regression through the probes, straight lines between
    attention(heads, d_qk, d_v) = c0 + heads * (c1 + c2 * d_qk + c3 * d_v), every c >= 0, relative least squares

Engines fuse across sublayers, so a whole model does not take the sum of its parts. `Correction` puts it right with
whole models that were measured: T = a + b * sum (NViT and MDP look up tables of one GPU and correct nothing).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.vit.spec import BlockSpec, ViTSpec
from targets.record import Record

Shape = tuple[int, int, int]
"""heads, d_qk, d_v"""


class MeasuredMlp(Record):
    """One probe: what an MLP of this width takes."""

    width: int
    share: float
    """of the unpruned engine's time; below 0 is noise"""


class MeasuredAttention(Record):
    """One probe: what an attention of this shape takes."""

    heads: int
    d_qk: int
    d_v: int
    share: float


class LatencyTable(Record):
    """What each sublayer takes in each shape, as shares of the unpruned engine's time."""

    format: str = "vitrim.latency/1"
    unpruned_p50_ms: float
    """of the unpruned engine, the unit of all shares"""
    rest: float
    """what is no sublayer to choose shapes for: the whole model less its sublayers"""
    mlp: tuple[MeasuredMlp, ...] = ()
    """measured, by width; none where MLPs are not searched"""
    attention: tuple[MeasuredAttention, ...] = ()
    bytes_fixed: float = 0.0
    bytes_per_param: float = 0.0
    """of an engine: fixed + per_param * parameters"""

    def mlp_share(self, width: int) -> float:
        """Time of one MLP of this width; 0 where there is none."""
        if width == 0 or not self.mlp:
            return 0.0
        widths, shares = _rising(self.mlp)
        if width <= widths[0]:  # below the narrowest probe: on the line through zero width and fixed cost
            slope = (shares[1] - shares[0]) / (widths[1] - widths[0]) if len(widths) > 1 else 0.0
            return float(max(shares[0] - slope * (widths[0] - width), 0.0))
        return float(np.interp(width, widths, shares))

    def attention_share(self, shape: Shape) -> float:
        """Time of one attention of this shape; 0 where there is none."""
        if shape[0] == 0 or not self.attention:
            return 0.0
        return float(_features([shape])[0] @ self._coefficients())

    def share(self, spec: ViTSpec) -> float:
        """Time of a whole model; 1 for the unpruned one."""
        return self.rest + self.sublayers(spec)

    def sublayers(self, spec: ViTSpec) -> float:
        """Time of all sublayers of a model that are searched."""
        return sum(
            self.attention_share(attention_shape(block)) + self.mlp_share(mlp_width(block)) for block in spec.blocks
        )

    def scaled(self, factor: float) -> "LatencyTable":
        """All shares times this."""
        return self.replace(
            rest=factor * self.rest,
            mlp=tuple(one.replace(share=factor * one.share) for one in self.mlp),
            attention=tuple(one.replace(share=factor * one.share) for one in self.attention),
        )

    def residual(self) -> float:
        """Largest error of the attention's formula at its own probes, as a share of the largest of them."""
        if not self.attention:
            return 0.0
        measured = np.array([one.share for one in self.attention])
        fitted = _features([(one.heads, one.d_qk, one.d_v) for one in self.attention]) @ self._coefficients()
        return float(np.abs(measured - fitted).max() / measured.max())

    def _coefficients(self) -> NDArray[np.float64]:
        return _fit(tuple((one.heads, one.d_qk, one.d_v, one.share) for one in self.attention))


@dataclass(frozen=True)
class Correction:
    """T = a + b * sum, through whole models that were measured.

    What does not shrink with the parts takes no negative time: where a is negative, the line holds down to the least
    sum that was measured, and below it T falls in proportion.
    """

    a: float = 0.0
    b: float = 1.0
    least: float = 0.0
    """sum of the smallest model that was measured"""

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> "Correction":
        """Fit (sum of the table, measured) points: one gives b, two a line, more the least squares, the last exact.

        A slope that is not positive makes no sense; then only b is fitted. It stays between half and twice that b.
        """
        at = np.array([point for point in points if point[0] > 0], dtype=float)  # a sum of nothing tells nothing
        if not len(at):
            return cls()
        last_sum, last = at[-1]
        if len(at) == 1:
            return cls(0.0, float(last / last_sum))
        dx, dy = at[:-1, 0] - last_sum, at[:-1, 1] - last
        slope = float(dx @ dy / (dx @ dx)) if (dx @ dx) > 0 else 0.0
        proportional = float(last / last_sum)
        # Points near each other make a line of noise, along which the next choice would leap far beside the mark.
        slope = min(max(slope, 0.5 * proportional), 2 * proportional) if slope > 0 else 0.0
        found = cls(float(last - slope * last_sum), slope, float(at[:, 0].min()))
        return found if slope > 0 and found.a + found.b * found.least > 0 else cls(0.0, proportional)

    def measured(self, total: float) -> float:
        """What an engine will take whose parts sum to this."""
        if self.a < 0 and total < self.least:
            return (self.a + self.b * self.least) * total / self.least
        return self.a + self.b * total

    def allowed(self, limit: float) -> float:
        """What the parts may sum to for an engine that takes so long."""
        at_least = self.a + self.b * self.least
        if self.a < 0 and limit < at_least:
            return limit * self.least / at_least
        return (limit - self.a) / self.b


def mlp_width(block: BlockSpec) -> int:
    """Width of a block's MLP, 0 where it has none."""
    return block.mlp_width if block.mlp else 0


def attention_shape(block: BlockSpec) -> Shape:
    """Shape of a block's attention, zeros where it has none."""
    return (0, 0, 0) if block.attention == "off" else (block.heads, block.d_qk, block.d_v)


def bytes_line(sizes: Iterable[tuple[int, int]]) -> tuple[float, float]:
    """Fit engine bytes = fixed + per_param * parameters through (parameters, bytes) points."""
    points = np.array(list(sizes), dtype=float)
    if len(points) < 2 or np.ptp(points[:, 0]) == 0:
        return 0.0, float(points[0, 1] / points[0, 0])
    slope, fixed = np.polyfit(points[:, 0], points[:, 1], 1)
    return float(fixed), float(slope)


def _rising(probes: Sequence[MeasuredMlp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from scipy.optimize import isotonic_regression

    by_width: Mapping[int, float] = {one.width: one.share for one in probes}
    widths = np.array(sorted(by_width), dtype=float)
    shares = isotonic_regression([by_width[int(width)] for width in widths]).x
    return widths, np.maximum(shares, 0.0)


def _features(shapes: Sequence[Shape]) -> NDArray[np.float64]:
    return np.array([(1.0, heads, heads * d_qk, heads * d_v) for heads, d_qk, d_v in shapes])


_FITS: dict[tuple[tuple[int, int, int, float], ...], NDArray[np.float64]] = {}


def _fit(points: tuple[tuple[int, int, int, float], ...]) -> NDArray[np.float64]:
    """Coefficients >= 0 by relative least squares, so that small shapes are as right as large ones."""
    from scipy.optimize import nnls

    if points not in _FITS:
        shares = np.array([point[3] for point in points])
        weights = 1 / np.maximum(shares, 0.05 * shares.max())
        rows = _features([point[:3] for point in points])
        scale = np.abs(rows).max(axis=0)
        _FITS[points] = nnls(rows / scale * weights[:, None], shares * weights)[0] / scale
    return _FITS[points]
