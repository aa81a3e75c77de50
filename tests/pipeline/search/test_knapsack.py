"""The knapsack: against brute force, never over the budget, monotone, and the same answer for any unit."""

import math
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.search.knapsack import Knapsack, Option

UNITS = 4096
# Whole costs that sum to fewer than UNITS: no rounding, so the answer must be the true optimum.
whole = st.builds(Option, cost=st.integers(0, 60).map(float), loss=st.floats(-2, 10))
rough = st.builds(Option, cost=st.floats(0, 60).map(lambda cost: round(cost, 6)), loss=st.floats(-2, 10))


def groups_of(option: st.SearchStrategy[Option]) -> st.SearchStrategy[list[list[Option]]]:
    return st.lists(st.lists(option, min_size=1, max_size=5), min_size=1, max_size=4)


def brute_force(groups: list[list[Option]], budget: float) -> float | None:
    within = [picked for picked in product(*groups) if sum(one.cost for one in picked) <= budget]
    return min((sum(one.loss for one in picked) for picked in within), default=None)


@given(groups=groups_of(whole), budget=st.integers(0, 250))
def test_whole_costs_give_the_true_optimum(groups: list[list[Option]], budget: int) -> None:
    knapsack = Knapsack(groups, units=max(1, int(sum(max(o.cost for o in g) - min(o.cost for o in g) for g in groups))))
    found, best = knapsack.solve(budget), brute_force(groups, budget)

    assert (found is None) == (best is None)
    if found is not None and best is not None:
        assert math.isclose(found.loss, best, abs_tol=1e-9)
        assert found.cost <= budget


@given(groups=groups_of(rough), budget=st.floats(0, 250))
@settings(max_examples=200)
def test_a_budget_is_never_exceeded_and_hardly_wasted(groups: list[list[Option]], budget: float) -> None:
    knapsack = Knapsack(groups, units=UNITS)
    found = knapsack.solve(budget)

    if found is None:
        assert knapsack.cheapest > budget
        return
    assert found.cost <= budget * (1 + 1e-9)
    slack = len(groups) * (knapsack.dearest - knapsack.cheapest) / UNITS  # one unit of rounding per group
    within = brute_force(groups, budget - slack)
    assert within is None or found.loss <= within + 1e-9


@given(groups=groups_of(rough), budgets=st.tuples(st.floats(0, 250), st.floats(0, 250)))
def test_a_larger_budget_never_loses_more(groups: list[list[Option]], budgets: tuple[float, float]) -> None:
    knapsack = Knapsack(groups, units=UNITS)
    less, more = knapsack.solve(min(budgets)), knapsack.solve(max(budgets))

    if less is not None:
        assert more is not None
        assert more.loss <= less.loss + 1e-9


def test_the_picks_are_what_cost_and_loss_say() -> None:
    groups = [[Option(3, 0), Option(1, 2)], [Option(4, 0), Option(2, 1), Option(0, 9)]]

    found = Knapsack(groups, units=6).solve(5)

    assert found is not None
    assert found.picks == (0, 1)
    assert (found.cost, found.loss) == (5, 1)


def test_the_frontier_falls_from_the_cheapest_to_no_loss() -> None:
    groups = [[Option(cost, (10 - cost) ** 2 * weight) for cost in range(11)] for weight in (1, 2, 3)]

    points = Knapsack(groups).frontier(points=31)

    assert points[0].cost == 0
    assert points[-1].loss == 0
    assert all(a.loss > b.loss and a.cost < b.cost for a, b in pairwise(points))


def test_options_of_equal_cost_take_the_better() -> None:
    found = Knapsack([[Option(1, 5), Option(1, 3), Option(1, 4)]]).solve(1)

    assert found is not None
    assert found.picks == (1,)


def test_nothing_to_choose_costs_what_it_costs() -> None:
    found = Knapsack([[Option(2.5, 1)], [Option(0.5, 1)]]).solve(3.0)

    assert found is not None
    assert found.cost == 3.0
    assert Knapsack([[Option(2.5, 1)]]).solve(2.0) is None


@pytest.mark.parametrize("bad", [Option(-1, 0), Option(math.nan, 0), Option(1, math.inf)])
def test_costs_and_losses_must_be_numbers(bad: Option) -> None:
    with pytest.raises(ValueError, match="group 1"):
        Knapsack([[Option(1, 0)], [bad]])
    with pytest.raises(ValueError, match="no options"):
        Knapsack([[]])
