"""Which sizes, widths and schedules of merging are tried, and that none which could win is left out."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.search.decide import Allocator
from pipeline.search.grounds import Glimpse, Start, estimate, promising, try_grounds
from pipeline.search.latency import LatencyTable
from stages.offers.record import MergeOffer, Offers
from stages.vit.counts import count_macs
from stages.vit.spec import ViTSpec

LOSSES = st.floats(0, 2, allow_nan=False)


def glimpse(name: str, loss: float, guess: float | None, ratio: float = 0.5) -> Glimpse:
    return Glimpse(model=SimpleNamespace(title=name), spec=None, loss=loss, ratio=ratio, estimate=guess)  # type: ignore[arg-type]


def names(found: Any) -> list[str]:
    return [one.model.title for one in found]


def test_what_promises_most_goes_on() -> None:
    seen = [glimpse("192", 0.1, 0.9), glimpse("176", 0.2, 0.3), glimpse("160", 0.3, 0.0), glimpse("96", 2.0, 0.0)]

    assert names(promising(seen, 1.2, 1)) == ["160"]
    assert names(promising(seen, 1.2, 2)) == ["160", "176"]
    assert names(promising(seen, 1.2, 9)) == ["160", "176", "192"]  # 96 loses more than the model as it comes


def test_what_cannot_win_costs_nothing_more() -> None:
    assert promising([glimpse("192", 0.1, 0.9), glimpse("160", 0.3, None)], 0.5, 3) == []
    assert promising([], None, 1) == []


def test_where_nothing_keeps_the_limits_the_fastest_tells_how_far_it_comes() -> None:
    seen = [glimpse("192", 0.1, None, 0.8), glimpse("160", 0.3, None, 0.5)]

    assert names(promising(seen, None, 2)) == ["160"]


@pytest.fixture(scope="session")
def table() -> LatencyTable:
    return LatencyTable(unpruned_p50_ms=1.0, rest=0.0)


def with_merges(offers: Offers, losses: list[float]) -> Offers:
    merges = tuple(MergeOffer(keep=0.5, merge=(4, 4, 0), loss=loss) for loss in losses)
    return offers.replace(merges=merges)


@given(losses=st.lists(LOSSES, max_size=4), base=LOSSES, share=st.floats(0.4, 1))
def test_what_is_passed_over_could_not_have_won(
    plain_spec: ViTSpec, offers: Offers, table: LatencyTable, losses: list[float], base: float, share: float
) -> None:
    starts = [
        Start(spec=plain_spec, offers=with_merges(offers, losses), table=table),
        Start(spec=plain_spec, offers=offers.replace(base_loss=base), table=table),
    ]
    limits = {"macs": share * count_macs(plain_spec)}

    tried, passed = try_grounds(starts, limits, lambda spec, title: 1.0)

    assert len(tried) + len(passed) == 2 + len(losses)
    totals = [one.total for one in tried if one.total is not None]
    assert totals
    assert all(one.loss >= min(totals) for one in passed)
    assert all(one.note == "loses more by itself" and one.ratio is None for one in passed)


def test_schedules_are_timed_only_where_latency_is_limited(
    plain_spec: ViTSpec, offers: Offers, table: LatencyTable
) -> None:
    start = Start(spec=plain_spec, offers=with_merges(offers, [0.0, 0.0]), table=table)
    asked: list[str] = []

    try_grounds([start], {"macs": 0.7 * count_macs(plain_spec)}, lambda spec, title: asked.append(title) or 1.0)

    assert asked == []


def test_a_smaller_model_has_the_more_room_the_faster_it_is(plain_spec: ViTSpec, offers: Offers) -> None:
    allocator = Allocator(plain_spec, offers, LatencyTable(unpruned_p50_ms=1.0, rest=0.0))
    smaller = plain_spec.replace(preprocess=plain_spec.preprocess.replace(height=16, width=16))
    share = count_macs(smaller) / count_macs(plain_spec)

    assert estimate(allocator, {"macs": share * count_macs(plain_spec)}, smaller, None) == 0.0
    tight = estimate(allocator, {"macs": 0.7 * share * count_macs(plain_spec)}, smaller, None)
    assert tight is not None
    assert tight == pytest.approx(allocator.solve({"macs": 0.7 * count_macs(plain_spec)}).loss)  # type: ignore[union-attr]
    assert estimate(allocator, {"macs": 1e-6 * count_macs(plain_spec)}, smaller, None) is None
