"""Who wins among measured candidates, and in words why each other lost. Pure: measurements in, rows out.

A budget's limits come first, then speed: a candidate that is beyond one of them would only win to fail the verdict.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.report import figures
from pipeline.report.record import CandidateRow
from stages.compile.stage import UNTOLD
from targets.board import COMPUTES
from targets.errors import StageError
from targets.profile import Budget

if TYPE_CHECKING:
    from pipeline.plan import Candidate
    from targets.measure.measurement import Measurement

Layers = Callable[[str], list[dict[str, Any]]]
"""rows of `Session.layers` of a candidate's engine, by its name"""

TOLD, TELLING_SHARE = 3, 0.05
"""kinds of operators that a slower candidate's reason names, and the least share of time that is worth it"""
KINDS = {
    "softmax": "softmax",
    "layernorm": "layer norm",
    "mvn": "layer norm",
    "gelu": "GELU",
    "erf": "GELU",
    "quantize": "conversions",
    "convert": "conversions",
    "reorder": "reordering",
    "transpose": "transposing",
    "reshape": "reshaping",
    "add": "additions",
    "eltwise": "element-wise operations",
    "scaleddotproductattention": "attention",
    "fullyconnected": "matrix products",
    "matmul": "matrix products",
    "gemm": "matrix products",
    "conv": "convolutions",
}
"""words for kinds of operators, by what their names hold, the first that fits"""


def decide(
    candidates: "Mapping[str, Candidate]",
    *,
    agreements: Mapping[str, float],
    fit: Sequence[str],
    measured: "Mapping[str, Measurement]",
    sizes: Mapping[str, int],
    budget: Budget,
    layers: Layers,
) -> tuple[str, tuple[CandidateRow, ...]]:
    """Name of the winner, and a row for every candidate in their order, which is that of preference.

    fit: those that answer about as well as the best. A later one must be faster beyond doubt: the 95 % interval of the
    ratio excludes 1. Where all of them are beyond a limit, the fastest wins, and the verdict says what it is beyond.
    """
    from targets.measure.percentiles import p50_of, paired_ratio

    if not fit:
        told = ", ".join(f"{name} {share:.1%}" for name, share in agreements.items())
        raise StageError(f"no candidate gives finite answers: {told}")
    limits = {name: beyond(budget, measured[name], sizes[name]) for name in candidates}
    within = [name for name in fit if not limits[name]] or list(fit)
    winner = within[0]
    for name in within[1:]:
        _, (_, high) = paired_ratio(measured[name], measured[winner])
        if high < 1:
            winner = name
    best = max(share for share in agreements.values() if not math.isnan(share))
    rows = []
    for name, candidate in candidates.items():
        if name == winner:
            reason = _won(fit, within, limits[name])
        elif name not in fit:
            reason = _worse(agreements[name], best)
        elif limits[name] and name not in within:
            reason = limits[name]
        else:
            reason = slower(candidate, winner, *paired_ratio(measured[name], measured[winner]), layers(name))
        rows.append(
            CandidateRow(
                runtime=candidate.runtime,
                precision=candidate.precision,
                variant=candidate.variant,
                p50_ms=p50_of(measured[name]),
                agreement=None if math.isnan(agreements[name]) else agreements[name],
                bytes=sizes[name],
                chosen=name == winner,
                reason=reason,
            )
        )
    return winner, tuple(rows)


def beyond(budget: Budget, measured: "Measurement", size_bytes: int) -> str:
    """Limits of the budget that a candidate does not keep, in words; empty where it keeps all that are known.

    A median whose interval straddles a limit is not beyond it. No percentile is below the median, so what that is
    above a limit of p99, p99 is too.
    """
    from targets.measure.percentiles import p50_ci95, tail_percentile

    low, _ = p50_ci95(measured)
    samples = sorted(sample for run in measured.runs for sample in run.samples)
    p99 = tail_percentile(samples, 0.99) if measured.level == "full" else None
    memory = max((run.peak_memory_bytes or 0 for run in measured.runs), default=0) or None
    used = measured.energy[0] if measured.energy else None
    known: tuple[tuple[str, float | None], ...] = (
        ("engine_bytes", size_bytes),
        ("memory_bytes", memory),
        ("latency_p50_ms", low),
        ("latency_p99_ms", low if p99 is None else p99),
        ("power_w", used.mean_power_w if used else None),
        ("energy_mj", 1000 * used.joules_per_image if used else None),
    )
    hot = any(run.throttled for run in measured.runs)  # then times and power say nothing
    found = []
    for name, value in known:
        limit = None if hot and not name.endswith("_bytes") else getattr(budget, name)
        if limit is not None and value is not None and value > limit:
            least = "at least " if name == "latency_p50_ms" or (name == "latency_p99_ms" and p99 is None) else ""
            found.append(
                f"{figures.BUDGET_NAMES[name]} {least}{figures.budget_value(name, value, near=limit)}, "
                f"the budget allows {figures.budget_value(name, limit)}"
            )
    return "; ".join(found)


