"""Which grounds are priced and built, and that none which could have won is left out."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.search.best_first import Pursuit, Reached
from pipeline.search.grounds import Glimpse, Tried

LOSSES = st.floats(0, 2, allow_nan=False)


def glimpse(name: str, loss: float, guess: float | None, *, ratio: float = 0.5, fits: bool = False) -> Glimpse:
    model: Any = SimpleNamespace(title=name)
    return Glimpse(model=model, spec=None, loss=loss, ratio=ratio, estimate=guess, fits=fits)  # type: ignore[arg-type]


class Ground(Tried):
    """A ground with a name, what it promises and what its rounds come to."""

    def __init__(self, name: str, promise: float | None, loss: float | None, *, kept: bool = True) -> None:
        self.name, self.promise, self.outcome, self.kept = name, promise, loss, kept

    @property
    def loss(self) -> float:
        return 0.0

    @property
    def total(self) -> float | None:
        return self.promise


class Played:
    """A pursuit on grounds whose promises and outcomes are known; writes down what was asked."""

    def __init__(self, outcomes: dict[str, Ground], *, priced: int = 9) -> None:
        self.asked: list[str] = []
        self.outcomes = outcomes
        self.pursuit = Pursuit(price=self.price, go=self.go, priced=priced)

    def price(self, one: Glimpse, best: float | None) -> list[Tried]:
        self.asked.append(f"price {one.model.title}")
        return [self.outcomes[one.model.title]]

    def go(self, one: Tried) -> Reached | None:
        assert isinstance(one, Ground)
        self.asked.append(f"build {one.name}")
        if one.outcome is None:
            return None
        return Reached(ground=one, best=SimpleNamespace(loss=one.outcome), rounds=(), kept=one.kept)  # type: ignore[arg-type]

    def run(self, first: Ground, glimpses: list[Glimpse]) -> str | None:
        found = self.pursuit.run([first], glimpses)
        return None if found is None else found.ground.name  # type: ignore[attr-defined, no-any-return]


def test_what_promises_most_goes_first_and_what_cannot_win_costs_nothing() -> None:
    played = Played({"160": Ground("160", 0.35, 0.4), "176": Ground("176", 0.6, 0.6)})

    found = played.run(Ground("224", 1.2, 1.2), [glimpse("176", 0.2, 0.3), glimpse("160", 0.3, 0.0)])

    assert found == "160"
    assert played.asked == ["price 160", "build 160"]
    assert [one.model.title for one in played.pursuit.left] == ["176"]


def test_a_promise_that_was_not_held_lets_the_next_one_try() -> None:
    outcomes = {"160": Ground("160", 0.35, 0.55), "176": Ground("176", 0.45, 0.5)}
    played = Played(outcomes)

    found = played.run(Ground("224", 1.2, 1.2), [glimpse("176", 0.2, 0.3), glimpse("160", 0.3, 0.0)])

    assert found == "176"
    assert played.asked == ["price 160", "build 160", "price 176", "build 176"]
    assert played.pursuit.left == []


def test_at_most_so_many_are_priced_but_what_fits_whole_needs_no_prices() -> None:
    outcomes = {name: Ground(name, promise, promise + 0.5) for name, promise in (("a", 0.1), ("b", 0.2), ("c", 0.4))}
    seen = [glimpse("a", 0.1, 0.0), glimpse("b", 0.1, 0.1), glimpse("c", 0.4, 0.0, fits=True)]
    played = Played(outcomes, priced=1)

    found = played.run(Ground("224", 1.2, 1.2), seen)

    assert found == "a"
    assert played.asked == ["price a", "build a", "price c", "build c"]


def test_one_that_keeps_the_limit_beyond_doubt_is_better_than_one_that_may() -> None:
    played = Played({"160": Ground("160", 0.3, 0.3, kept=False)})

    assert played.run(Ground("224", 0.4, 0.5), [glimpse("160", 0.3, 0.0)]) == "224"


def test_what_is_a_little_too_slow_whole_is_priced_then() -> None:
    whole, cut = Ground("whole", 0.2, 0.2, kept=False), Ground("cut", 0.21, 0.22)
    played = Played({"176": whole})
    played.pursuit.price = lambda one, best: [whole if one.fits else cut]

    assert played.run(Ground("224", 1.2, 1.2), [glimpse("176", 0.2, 0.0, fits=True)]) == "cut"
    assert played.asked == ["build whole", "build cut"]
    assert [one.name for one in played.pursuit.tried] == ["224", "cut"]  # type: ignore[attr-defined]


def priced_after_all(cut: Ground, *, priced: int = 9) -> Played:
    """A size that is a little too slow whole, and what its prices make of it."""
    whole = Ground("whole", 0.2, 0.2, kept=False)
    played = Played({}, priced=priced)

    def price(one: Glimpse, best: float | None) -> list[Ground]:
        played.asked.append("take whole" if one.fits else "price")
        return [whole if one.fits else cut]

    played.pursuit.price = price  # type: ignore[assignment]
    return played


def test_what_was_cut_stands_before_what_is_too_slow_whole_though_neither_keeps_the_limit_beyond_doubt() -> None:
    played = priced_after_all(Ground("cut", 0.21, 0.25, kept=False))

    assert played.run(Ground("224", None, None), [glimpse("176", 0.2, 0.0, fits=True)]) == "cut"
    assert [one.name for one in played.pursuit.tried] == ["224", "cut"]  # type: ignore[attr-defined]


def test_the_chosen_ground_is_among_those_that_are_told() -> None:
    played = priced_after_all(Ground("cut", 0.21, None))

    assert played.run(Ground("224", None, None), [glimpse("176", 0.2, 0.0, fits=True)]) == "whole"
    assert [one.name for one in played.pursuit.tried] == ["224", "whole", "cut"]  # type: ignore[attr-defined]


def test_nothing_is_priced_that_no_round_is_left_for() -> None:
    played = priced_after_all(Ground("cut", 0.21, 0.22), priced=1)

    assert played.run(Ground("224", 0.1, 0.9, kept=False), [glimpse("176", 0.2, 0.0, fits=True)]) == "whole"
    assert played.asked == ["build 224", "take whole", "build whole"]


def test_what_is_too_slow_whole_stays_where_no_prices_are_left() -> None:
    played = Played({"176": Ground("176", 0.2, 0.2, kept=False)}, priced=0)

    assert played.run(Ground("224", None, None), [glimpse("176", 0.2, 0.0, fits=True)]) == "176"
    assert [one.name for one in played.pursuit.tried] == ["224", "176"]  # type: ignore[attr-defined]


def test_where_nothing_keeps_the_limits_the_fastest_tells_how_far_it_comes() -> None:
    seen = [glimpse("192", 0.1, None, ratio=0.8), glimpse("160", 0.3, None, ratio=0.5)]
    played = Played({"160": Ground("160", None, None)})

    assert played.run(Ground("224", None, None), seen) is None
    assert played.asked == ["price 160"]
    assert [one.name for one in played.pursuit.tried] == ["224", "160"]  # type: ignore[attr-defined]


@given(
    first=st.tuples(LOSSES, LOSSES),
    others=st.lists(st.tuples(LOSSES, LOSSES, LOSSES, st.booleans()), max_size=5),
)
def test_where_no_promise_is_too_high_the_best_of_all_is_found(
    first: tuple[float, float], others: list[tuple[float, float, float, bool]]
) -> None:
    outcomes = {
        str(index): Ground(str(index), seen + more, seen + more + most)
        for index, (seen, more, most, _) in enumerate(others)
    }
    seen = [glimpse(str(index), one[0], 0.0, fits=one[3]) for index, one in enumerate(others)]
    played = Played(outcomes)
    start = Ground("first", first[0], sum(first))

    found = played.pursuit.run([start], seen)

    assert found is not None
    assert found.loss == min([sum(first)] + [one.outcome for one in outcomes.values() if one.outcome is not None])
