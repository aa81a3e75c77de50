"""Which pairs of runtime and precision a search is for, and which of them wins. Pure.

The pair whose unpruned engine is the fastest goes first. Another one is slower, so at the same milliseconds more of it
has to go; it can win only where its precision loses less by itself than the first pair loses altogether. How much more
would go is estimated by the first pair's own curve of loss against time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.search.record import Decision

BENEFIT = 0.5
"""share of a foretold loss that counts: another runtime's times may fall faster than the first one's"""
UNITS = {"kl_nats": "nats of KL divergence", "feature_error": "of the features' energy"}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A runtime and precision, by its unpruned engine."""

    name: str
    p50_ms: float
    """measured side by side with the others'"""
    loss: float
    """of its precision: unpruned answers against the source's, in the unit of the search"""


def worth_a_search(first: Pair, found: Decision, others: Sequence[Pair]) -> Pair | None:
    """The fastest of the other pairs that may still win; None: there is none, or latency is no limit.

    found: what the search for the first pair decided.
    """
    if "latency" not in found.limits:
        return None
    reached = first.loss + found.loss
    open_ones = [one for one in others if one.loss + BENEFIT * foretold(first, found, one) < reached]
    return min(open_ones, key=lambda one: one.p50_ms, default=None)


def foretold(first: Pair, found: Decision, other: Pair) -> float:
    """Loss of pruning at which the first pair would be as fast as the other one has to become, by its own curve."""
    share = as_fast(first, found, other)
    whole = [one.loss for one in found.grounds if one.ratio is not None and one.ratio <= share]
    pruned = [one.loss for one in found.pareto if one.ratio <= share]
    return min([*whole, *pruned], default=0.0)


def as_fast(first: Pair, found: Decision, other: Pair) -> float:
    """Share of the other pair's unpruned time at which it takes the milliseconds that the first one may."""
    return found.limits["latency"] * first.p50_ms / other.p50_ms


def better(
    first: Pair, other: Pair, decisions: Mapping[str, Decision], *, failed: str = ""
) -> tuple[Pair, dict[str, str]]:
    """The pair that loses less altogether at the same milliseconds, and why the other one lost.

    decisions: by name; of a pair that is not in it no shapes are that fast, or its search failed. One that was measured
    within its limit goes before one that was not.
    """
    if failed:
        return first, {other.name: f"its search failed: {failed}"}
    if other.name not in decisions:
        return first, {other.name: f"no shapes of it are as fast as {first.name} may be"}
    totals = {one.name: one.loss + decisions[one.name].loss for one in (first, other)}
    order = {name: (not decisions[name].kept, total) for name, total in totals.items()}
    won, lost = (first, other) if order[first.name] <= order[other.name] else (other, first)
    unit = UNITS[decisions[won.name].unit]
    if decisions[won.name].kept and not decisions[lost.name].kept:
        return won, {lost.name: f"searched, too: no whole model of it was measured as fast as {won.name} may be"}
    words = (
        f"searched, too: as fast as {won.name} it loses {totals[lost.name]:.2g} {unit}, "
        f"that one {totals[won.name]:.2g} (precision and pruning)"
    )
    return won, {lost.name: words}
