"""The roofline: what cannot be, was not measured right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.errors import WorkerError
from targets.measure.floor import Work, check_floor, floor_of, work_of

ORIN_NANO_SUPER = {"peak_ops_per_s": 16.7e12, "bandwidth_bytes_per_s": 102e9}


def test_vit_base_on_an_orin_nano_needs_two_milliseconds() -> None:
    work = work_of(macs=17_600_000_000, parameters=86_600_000, precision="fp16", batch=1)
    found = floor_of(work, **ORIN_NANO_SUPER, cache_bytes=4 * 2**20)

    assert found.ms == pytest.approx(2.11, abs=0.01)
    assert found.note == "bound by computing"
    traffic = floor_of(work, peak_ops_per_s=1e18, bandwidth_bytes_per_s=102e9, cache_bytes=0)
    assert traffic.ms == pytest.approx(1.70, abs=0.01)
    assert traffic.note == "bound by memory traffic"


def test_weights_that_may_stay_in_the_cache_are_no_traffic() -> None:
    work = Work(macs=1, weight_bytes=10_000_000)
    told = {"peak_ops_per_s": 1e15, "bandwidth_bytes_per_s": 1e10}

    half, none, unknown = (floor_of(work, **told, cache_bytes=size) for size in (5_000_000, 10_000_000, None))
    assert half.ms == pytest.approx(0.5)
    assert none.ms == pytest.approx(2e-12)
    assert unknown.ms == none.ms
    assert "size of the cache" in unknown.note
    assert unknown.estimate_ms == pytest.approx(1.0)


def test_activations_are_in_the_estimate_and_not_in_the_floor() -> None:
    work = work_of(macs=0, parameters=1_000_000, precision="int8", batch=4, activations=500_000)
    found = floor_of(work, peak_ops_per_s=1e15, bandwidth_bytes_per_s=1e9, cache_bytes=0)

    assert found.ms == pytest.approx(1.0)
    assert found.estimate_ms == pytest.approx(1.0 + 2 * 4 * 0.5)


@given(
    st.lists(st.builds(Work, macs=st.integers(0, 10**9), weight_bytes=st.integers(0, 10**8)), min_size=1, max_size=6),
    st.integers(0, 10**8),
)
def test_layers_bound_it_at_least_as_closely_as_the_whole(layers: list[Work], cache_bytes: int) -> None:
    whole = Work(macs=sum(one.macs for one in layers), weight_bytes=sum(one.weight_bytes for one in layers))
    told = {**ORIN_NANO_SUPER, "cache_bytes": cache_bytes}

    assert (floor_of(layers, **told).ms or 0) >= (floor_of(whole, **told).ms or 0) * (1 - 1e-9)


def test_without_peak_and_bandwidth_there_is_no_floor_and_that_is_said() -> None:
    found = floor_of(Work(macs=10**9, weight_bytes=10**6), peak_ops_per_s=None, bandwidth_bytes_per_s=None)

    assert found.ms is None
    assert found.note == "no floor; not known: peak, bandwidth, size of the cache"
    check_floor("engine", 1e-9, found.ms)


def test_what_is_below_the_floor_is_refused_in_one_line() -> None:
    check_floor("engine", 2.0, 2.0)
    with pytest.raises(WorkerError, match=r"engine 'engine' answered in 0\.01 ms, .* needs 2 ms at least") as error:
        check_floor("engine", 0.01, 2.0)
    assert "\n" not in str(error.value)
