"""The report's pictures: small SVG drawings, without scripts and without styles of their own.

Horizontal positions are percentages and vertical ones pixels, so that a drawing fills whatever width it gets while its
lines and letters keep their size. The classes are those of templates/style.css. ElementTree escapes all text.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup

from pipeline.report import figures
from pipeline.report.record import Change, Latency, LatencyFigures

MOST_BARS = 80
"""bars of one histogram; finer ones are put together"""


def bar(share: float, kind: str) -> Markup:
    """One bar of a share of the full width, 0..1. Decoration: the number stands beside it."""
    svg = drawing(6)
    _rect(svg, 0, 100, 0, 6, "track", round_corners=True)
    _rect(svg, 0, 100 * _within_unit(share), 0, 6, kind, round_corners=True)
    return markup(svg)


def bar_pair(before: float, after: float) -> Markup:
    """Baseline above engine, to the scale of the larger. Decoration."""
    largest = max(before, after) or 1
    svg = drawing(16)
    _rect(svg, 0, 100 * before / largest, 0, 6, "baseline", round_corners=True)
    _rect(svg, 0, 100 * after / largest, 10, 6, "engine", round_corners=True)
    return markup(svg)


def stacked(parts: Sequence[tuple[str, str, int]]) -> Markup:
    """Parts of a whole side by side: (kind, words, number)."""
    total = sum(number for _, _, number in parts) or 1
    svg = drawing(16, ", ".join(f"{words} {number:,}" for _, words, number in parts))
    left = 0.0
    for kind, _, number in parts:
        _rect(svg, left, 100 * number / total, 0, 16, kind)
        left += 100 * number / total
    return markup(svg)


def loss(share: float, least: float) -> Markup:
    """What is missing to 1, drawn from the right on an axis from `least` to 1. Decoration."""
    place = 100 * _within_unit((share - least) / (1 - least))
    svg = drawing(8)
    _rect(svg, 0, 100, 1, 6, "track", round_corners=True)
    _rect(svg, place, 100 - place, 1, 6, "lost", round_corners=True)
    line(svg, place, place, 0, 8, "mark")
    return markup(svg)


def interval(value: float, ends: tuple[float, float] | None, limit: float, status: str, label: str) -> Markup:
    """A value with its 95 % interval against the highest that is allowed."""
    low, high = ends or (value, value)
    left, right = min(0.0, low), max(limit, high, 0.0)
    right = right + 0.12 * (right - left) or 1.0
    axis = Axis(left, right)
    svg = drawing(24, label)
    _rect(svg, 0, axis.place(limit), 9, 6, "allowed")
    _rect(svg, axis.place(limit), 100 - axis.place(limit), 9, 6, "track")
    if ends is not None:
        line(svg, axis.place(low), axis.place(high), 12, 12, f"whisker {status}")
    line(svg, axis.place(limit), axis.place(limit), 3, 21, "limit")
    SubElement(svg, "circle", {"cx": percent(axis.place(value)), "cy": "12", "r": "4.5", "class": f"dot {status}"})
    return markup(svg)


# Latency.


@dataclass(frozen=True)
class Axis:
    """A linear axis over the full width."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """Where a value lies, in percent of the width; values beyond the ends lie on them."""
        return 100 * _within_unit((value - self.low) / (self.high - self.low))

    def ticks(self) -> Iterator[float]:
        """Three to eight round numbers."""
        finest = (self.high - self.low) / 7
        power = 10 ** math.floor(math.log10(finest))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= finest)
        value = math.ceil(self.low / step - 1e-9) * step
        while value <= self.high + 1e-9 * step:
            yield round(value, 10)
            value += step


def latency_axis(latency: Latency) -> Axis:
    """From zero to the slowest thing that any of the three engines has to show."""
    ends = []
    for role in figures.ROLES:
        one = figures.figures_of(latency, role)
        bars = _bars(one)
        ends += [bars[-1][1] if bars else one.p50, one.p90 or one.p50, one.ci95[1]]
    return Axis(0.0, 1.03 * max(ends))


def distribution(one: LatencyFigures, axis: Axis, role: str, label: str) -> Markup:
    """Histogram of one engine with its p50 (solid) and p90 (dashed)."""
    height = 56
    svg = drawing(height, label)
    bars = _bars(one)
    densest = max((count / (right - left) for left, right, count in bars), default=1)
    for left, right, count in bars:
        tall = (height - 8) * count / (right - left) / densest
        _rect(svg, axis.place(left), axis.place(right) - axis.place(left), height - tall, tall, f"bin {role}")
    line(svg, 0, 100, height - 0.5, height - 0.5, "axis")
    line(svg, axis.place(one.p50), axis.place(one.p50), 0, height, "p50")
    if one.p90 is not None:
        line(svg, axis.place(one.p90), axis.place(one.p90), 0, height, "p90")
    return markup(svg)


def scale(axis: Axis, unit: str) -> Markup:
    """Ticks and numbers of an axis. Decoration: tables hold the numbers."""
    svg = drawing(22)
    ticks = list(axis.ticks())
    decimals = max((figures.decimals_of(tick, 1) for tick in ticks if tick), default=0)
    for tick in ticks:
        place = axis.place(tick)
        line(svg, place, place, 0, 5, "axis")
        anchor = "start" if place < 3 else "end" if place > 94 else "middle"
        write(
            svg,
            place,
            18,
            f"{figures.number(tick, decimals)} {unit}" if tick == 0 else figures.number(tick, decimals),
            anchor,
        )
    return markup(svg)


# Blocks.


def blocks(changes: Sequence[Change], label: str) -> Markup:
    """A column per block: before as the frame, after as the filling."""
    told = [f"block {index}: {change.before:,} → {change.after:,}" for index, change in enumerate(changes)]
    return _columns([(change.before, change.after) for change in changes], told, label)


def parts_of_blocks(parts: Sequence[tuple[int, int, int]], label: str) -> Markup:
    """A column per block: all of its neurons as the frame, some of them as the filling. parts: (block, all, some)."""
    told = [f"block {index}: {some:,} of {every:,}" for index, every, some in parts]
    return _columns([(every, some) for _, every, some in parts], told, label, [index for index, _, _ in parts])


def _columns(
    sizes: Sequence[tuple[int, int]], told: Sequence[str], label: str, indices: Sequence[int] | None = None
) -> Markup:
    """Columns of (frame, filling), each with what it tells to who points at it."""
    height, foot = 92, 18
    largest = max(max(size) for size in sizes) or 1
    slot = 100 / len(sizes)
    every = math.ceil(len(sizes) / 12)  # indices that fit on a telephone
    svg = drawing(height + foot, label)
    for place, (size, words) in enumerate(zip(sizes, told, strict=True)):
        left = place * slot
        column = SubElement(svg, "g")
        before, after = (max(height * value / largest, 1.5) for value in size)
        _rect(column, left + 0.12 * slot, 0.76 * slot, height - before, before, "before")
        _rect(column, left + 0.12 * slot, 0.76 * slot, height - after, after, "engine")
        SubElement(column, "title").text = words
        if place % every == 0:
            name = str(place if indices is None else indices[place])
            write(svg, left + slot / 2, height + 14, name, "middle")
    line(svg, 0, 100, height + 0.5, height + 0.5, "axis")
    return markup(svg)


# Pieces.


def _bars(one: LatencyFigures) -> list[tuple[float, float, int]]:
    """Histogram as (left, right, count) with at most MOST_BARS bars; the last is as wide as the one before."""
    if not any(count for _, count in one.histogram):
        return []
    together = math.ceil(len(one.histogram) / MOST_BARS)
    lefts = [left for left, _ in one.histogram[::together]]
    counts = [
        sum(count for _, count in one.histogram[start : start + together])
        for start in range(0, len(one.histogram), together)
    ]
    widths = [right - left for left, right in pairwise(lefts)]
    widths.append(widths[-1] if widths else max(one.p50 * 0.01, 1e-9))
    return [(left, left + width, count) for left, width, count in zip(lefts, widths, counts, strict=True) if width > 0]


def drawing(height: int, label: str = "") -> Element:
    """An empty drawing; without a label it is decoration that a screen reader passes over."""
    named = {"role": "img", "aria-label": label} if label else {"aria-hidden": "true"}
    return Element("svg", {"class": "chart", "width": "100%", "height": str(height), **named})


def _rect(
    parent: Element, x: float, width: float, y: float, height: float, kind: str, *, round_corners: bool = False
) -> None:
    place = {"x": percent(x), "y": _pixels(y), "width": percent(width), "height": _pixels(height), "class": kind}
    SubElement(parent, "rect", {**place, "rx": "2"} if round_corners else place)


def line(parent: Element, x1: float, x2: float, y1: float, y2: float, kind: str) -> None:
    """Add a line: x in percent, y in pixels."""
    place = {"x1": percent(x1), "x2": percent(x2), "y1": _pixels(y1), "y2": _pixels(y2)}
    SubElement(parent, "line", {**place, "class": kind})


def write(parent: Element, x: float, y: float, text: str, anchor: str) -> None:
    """Add a text: x in percent, y in pixels."""
    SubElement(parent, "text", {"x": percent(x), "y": _pixels(y), "text-anchor": anchor}).text = text


def percent(value: float) -> str:
    """A horizontal place, as SVG wants it."""
    return f"{value:.2f}%"


def _pixels(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _within_unit(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def markup(svg: Element) -> Markup:
    """The finished drawing."""
    return Markup(tostring(svg, encoding="unicode"))  # ElementTree has escaped every text and attribute