def slower(
    candidate: "Candidate", winner: str, ratio: float, interval: tuple[float, float], rows: list[dict[str, Any]]
) -> str:
    """`3 % slower here than openvino fp32 [1, 5]: 71 % of its time is in softmax and layer norm, unquantized`."""
    low, high = interval
    if low <= 1 <= high:
        head = f"no faster than {winner} beyond noise: takes {ratio:.2f} [{low:.2f}, {high:.2f}] times as long"
    elif low > 1 and ratio < 2:
        percents = [f"{100 * (one - 1):.{0 if ratio >= 1.02 else 1}f}" for one in (ratio, low, high)]
        head = f"{percents[0]} % slower here than {winner} [{percents[1]}, {percents[2]}]"
    else:
        head = f"takes {ratio:.2f} [{low:.2f}, {high:.2f}] times as long as {winner}"
    return "; ".join(filter(None, (head, where_time_goes(candidate.precision, rows))))


def where_time_goes(precision: str, rows: list[dict[str, Any]]) -> str:
    """Which kinds of operators take the time, and of a quantized engine which of it is not; empty where none is told.

    rows: of `Session.layers`. Kinds that take hardly any are left out.
    """
    whole = sum(row["seconds"] for row in rows)
    if not whole:
        return ""
    computes = COMPUTES.get(precision, precision)
    told = [row for row in rows if row["precision"] != UNTOLD]
    plain = [row for row in told if row["precision"] != computes]
    if computes == "fp32" or not plain:
        kinds = _by_kind(rows)
        return "its time: " + ", ".join(f"{_percent(share / whole)} {kind}" for kind, share in kinds) if kinds else ""
    kinds = [(kind, seconds) for kind, seconds in _by_kind(plain) if seconds / whole >= TELLING_SHARE][:TOLD]
    if not kinds:
        return ""
    share = sum(seconds for _, seconds in kinds) / whole
    how = "unquantized" if computes in ("int8", "fp8") else f"not in {computes}"
    return f"{_percent(share)} of its time is in {_listed([kind for kind, _ in kinds])}, {how}"


def _by_kind(rows: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """Seconds by kind of operator, most first, only those worth telling among these rows."""
    seconds: dict[str, float] = {}
    for row in rows:
        kind = kind_of(str(row["operator"]))
        seconds[kind] = seconds.get(kind, 0.0) + row["seconds"]
    whole = sum(seconds.values()) or 1.0
    found = sorted(seconds.items(), key=lambda pair: -pair[1])
    return [(kind, time) for kind, time in found if time / whole >= TELLING_SHARE][:TOLD]


def kind_of(operator: str) -> str:
    """Words for a kind of operator; its own name where there are none."""
    plain = operator.lower().replace("_", "").replace("normalization", "norm")
    return next((words for part, words in KINDS.items() if part in plain), operator)


def _won(fit: Sequence[str], within: Sequence[str], beyond_what: str) -> str:
    if beyond_what:
        return f"fastest of those that agree with the source, all of which are beyond the budget: {beyond_what}"
    if len(within) < len(fit):
        return "fastest of those that agree with the source and keep the budget's limits"
    return "fastest of those that agree with the source"


def _worse(agreement: float, best: float) -> str:
    if math.isnan(agreement):
        return "its answers are not finite"
    return f"agrees with the source on {agreement:.1%} of select, the best on {best:.1%}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
