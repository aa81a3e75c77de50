"""A second pair of runtime and precision is searched only where it can win, and wins only where it loses less."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.search.pairs import Pair, as_fast, better, worth_a_search

INT8 = Pair(name="openvino int8", p50_ms=4.0, loss=0.05)


def decision(loss: float, *, kept: bool = True, **limits: float) -> Any:
    return SimpleNamespace(loss=loss, limits=limits, unit="kl_nats", grounds=(), pareto=(), kept=kept)


def curve(*points: tuple[float | None, float]) -> tuple[Any, ...]:
    return tuple(SimpleNamespace(ratio=ratio, loss=loss) for ratio, loss in points)


def test_the_fastest_of_those_that_may_win_is_searched() -> None:
    others = [
        Pair(name="fp32", p50_ms=8.0, loss=0.0),
        Pair(name="bf16", p50_ms=5.0, loss=0.01),
        Pair(name="dynamic", p50_ms=4.5, loss=0.4),
    ]

    found = worth_a_search(INT8, decision(0.2, latency=0.6), others)

    assert found is not None
    assert found.name == "bf16"


def test_none_is_searched_where_the_first_loses_less_than_any_precision_or_latency_is_no_limit() -> None:
    other = Pair(name="bf16", p50_ms=5.0, loss=0.06)

    assert worth_a_search(INT8, decision(0.005, latency=0.6), [other]) is None
    assert worth_a_search(INT8, decision(0.5, macs=1e9), [other]) is None
    assert worth_a_search(INT8, decision(0.5, latency=0.6), []) is None


@pytest.mark.parametrize(
    ("p50_ms", "searched"),
    [
        (4.8, True),  # half its time is the limit: 0.3 foretold, of which half counts
        (8.0, False),  # at 0.3 of its time 0.9 would be lost
        (24.0, True),  # nothing is known of so short a time
    ],
)
def test_one_that_would_have_to_lose_too_much_is_not_searched(p50_ms: float, searched: bool) -> None:
    found = decision(0.2, latency=0.6)
    found.pareto = curve((0.2, 1.4), (0.3, 0.9), (0.5, 0.4))
    found.grounds = curve((0.5, 0.3), (None, 0.01), (0.9, 0.0))
    other = Pair(name="fp32", p50_ms=p50_ms, loss=0.0)

    assert (worth_a_search(INT8, found, [other]) is not None) == searched


@given(limit=st.floats(0.05, 1), ours=st.floats(0.1, 100), theirs=st.floats(0.1, 100))
def test_both_may_take_the_same_milliseconds(limit: float, ours: float, theirs: float) -> None:
    first, other = Pair(name="a", p50_ms=ours, loss=0), Pair(name="b", p50_ms=theirs, loss=0)

    share = as_fast(first, decision(0.1, latency=limit), other)

    assert share * theirs == pytest.approx(limit * ours)


def test_the_pair_that_loses_less_altogether_wins_and_the_other_is_told_why() -> None:
    other = Pair(name="onnxruntime fp32", p50_ms=5.0, loss=0.0)
    decisions = {INT8.name: decision(0.30, latency=0.6), other.name: decision(0.20, latency=0.48)}

    won, told = better(INT8, other, decisions)

    assert won == other
    assert told == {
        "openvino int8": "searched, too: as fast as onnxruntime fp32 it loses 0.35 nats of KL divergence, "
        "that one 0.2 (precision and pruning)"
    }
    assert better(INT8, other, decisions | {other.name: decision(0.36, latency=0.48)})[0] == INT8


def test_a_pair_that_cannot_be_as_fast_loses() -> None:
    other = Pair(name="onnxruntime fp32", p50_ms=50.0, loss=0.0)

    won, told = better(INT8, other, {INT8.name: decision(0.3, latency=0.6)})

    assert won == INT8
    assert told == {"onnxruntime fp32": "no shapes of it are as fast as openvino int8 may be"}


def test_what_was_measured_within_its_limit_goes_before_what_was_not() -> None:
    other = Pair(name="onnxruntime fp32", p50_ms=5.0, loss=0.0)
    first = decision(0.30, latency=0.6)

    won, told = better(INT8, other, {INT8.name: first, other.name: decision(0.2, latency=0.48, kept=False)})

    assert won == INT8
    assert "no whole model of it was measured as fast" in told[other.name]


def test_a_search_that_failed_is_told_so() -> None:
    other = Pair(name="onnxruntime fp32", p50_ms=5.0, loss=0.0)

    won, told = better(INT8, other, {INT8.name: decision(0.3, latency=0.6)}, failed="the worker was killed")

    assert (won, told) == (INT8, {"onnxruntime fp32": "its search failed: the worker was killed"})
