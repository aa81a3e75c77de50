"""How a search chose the shapes, for every rendering of a report: rows and one picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree.ElementTree import Element, SubElement

from markupsafe import Markup

from pipeline.report import figures
from pipeline.report.charts import Axis, drawing, line, markup, percent, write
from pipeline.search.record import Decision, Ground, ParetoPoint, SublayerDecision, spelled

UNITS = {"kl_nats": "nats of KL divergence", "feature_error": "of the features' variance"}
HEIGHT = 220
PARTS = {"attention": "attention", "mlp": "MLP"}


@dataclass(frozen=True, kw_only=True)
class ChoiceRow:
    """One sublayer."""

    block: int
    part: str
    before: str
    after: str
    loss: str
    time: str
    next_loss: str
    loss_share: float
    """of the largest loss of any sublayer, for drawing"""
    time_before: float
    """of the longest time of any sublayer"""
    time_after: float
    changed: bool


def sentence(decision: Decision) -> str:
    """What was asked for and what came of it."""
    what = " and ".join(_limit(name, limit) for name, limit in decision.limits.items())
    changed = sum(one.before != one.after for one in decision.sublayers)
    engine = f"{figures.visible(decision.precision)} {figures.runtime_name(decision.runtime)}"
    text = (
        f"The least loss with {what}, on {engine}: "
        f"{loss(decision.loss)} {UNITS[decision.unit]} predicted, "
        f"{changed} of {len(decision.sublayers)} sublayers changed"
    )
    if scaled := _scaled(decision):
        text += f"; {' and '.join(scaled)}"
    same = at_same_latency(decision)
    if same is not None:
        text += f". The same share of every sublayer, at that latency: {loss(same)}"
    spent = f"{figures.significant(max(decision.solve_ms, 0.1), 2)} ms"
    took = f" The search took {figures.duration(decision.seconds)}." if decision.seconds else ""
    if decision.exact or len(decision.limits) == 1:
        return f"{text}. Solved exactly in {spent}.{took}"
    return f"{text}. Found in {spent} by weighing several limits at once: a good choice, not proven the best.{took}"


def _scaled(decision: Decision) -> list[str]:
    """What was chosen that scales all sublayers."""
    found = []
    if decision.size is not None:
        found.append(f"the engine reads {decision.size[0]} x {decision.size[1]} pixels")
    if decision.width is not None:
        found.append(f"the stream is {decision.width:,} wide")
    if any(decision.merge):
        found.append(f"{sum(decision.merge):,} tokens are {spelled(decision.merge)}")
    return found


def at_same_latency(decision: Decision) -> float | None:
    """Predicted loss of uniform shapes at the latency of what was chosen; None where they do not reach it."""
    if not decision.rounds or len(decision.uniform) < 2:
        return None
    ratio = chosen_ratio(decision)
    points = sorted((point.ratio, point.loss) for point in decision.uniform)
    for (left, more), (right, less) in pairwise(points):
        if left <= ratio <= right and right > left:
            return more + (less - more) * (ratio - left) / (right - left)
    return None


def chosen_ratio(decision: Decision) -> float:
    """Latency of what was chosen over the unpruned engine's: measured in the search, else predicted."""
    for one in reversed(decision.rounds):
        if math.isclose(one.loss, decision.loss):
            return one.measured
    return decision.table.rest + sum(one.time_after for one in decision.sublayers)


def choice_rows(decision: Decision) -> list[ChoiceRow]:
    """Every sublayer with what became of it and why."""
    most = max((one.loss for one in decision.sublayers), default=0) or 1
    longest = max((one.time_before for one in decision.sublayers), default=0) or 1
    return [_row(one, most, longest) for one in decision.sublayers]


def round_rows(decision: Decision) -> list[tuple[str, str, str, str]]:
    """Whole models that were built and timed: predicted, measured, interval, loss."""
    return [
        (
            figures.number(one.predicted, 3),
            figures.number(one.measured, 3),
            figures.bracket(one.interval, 3),
            loss(one.loss),
        )
        for one in decision.rounds
    ]


def ground_rows(decision: Decision) -> list[tuple[str, str, str, str, bool]]:
    """Sizes, widths and schedules of merging that were compared: what, time and loss alone, loss within limits."""

    def what(one: Ground) -> str:
        size = "" if one.size is None else f"{one.size[0]} x {one.size[1]} pixels, "
        if one.tokens is None:
            return f"{size}width {one.width:,}, all tokens"
        return f"{size}width {one.width:,}, {figures.percent(one.tokens)} of the tokens, {spelled(one.merge)}"

    def within(one: Ground) -> str:
        if one.note == "loses more by itself":
            return "more than the best loses"
        if one.best is None:
            return "none keeps the budget"
        if one.note == "fits whole":
            return f"{loss(one.best)} (nothing pruned)"
        return f"{loss(one.best)} (estimated)" if one.note else loss(one.best)

    return [
        (
            what(one),
            figures.number(one.ratio, 3) if one.ratio is not None else "not timed",
            loss(one.loss),
            within(one),
            one.chosen,
        )
        for one in decision.grounds
    ]


