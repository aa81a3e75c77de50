"""Numbers and names are written one way, and never lie by rounding."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report import figures
from pipeline.report.record import BudgetCheck

MINUS = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4.3123, "4.31"),
        (43.123, "43.1"),
        (431.23, "431"),
        (4312.3, "4,312"),
        (0.43123, "0.431"),
        (9.996, "10.0"),
        (0, "0.00"),
    ],
)
def test_three_significant_digits_and_none_before_the_point_is_dropped(value, text):
    assert figures.significant(value) == text


@given(st.floats(1e-6, 1e12), st.integers(1, 5))
def test_significant_digits_are_right(value, digits):
    written = float(figures.significant(value, digits).replace(",", ""))

    assert written == pytest.approx(value, rel=0.5000001 * 10 ** (1 - digits))


@given(st.floats(-1e6, 1e6), st.integers(0, 4))
def test_minus_is_a_minus_sign_and_zero_has_none(value, decimals):
    text = figures.number(value, decimals)

    assert "-" not in text
    assert text.startswith(MINUS) == (round(value, decimals) < 0 and any(digit in text for digit in "123456789"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (figures.milliseconds(4.312), "4.31 ms"),
        (figures.milliseconds_change(8.43, 4.31), "8.4 → 4.3 ms"),
        (figures.milliseconds_change(1.3, 0.851), "1.30 → 0.85 ms"),
        (figures.milliseconds_change(412.7, 120.2), "413 → 120 ms"),
        (figures.percent(0.78364), "78.4 %"),
        (figures.percent(0.99934), "99.93 %"),
        (figures.percent(1), "100.0 %"),
        (figures.percent(0), "0.0 %"),
        (figures.points(-0.24), f"{MINUS}0.2 points"),
        (figures.points(-0.04), "0.0 points"),
        (figures.bracket((-0.21, 1.44), 1), f"[{MINUS}0.2, 1.4]"),
        (figures.count(5_717_416), "5.72 M"),
        (figures.count(1_258_000_000), "1.26 G"),
        (figures.count(999_999), "1.00 M"),
        (figures.count(640), "640"),
        (figures.size(22_916_000), "22.9 MB"),
        (figures.size(999), "999 B"),
        (figures.size(999_900_000), "1.00 GB"),
        (figures.duration(0.44), "0.4 s"),
        (figures.duration(42.4), "42 s"),
        (figures.duration(59.7), "1 min 0 s"),
        (figures.duration(552), "9 min 12 s"),
        (figures.duration(3870), "1 h 4 min"),
        (figures.relative_change(100, 52), f"{MINUS}48 %"),
        (figures.relative_change(100, 103.1), "+3.1 %"),
        (figures.relative_change(100, 100), "same"),
        (figures.relative_change(0, 5), "new"),
        (figures.budget_value("accuracy_drop_points", 2.04, near=2.0), "2.04 points"),
        (figures.budget_value("latency_ratio", 0.9004, near=0.9), "0.9004"),
        (figures.budget_value("latency_p50_ms", 5.002, near=5.0), "5.002 ms"),
        (figures.budget_value("engine_bytes", 4_402_000), "4.40 MB"),
    ],
)
def test_figures_read_like_this(text, wanted):
    assert text == wanted


@given(st.floats(0.01, 1000), st.floats(-0.5, 0.5))
def test_a_value_within_a_percent_of_its_limit_is_not_written_like_it(limit, away):
    value = limit * (1 + away / 100)
    decimals = figures.telling_decimals([value], limit)

    assert value == limit or decimals == 4 or figures.number(value, decimals) != figures.number(limit, decimals)


@given(st.text())
def test_a_name_shows_every_character_that_would_hide(text):
    shown = figures.visible(text)
    hidden = {letter for letter in shown if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")}

    assert not hidden
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
    assert figures.visible(shown) == shown


def test_names_that_hide_nothing_stay_as_they_are():
    text = "vit_tiny \N{FOX FACE} \u0645\u0631\u062d\u0628\u0627 <b> | ü"

    assert figures.visible(text) == text
    assert figures.visible_lines("a:\n\tb\x07") == "a:\n\tb\\u{7}"


def test_every_budget_key_has_a_name():
    from targets.profile import Budget

    assert set(figures.BUDGET_NAMES) == set(Budget.model_fields)


def test_every_status_has_words():
    from typing import get_args

    from pipeline.report import html, markdown, terminal
    from pipeline.report.record import Status

    for table in (figures.STATUS_WORDS, html.SYMBOLS, markdown.SYMBOLS, terminal.SYMBOLS, terminal.STYLES):
        assert set(table) == set(get_args(Status))
    assert BudgetCheck.model_fields["status"].annotation == Status


# Energy.


def test_energy_is_shown_where_both_engines_have_the_same_kind_of_it(example):
    from pipeline.report import tables
    from targets.measure.measurement import Energy

    def with_energy(scope, **joules):
        changes = {
            role: getattr(example.latency_ms, role).replace(
                energy=(Energy(scope=scope[role], covers="rails", mean_power_w=8, joules_per_image=one, seconds=20),)
            )
            for role, one in joules.items()
        }
        return tables.headlines(example.replace(latency_ms=example.latency_ms.replace(**changes)))

    same = with_energy({"baseline": "board", "engine": "board"}, baseline=0.08, engine=0.02)
    other = with_energy({"baseline": "gpu", "engine": "board"}, baseline=0.08, engine=0.02)
    (row,) = [row for row in same if row.label == "energy per image"]

    assert (row.before, row.after) == ("80.0 mJ", "20.0 mJ")
    assert "energy per image" not in {row.label for row in [*other, *tables.headlines(example)]}


def test_what_is_not_built_has_the_size_of_its_graph_and_stands_in_for_an_engine(reports):
    from pipeline.report import tables
    from pipeline.report.html import to_html

    away, here = reports["away"], reports["example"]

    unbuilt = away.replace(proof=away.proof.replace(engine="not built"))
    assert "engine size" in {row.label for row in tables.headlines(away)}
    assert "graph size" in {row.label for row in tables.headlines(unbuilt)}
    assert "engine size" in {row.label for row in tables.headlines(here)}
    assert "What stands in for the engine against the baseline" in to_html(away)
    assert "The compiled engine against the baseline" in to_html(here)


@pytest.mark.parametrize(("floor", "words"), [(0.0312, "0.0312 ms"), (1.03e-6, "some nanoseconds")])
def test_a_floor_is_told_with_as_many_digits_as_mean_something(example, floor, words):
    from pipeline.report import tables

    report = example.replace(proof=example.proof.replace(floor_ms=floor, floor_note="bound by computing"))

    lists = dict(tables.proof_lists(report))

    assert lists["Floor"] == (f"no query takes less than {words} on this board (bound by computing)",)
