"""From a budget to what the parts of a model may cost. Pure."""

from collections.abc import Mapping

from pipeline.search.latency import LatencyTable
from targets.errors import InputError
from targets.profile import Budget

SEARCHED = ("latency_ratio", "latency_p50_ms", "parameters", "macs", "engine_bytes")
"""keys of the budget that a search can keep"""


class UnreachableError(InputError):
    """No shapes of the model keep the limits."""


def needs_a_limit(budget: Budget) -> None:
    """Raise InputError where nothing in the budget says how small the model has to become."""
    if all(getattr(budget, name) is None for name in SEARCHED):
        raise InputError(
            "prune with blocks: auto needs to know how small the model has to become: set one of "
            f"{', '.join(f'budget.{name}' for name in SEARCHED)}, e.g. --set budget.latency_ratio=0.6"
        )


def limits_of(budget: Budget, table: LatencyTable) -> dict[str, float]:
    """Return latency (as a share of the unpruned engine's), parameters and macs, as far as the budget names them."""
    found: dict[str, float] = {}
    ratios = [
        limit
        for limit in (
            budget.latency_ratio,
            budget.latency_p50_ms and budget.latency_p50_ms / table.unpruned_p50_ms,
        )
        if limit is not None
    ]
    if ratios:
        found["latency"] = min(ratios)
    params = [float(budget.parameters)] if budget.parameters is not None else []
    if budget.engine_bytes is not None:
        params.append((budget.engine_bytes - table.bytes_fixed) / table.bytes_per_param)
    if params:
        found["parameters"] = min(params)
    if budget.macs is not None:
        found["macs"] = float(budget.macs)
    return found


def refuse_unreachable(limits: Mapping[str, float], cheapest: Mapping[str, float]) -> None:
    """Raise UnreachableError for a limit that no legal shapes keep."""
    for name, limit in limits.items():
        if limit < cheapest[name]:
            raise UnreachableError(
                f"no shapes of this model keep {WORDS[name]} within {_number(limit)}: the smallest that may be had is "
                f"{_number(cheapest[name])}; allow more, or choose a smaller model"
            )


WORDS = {
    "latency": "latency (engine / unpruned)",
    "parameters": "parameters",
    "macs": "multiply-accumulates",
}


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