def loss(value: float) -> str:
    """A loss with two telling digits, but no more than four zeros."""
    if 0 < value < 0.00005:
        return "<0.0001"
    return figures.significant(value, 2) if value else "0"


def picture(decision: Decision) -> Markup:
    """Loss against latency: the best trade as a line; as dots uniform shapes, sizes and widths alone, the choice."""
    ratio, top = chosen_ratio(decision), _top(decision)
    across = Axis(0.0, max(1.0, *(one.measured for one in decision.rounds), 1.0))
    up = Axis(0.0, top)
    label = (
        f"predicted loss against latency; chosen: {ratio:.2f} of the unpruned engine's time, loss {decision.loss:.3g}"
    )
    svg = drawing(HEIGHT + 22, label)
    ticks = list(up.ticks())
    decimals = max(len(f"{tick:.10f}".rstrip("0").partition(".")[2]) for tick in ticks)
    for tick in ticks:
        y = _height(up, tick)
        line(svg, 0, 100, y, y, "grid")
        write(svg, 0.3, y - 3, figures.number(tick, decimals), "start")
    limit = decision.limits.get("latency")
    if limit is not None:
        line(svg, across.place(limit), across.place(limit), 0, HEIGHT, "limit")
    _curve(svg, decision.pareto, across, up, "allocated")
    for point in decision.uniform:
        if point.loss <= top:
            _dot(svg, across.place(point.ratio), _height(up, point.loss), "3.5", "uniform")
    for alone in decision.grounds:
        if alone.ratio is not None and alone.ratio <= across.high and alone.loss <= top:
            _dot(svg, across.place(alone.ratio), _height(up, alone.loss), "3.5", "alone")
    for one in decision.rounds:
        _dot(svg, across.place(one.measured), _height(up, min(one.loss, top)), "3.5", "tried")
    _dot(svg, across.place(ratio), _height(up, min(decision.loss, top)), "5.5", "chosen")
    line(svg, 0, 100, HEIGHT, HEIGHT, "axis")
    for tick in across.ticks():
        place = across.place(tick)
        line(svg, place, place, HEIGHT, HEIGHT + 5, "axis")
        write(
            svg,
            place,
            HEIGHT + 18,
            figures.number(tick, 1),
            "start" if place < 3 else "end" if place > 94 else "middle",
        )
    return markup(svg)


def _curve(svg: Element, points: Sequence[ParetoPoint], across: Axis, up: Axis, kind: str) -> None:
    ordered = sorted(points, key=lambda point: point.ratio)
    for left, right in pairwise(ordered):
        if right.loss <= up.high:
            ends = (across.place(left.ratio), across.place(right.ratio))
            line(svg, *ends, _height(up, min(left.loss, up.high)), _height(up, right.loss), kind)


def _dot(svg: Element, x: float, y: float, radius: str, kind: str) -> None:
    SubElement(svg, "circle", {"cx": percent(x), "cy": f"{y:.1f}", "r": radius, "class": f"point {kind}"})


def _height(axis: Axis, value: float) -> float:
    return HEIGHT * (1 - axis.place(value) / 100)


def _top(decision: Decision) -> float:
    """The largest loss to draw: what was chosen and the uniform shapes near it, not the collapse beyond."""
    beside = at_same_latency(decision) or 0.0
    return max(
        2.2 * decision.loss, 1.15 * beside, min((p.loss for p in decision.pareto if p.loss > 0), default=0.0), 1e-6
    )


def _limit(name: str, limit: float) -> str:
    if name == "latency":
        return f"at most {limit:.2f} of the unpruned engine's time"
    return f"at most {figures.count(limit)} {'parameters' if name == 'parameters' else 'MACs'}"


def _row(one: SublayerDecision, most: float, longest: float) -> ChoiceRow:
    saved = one.time_before - one.time_after
    return ChoiceRow(
        block=one.block,
        part=PARTS[one.part],
        before=_shape(one.before),
        after=_shape(one.after) if any(one.after) else "left out",
        loss=loss(one.loss) if one.before != one.after else figures.DASH,
        time=f"{figures.percent(one.time_before)} → {figures.percent(one.time_after)}"
        if saved
        else figures.percent(one.time_before),
        next_loss=figures.DASH if one.next_loss is None else f"{loss(one.next_loss / 100)}",
        loss_share=max(one.loss, 0.0) / most,
        time_before=max(one.time_before, 0.0) / longest,
        time_after=max(one.time_after, 0.0) / longest,
        changed=one.before != one.after,
    )


def _shape(shape: tuple[int, ...]) -> str:
    """`384` of an MLP, `3 heads, 32 | 64` (d_qk | d_v) of an attention."""
    if len(shape) == 1:
        return f"{shape[0]:,}"
    heads, d_qk, d_v = shape
    widths = f"{d_qk}" if d_qk == d_v else f"{d_qk} | {d_v}"
    return f"{heads} head{'s' if heads > 1 else ''}, {widths}"
