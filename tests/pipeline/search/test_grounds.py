"""Which sizes, widths and schedules of merging are tried, and that none which could win is left out."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.search.decide import Allocator
from pipeline.search.grounds import Glimpse, Start, look, taken_whole, try_merging
from pipeline.search.latency import LatencyTable, MeasuredMlp
from stages.offers.record import MergeOffer, Offers
from stages.vit.counts import count_macs
from stages.vit.spec import ViTSpec

LOSSES = st.floats(0, 2, allow_nan=False)
MODEL: Any = SimpleNamespace(title="smaller")


@pytest.fixture(scope="session")
def table() -> LatencyTable:
    return LatencyTable(unpruned_p50_ms=1.0, rest=0.0)


def with_merges(offers: Offers, losses: list[float]) -> Offers:
    merges = tuple(MergeOffer(keep=0.5, merge=(4, 4, 0), loss=loss) for loss in losses)
    return offers.replace(merges=merges)


@given(losses=st.lists(LOSSES, max_size=4), base=LOSSES, share=st.floats(0.4, 1), reached=st.none() | LOSSES)
def test_what_is_passed_over_could_not_have_won(
    plain_spec: ViTSpec,
    offers: Offers,
    table: LatencyTable,
    losses: list[float],
    base: float,
    share: float,
    reached: float | None,
) -> None:
    start = Start(spec=plain_spec, offers=with_merges(offers, losses).replace(base_loss=base), table=table)
    limits = {"macs": share * count_macs(plain_spec)}

    tried, passed = try_merging(start, limits, lambda spec, title: 1.0, reached)

    assert len(tried) + len(passed) == 1 + len(losses)
    totals = [one.total for one in tried if one.total is not None] + ([] if reached is None else [reached])
    assert all(one.loss >= min(totals) for one in passed)
    assert all(one.note == "loses more by itself" and one.ratio is None for one in passed)


def test_schedules_are_timed_only_where_latency_is_limited(
    plain_spec: ViTSpec, offers: Offers, table: LatencyTable
) -> None:
    start = Start(spec=plain_spec, offers=with_merges(offers, [0.0, 0.0]), table=table)
    asked: list[str] = []

    try_merging(start, {"macs": 0.7 * count_macs(plain_spec)}, lambda spec, title: asked.append(title) or 1.0)

    assert asked == []


def test_a_smaller_model_has_the_more_room_the_faster_it_is(plain_spec: ViTSpec, offers: Offers) -> None:
    allocator = Allocator(plain_spec, offers, LatencyTable(unpruned_p50_ms=1.0, rest=0.0))
    smaller = plain_spec.replace(preprocess=plain_spec.preprocess.replace(height=16, width=16))
    macs, less = count_macs(plain_spec), count_macs(smaller)

    def seen(limit: float) -> Glimpse:
        return look(allocator, {"macs": limit}, model=MODEL, spec=smaller, loss=0.25, ratio=None)

    assert (seen(less).promise, seen(less).fits) == (0.25, True)
    alone = allocator.solve({"macs": 0.7 * macs})
    assert alone is not None
    assert seen(0.7 * less).promise == pytest.approx(0.25 + alone.loss)
    assert not seen(0.7 * less).fits
    assert seen(1e-6 * macs).promise is None


def test_latency_keeps_its_reserve_where_a_model_is_taken_whole(plain_spec: ViTSpec, offers: Offers) -> None:
    table = LatencyTable(unpruned_p50_ms=1.0, rest=0.25, mlp=(MeasuredMlp(width=64, share=0.25),))
    allocator = Allocator(plain_spec, offers, table)

    def seen(ratio: float) -> Glimpse:
        return look(allocator, {"latency": 0.5}, model=MODEL, spec=plain_spec, loss=0.25, ratio=ratio)

    assert [seen(ratio).fits for ratio in (0.47, 0.479, 0.481)] == [True, True, False]
    one = taken_whole(seen(0.47), Start(spec=plain_spec, offers=with_merges(offers, [0.1]), table=table))
    assert one.total == 0.25
    assert one.first is not None
    assert one.allocator.spec_of(one.first) == plain_spec
    assert one.allocator.total(one.first, "latency") == pytest.approx(0.47)
    assert one.solve({"latency": 0.5}) == one.first
    assert one.solve({"latency": 0.48}) is None  # a whole model that takes longer than the limit is no answer
