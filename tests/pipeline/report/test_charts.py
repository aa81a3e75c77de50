"""Pictures stay inside their frame, keep their proportions and cannot be broken out of."""

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report import charts
from pipeline.report.record import Change, LatencyFigures

NUMBERS = st.floats(0, 1e9)


def inside(markup):
    """Parse a picture and check that everything lies in its frame; returns it."""
    svg = ET.fromstring(markup)
    height = float(svg.get("height"))
    for element in svg.iter():
        for horizontal, extent in (("x", "width"), ("x1", ""), ("x2", ""), ("cx", "")):
            if element.get(horizontal, "").endswith("%"):
                left = float(element.get(horizontal)[:-1])
                width = float(element.get(extent, "0%")[:-1]) if extent and element.get(extent) else 0
                assert left >= 0
                assert left + width <= 100.02
        if element.tag == "rect":
            assert float(element.get("y")) >= -0.01
            assert float(element.get("y")) + float(element.get("height")) <= height + 0.02
        assert element.get("style") is None  # the page's policy forbids it
    return svg


def of_class(svg, name):
    return [element for element in svg.iter() if name in element.get("class", "").split()]


@given(NUMBERS, NUMBERS)
def test_a_pair_of_bars_keeps_the_proportion(before, after):
    svg = inside(charts.bar_pair(before, after))
    widths = [float(of_class(svg, role)[0].get("width")[:-1]) for role in ("baseline", "engine")]

    assert widths[0] * after == pytest.approx(widths[1] * before, abs=0.01 * max(before, after, 1))


@given(st.floats(-1, 2))
def test_a_bar_never_leaves_its_track(share):
    inside(charts.bar(share, "engine"))
    inside(charts.loss(share, 0.85))


@given(st.floats(-50, 50), st.floats(0, 20), st.floats(0, 20), st.floats(0, 50))
def test_value_and_interval_lie_on_the_right_side_of_the_limit(value, below, above, limit):
    svg = inside(charts.interval(value, (value - below, value + above), limit, "within", "label"))
    mark = float(of_class(svg, "limit")[0].get("x1")[:-1])
    dot = float(of_class(svg, "dot")[0].get("cx")[:-1])
    (whisker,) = of_class(svg, "whisker")

    assert float(whisker.get("x1")[:-1]) <= dot <= float(whisker.get("x2")[:-1])
    assert (dot <= mark + 0.01) == (value <= limit) or abs(value - limit) < 0.02
    assert svg.get("aria-label") == "label"


def latency_figures(histogram, p50=5.0):
    return LatencyFigures(p50=p50, p90=6.0, p99=None, ci95=(4.9, 5.1), queries=10, processes=2, histogram=histogram)


@given(st.lists(st.integers(0, 1000), max_size=300), st.floats(0.01, 100), st.floats(1e-6, 1))
def test_a_histogram_fits_however_many_bars_it_has(counts, low, width):
    one = latency_figures(tuple((low + i * width, count) for i, count in enumerate(counts)))
    axis = charts.Axis(0, max(low + len(counts) * width, 6) * 1.03)
    svg = inside(charts.distribution(one, axis, "engine", "label"))

    assert len(of_class(svg, "bin")) <= charts.MOST_BARS
    assert (len(of_class(svg, "p50")), len(of_class(svg, "p90"))) == (1, 1)


def test_bars_that_are_put_together_keep_their_place_and_number():
    one = latency_figures(tuple((1 + i * 0.1, 1) for i in range(200)))
    bars = charts._bars(one)

    assert sum(count for _, _, count in bars) == 200
    assert (bars[0][0], bars[-1][1]) == (1, pytest.approx(21, abs=0.25))


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_an_axis_has_three_to_eight_round_ticks(low, length):
    axis = charts.Axis(low, low + length)
    ticks = list(axis.ticks())

    assert 3 <= len(ticks) <= 8
    assert all(low - 1e-6 * length <= tick <= low + length * 1.000001 for tick in ticks)
    inside(charts.scale(axis, "ms"))


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), min_size=1, max_size=60))
def test_every_block_has_its_column(sizes):
    changes = [Change(before=before, after=after) for before, after in sizes]
    svg = inside(charts.blocks(changes, "label"))

    assert len(of_class(svg, "before")) == len(of_class(svg, "engine")) == len(sizes)
    assert len(svg.findall("text")) <= 12


def test_parts_of_blocks_name_the_blocks_they_belong_to():
    svg = inside(charts.parts_of_blocks([(0, 100, 50), (7, 200, 0)], "label"))

    assert [column.findtext("title") for column in svg.findall("g")] == ["block 0: 50 of 100", "block 7: 0 of 200"]
    frame, filling = of_class(svg, "before"), of_class(svg, "engine")
    assert float(filling[0].get("height")) * 2 == float(frame[0].get("height"))
    assert [text.text for text in svg.findall("text")] == ["0", "7"]


def test_parts_of_a_whole_fill_it():
    svg = inside(charts.stacked([("both", "both", 3), ("only_engine", "engine only", 0), ("neither", "neither", 1)]))

    assert [rect.get("width") for rect in svg.iter("rect")] == ["75.00%", "0.00%", "25.00%"]
    assert svg.get("aria-label") == "both 3, engine only 0, neither 1"


def test_labels_are_escaped():
    label = '"><script>alert(1)</script>&'
    markup = charts.interval(1, None, 2, "within", label)

    assert "<script" not in markup
    assert ET.fromstring(markup).get("aria-label") == label
