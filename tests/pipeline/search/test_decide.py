"""The allocator: the least loss within the limits, for any of them and for several at once."""

from itertools import product

import pytest

from pipeline.search.decide import Allocator
from pipeline.search.latency import LatencyTable, MeasuredAttention, MeasuredMlp
from stages.offers.record import Offers
from stages.prune.options import BlockShape
from stages.vit.counts import count_macs, count_params
from stages.vit.spec import ViTSpec


@pytest.fixture
def allocator(plain_spec: ViTSpec, offers: Offers) -> Allocator:
    table = LatencyTable(
        unpruned_p50_ms=1.0,
        rest=0.1,
        mlp=tuple(MeasuredMlp(width=width, share=0.01 + 0.002 * width) for width in (16, 32, 64)),
        attention=tuple(
            MeasuredAttention(heads=h, d_qk=q, d_v=v, share=0.01 + 0.004 * h * (q + v))
            for h, q, v in product((1, 2), (4, 8), (4, 8))
        ),
    )
    return Allocator(plain_spec, offers, table)


def brute_force(allocator: Allocator, limits: dict[str, float]) -> float:
    """Least loss of any choice within the limits."""
    best = float("inf")
    for picks in product(*(range(len(group.shapes)) for group in allocator.groups)):
        one = allocator._allocation(picks)
        if all(allocator.total(one, name) <= limit + 1e-12 for name, limit in limits.items()):
            best = min(best, one.loss)
    return best


@pytest.fixture
def small(plain_spec: ViTSpec, offers: Offers, allocator: Allocator) -> Allocator:
    """One block less, so that all choices can be tried."""
    few = Offers(unit="kl_nats", sublayers=offers.sublayers[:4], images=16)
    return Allocator(plain_spec.replace(blocks=plain_spec.blocks[:2]), few, allocator.table)


@pytest.mark.parametrize("share", [0.35, 0.5, 0.62, 0.8, 0.95])
@pytest.mark.parametrize("name", ["latency", "parameters", "macs"])
def test_one_limit_is_solved_as_well_as_by_trying_everything(small: Allocator, name: str, share: float) -> None:
    cheapest, whole = small.cheapest(name), small.total(small.uniform(shares=(1.0,))[0], name)
    limit = cheapest + share * (whole - cheapest)

    found = small.solve({name: limit})

    assert found is not None
    assert small.total(found, name) <= limit * (1 + 1e-9)
    assert found.loss == pytest.approx(brute_force(small, {name: limit}), rel=1e-6)


def test_totals_are_those_of_the_spec(allocator: Allocator) -> None:
    found = allocator.solve({"latency": 0.6})
    assert found is not None
    spec = allocator.spec_of(found)

    assert allocator.total(found, "parameters") == count_params(spec)
    assert allocator.total(found, "macs") == count_macs(spec)
    assert allocator.total(found, "latency") == pytest.approx(allocator.table.share(spec))


@pytest.mark.parametrize(("latency", "parameters"), [(0.7, 0.8), (0.5, 0.9), (0.9, 0.6)])
def test_several_limits_hold_together_and_lose_little_more_than_they_must(
    small: Allocator, latency: float, parameters: float
) -> None:
    whole = small.uniform(shares=(1.0,))[0]
    limits = {
        "latency": small.cheapest("latency") + latency * (small.total(whole, "latency") - small.cheapest("latency")),
        "parameters": small.cheapest("parameters")
        + parameters * (small.total(whole, "parameters") - small.cheapest("parameters")),
    }

    found = small.solve(limits)

    assert found is not None
    assert all(small.total(found, name) <= limit * (1 + 1e-9) for name, limit in limits.items())
    assert found.loss <= 1.1 * brute_force(small, limits) + 0.02


@pytest.mark.parametrize(
    ("latency", "parameters"), [(0.5, 2.0), (0.5, 0.97), (0.97, 0.5), (0.7, 0.8), (0.5, 0.5), (0.4, 0.35)]
)
def test_a_choice_is_called_exact_where_one_of_several_limits_decides_alone(
    small: Allocator, latency: float, parameters: float
) -> None:
    whole = small.uniform(shares=(1.0,))[0]
    limits = {
        name: small.cheapest(name) + share * (small.total(whole, name) - small.cheapest(name))
        for name, share in (("latency", latency), ("parameters", parameters))
    }

    alone = [small.solve({name: limit}) for name, limit in limits.items()]
    keeps_all = [
        one is not None and all(small.total(one, name) <= limit * (1 + 1e-9) for name, limit in limits.items())
        for one in alone
    ]

    found = small.solve(limits)

    assert found is not None
    assert found.exact is any(keeps_all)
    if found.exact:
        assert found.loss == pytest.approx(brute_force(small, limits), rel=1e-6)


def test_a_budget_that_nothing_keeps_has_no_answer(allocator: Allocator) -> None:
    assert allocator.solve({"latency": 0.99 * allocator.cheapest("latency")}) is None
    assert allocator.solve({"latency": 1.01 * allocator.cheapest("latency")}) is not None


def test_a_budget_that_everything_keeps_changes_nothing(allocator: Allocator, plain_spec: ViTSpec) -> None:
    found = allocator.solve({"latency": 2.0, "parameters": 1e9})

    assert found is not None
    assert found.shapes == tuple(BlockShape.of(block) for block in plain_spec.blocks)
    assert found.loss == 0


def test_what_loses_least_goes_first(allocator: Allocator) -> None:
    found = allocator.solve({"latency": 0.6})
    assert found is not None
    sizes = [shape.mlp_width + shape.heads * (shape.d_qk + shape.d_v) for shape in found.shapes]

    assert sizes == sorted(sizes, reverse=True)  # the last block's prices are the lowest


def test_the_frontier_is_below_uniform_shapes(allocator: Allocator) -> None:
    frontier = allocator.frontier("latency", points=200)
    for one in allocator.uniform():
        cost = allocator.total(one, "latency")
        better = min(other.loss for other in frontier if allocator.total(other, "latency") <= cost * (1 + 1e-9) + 1e-4)
        assert better <= one.loss + 1e-9


def test_uniform_shapes_are_the_same_share_everywhere(allocator: Allocator) -> None:
    (half,) = allocator.uniform(shares=(0.5,))

    assert {(shape.heads, shape.d_qk, shape.d_v, shape.mlp_width) for shape in half.shapes} == {(2, 4, 4, 32)}
