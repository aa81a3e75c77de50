"""Pictures of the dashboard: a row of nights as SVG, without scripts and without styles of its own."""

import math
from collections.abc import Sequence
from itertools import pairwise
from xml.etree.ElementTree import SubElement

from markupsafe import Markup

from pipeline.nightly.judge import scaled
from pipeline.nightly.report.record import Point, SeriesReport
from pipeline.nightly.report.words import CLASSES, KINDS, metric_words, number, title
from pipeline.report.charts import Axis, drawing, line, markup, percent, write

HEIGHT = 150
TOP, BOTTOM = 14, 126
"""pixels between which values are drawn"""
LEFT, RIGHT = 7.0, 99.0
"""percent of the width"""
LEAST_SPAN = 0.06
"""of the value, that the axis shows: noise of one percent is no mountain range"""


def trend(one: SeriesReport) -> Markup:
    """Values of a series night by night; changes and other environments as vertical lines.

    Valid nights are joined; nights that count for nothing are hollow; nights without a value are crosses at the foot.
    """
    metric = one.series.metric
    _, unit = metric_words(metric)
    svg = drawing(HEIGHT, f"{title(one)}, {len(one.points)} nights, in {unit}; the table below holds the numbers")
    svg.set("class", "chart trend")
    values = [scaled(metric, point.value) for point in one.points if point.value is not None]
    low, high = _range(values)
    places = _places(one.points)

    def height(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (scaled(metric, value) - low) / (high - low)

    most = 100.0 if unit == "%" else float("inf")  # room above a full share, and no number there
    for tick in [one for one in list(Axis(low, high).ticks())[:6] if one <= most]:
        y = BOTTOM - (BOTTOM - TOP) * (tick - low) / (high - low)
        line(svg, LEFT, RIGHT, y, y, "grid")
        write(svg, LEFT - 0.8, y + 4, _short(tick, high - low), "end")
    by_at = dict(zip([point.at for point in one.points], places, strict=True))
    for mark in one.marks:
        if mark.at in by_at:
            x = max(by_at[mark.at] - _half_step(places), LEFT)
            group = SubElement(svg, "g")
            line(group, x, x, TOP - 10, BOTTOM, f"event {mark.what}")
            SubElement(group, "title").text = f"{mark.at:%Y-%m-%d} {mark.what}: {mark.text}"
    borders = [mark.at for mark in one.marks if mark.what == "environment" and mark.at in by_at]
    begin = max((by_at[at] for at in borders), default=places[0])  # of tonight's segment
    if one.verdict.baseline is not None and low <= scaled(metric, one.verdict.baseline) <= high:
        y = height(one.verdict.baseline)
        line(svg, begin, RIGHT, y, y, "level")
    joined = [(place, point) for place, point in zip(places, one.points, strict=True) if _counts(point)]
    for (x1, left), (x2, right) in pairwise(joined):
        first, second = left.value, right.value
        same_segment = not any(left.at < at <= right.at for at in borders)
        if first is not None and second is not None and same_segment:
            line(svg, x1, x2, height(first), height(second), "row")
    for place, point in zip(places, one.points, strict=True):
        group = SubElement(svg, "g")
        if point.value is None:
            for rise in (-4, 4):
                line(group, place - 0.5, place + 0.5, BOTTOM - 6 - rise, BOTTOM - 6 + rise, "cross")
        else:
            if point.low is not None and point.high is not None and point.high > point.low:
                line(group, place, place, _within(height(point.low)), _within(height(point.high)), "spread")
            kind = CLASSES[point.kind] + ("" if _counts(point) else " void")
            radius = "5" if point.kind in ("regression", "suspicious", "quarantine") else "3.5"
            SubElement(
                group,
                "circle",
                {
                    "cx": percent(place),
                    "cy": f"{_within(height(point.value)):.2f}",
                    "r": radius,
                    "class": f"night {kind}",
                },
            )
        told = "no value" if point.value is None else f"{number(metric, point.value)} {unit}"
        SubElement(group, "title").text = f"{point.at:%Y-%m-%d} {told}: {KINDS[point.kind]}"
    line(svg, LEFT, RIGHT, BOTTOM + 0.5, BOTTOM + 0.5, "axis")
    for place, point, anchor in _dates(one.points, places):
        write(svg, place, BOTTOM + 16, f"{point.at:%m-%d}", anchor)
    return markup(svg)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest of the axis; a quiet row keeps a quiet look, and one outlier does not flatten the others."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    middle = (low + high) / 2
    span = max(high - low, LEAST_SPAN * abs(middle), 1e-9)
    return middle - 0.58 * span, middle + 0.58 * span


def _places(points: Sequence[Point]) -> list[float]:
    """Nights stand side by side in percent of the width, whatever lies between them."""
    if len(points) == 1:
        return [(LEFT + RIGHT) / 2]
    step = (RIGHT - LEFT - 2) / max(len(points) - 1, 1)
    return [LEFT + 1 + step * index for index in range(len(points))]


def _half_step(places: Sequence[float]) -> float:
    return (places[1] - places[0]) / 2 if len(places) > 1 else 1.0


def _counts(point: Point) -> bool:
    return point.value is not None and point.kind not in ("invalid", "quarantine")


def _dates(points: Sequence[Point], places: Sequence[float]) -> list[tuple[float, Point, str]]:
    """First and last date, and one between where there is room."""
    shown = {0, len(points) - 1} | ({len(points) // 2} if len(points) > 8 else set())
    found = []
    for index in sorted(shown):
        anchor = "middle" if 0 < index < len(points) - 1 or len(points) == 1 else "start" if index == 0 else "end"
        found.append((places[index], points[index], anchor))
    return found


def _short(tick: float, span: float) -> str:
    """A number of the axis, with as many digits as tell the ticks apart."""
    digits = max(0, min(6, 1 - math.floor(math.log10(span)))) if span > 0 else 2
    text = f"{tick:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _within(y: float) -> float:
    return min(max(y, TOP - 8), BOTTOM)
