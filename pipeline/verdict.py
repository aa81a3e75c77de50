"""The verdict: what must hold, against what was measured.

An interval decides, not a value: within when all of it is inside the budget, over when all of it is outside, else
undecided. A figure that has no interval by its nature (a size, a percentile that is already a bound) decides by itself.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from pipeline.report import figures
from pipeline.report.record import Accuracy, BudgetCheck, Latency, LatencyFigures, Parity, Status, Verdict
from targets.profile import Budget

WORST_FIRST: tuple[Status, ...] = ("failed", "over", "undecided", "not_measured", "within")
THROTTLED = "the machine throttled"
NEVER_RAN = "the engine never ran"
UNITS = {
    "accuracy_drop_points": "points",
    "latency_p50_ms": "ms",
    "latency_p99_ms": "ms",
    "latency_ratio": "engine / unpruned",
    "memory_bytes": "bytes",
    "engine_bytes": "bytes",
    "parameters": "parameters",
    "macs": "multiply-accumulates of one image",
    "power_w": "W",
    "energy_mj": "mJ",
}


def judge(
    budget: Budget,
    *,
    accuracy: Accuracy | None,
    latency: Latency | None,
    memory_bytes: float | None,
    engine_bytes: int | None,
    parameters: int | None = None,
    macs: int | None = None,
    parity: Parity | None,
    baseline_runtime: str = "",
    never_ran: str = "",
    broken: Sequence[str] = (),
) -> Verdict:
    """Hold every key of the budget against its measurement; the worst check is the verdict.

    memory_bytes, engine_bytes, parameters and macs are the engine's; baseline_runtime is what the speed-up refers to.
    never_ran: why the engine did not run, for a target that is not at hand. broken: what the target's profile demands
    of layers and did not happen.
    """
    checks = _told(
        *engine_checks(
            budget,
            accuracy=accuracy,
            engine=latency.engine if latency is not None else None,
            level=latency.level if latency else "",
            memory_bytes=memory_bytes,
        ),
        _latency_ratio(budget.latency_ratio, latency),
        _check("engine_bytes", budget.engine_bytes, engine_bytes),
        _check("parameters", budget.parameters, parameters),
        _check("macs", budget.macs, macs),
    )
    if never_ran:
        checks = [check if check.value is not None else check.replace(note=check.note or NEVER_RAN) for check in checks]
    found: list[Status] = [check.status for check in checks] or ["not_measured"]
    if never_ran:
        found.append("not_measured")
    if broken or (parity is not None and not parity.passed):
        found.append("failed")
    status = min(found, key=WORST_FIRST.index)
    return Verdict(
        status=status,
        sentence=_sentence(status, checks, accuracy, latency, parity, baseline_runtime, never_ran, broken),
        checks=tuple(checks),
    )


NO_IMAGES = "no images to evaluate on"


def engine_checks(
    budget: Budget,
    *,
    accuracy: Accuracy | None,
    engine: LatencyFigures | None,
    level: str,
    memory_bytes: float | None,
    without: str = NO_IMAGES,
) -> list[BudgetCheck]:
    """What can be judged of an engine alone, on whatever machine it ran: accuracy, latency, memory, power, energy.

    without: why there is no accuracy, where there is none.
    """
    return _told(
        _accuracy(budget.accuracy_drop_points, accuracy, without),
        _latency_p50(budget.latency_p50_ms, engine),
        _latency_p99(budget.latency_p99_ms, engine, level),
        _check("memory_bytes", budget.memory_bytes, memory_bytes),
        _metered("power_w", budget.power_w, engine),
        _metered("energy_mj", budget.energy_mj, engine),
    )


def judge_engine(
    budget: Budget,
    *,
    accuracy: Accuracy | None,
    engine: LatencyFigures,
    level: str,
    memory_bytes: float | None,
    without: str = NO_IMAGES,
) -> Verdict | None:
    """The same for an engine alone, measured again; None where nothing of it has a limit."""
    checks = engine_checks(
        budget, accuracy=accuracy, engine=engine, level=level, memory_bytes=memory_bytes, without=without
    )
    if not checks:
        return None
    status = min((check.status for check in checks), key=WORST_FIRST.index)
    clauses = "; ".join(_clause(check, accuracy) for check in checks if check.status == status)
    return Verdict(status=status, sentence=f"{figures.STATUS_WORDS[status]}: {clauses}", checks=tuple(checks))


def exit_code(status: Status, *, strict: bool = False) -> int:
    """What the command line ends with: 0 keeps a pipeline going, 1 stops it; strict: 0 for `within` only."""
    return int(status in ("over", "failed") or (strict and status != "within"))


def _accuracy(limit: float | None, accuracy: Accuracy | None, without: str) -> BudgetCheck | None:
    if limit is None or accuracy is None:
        return _check("accuracy_drop_points", limit, None, note=without)
    if accuracy.proxy:
        return _check("accuracy_drop_points", limit, None, note=f"by proxy: {_drop(accuracy, None)}")
    if accuracy.drop_ci95 is None:
        # One number for the whole set cannot show that a budget is kept; beyond the budget it is a warning to heed.
        status: Status = "over" if accuracy.drop_points > limit else "undecided"
        note = "the metric gives one number and so no interval"
        return _check("accuracy_drop_points", limit, accuracy.drop_points, note=note, status=status)
    needed = accuracy.images_to_decide
    return _check(
        "accuracy_drop_points",
        limit,
        accuracy.drop_points,
        interval=accuracy.drop_ci95,
        note=f"about {needed:,} images would decide" if needed else "",
    )


def _told(*checks: BudgetCheck | None) -> list[BudgetCheck]:
    """Those that the budget has, in one order."""
    return sorted((one for one in checks if one is not None), key=lambda check: list(UNITS).index(check.name))


def _latency_p50(limit: float | None, engine: LatencyFigures | None) -> BudgetCheck | None:
    if engine is None:
        return _check("latency_p50_ms", limit, None)
    return _timed("latency_p50_ms", limit, engine.p50, {"engine": engine}, interval=engine.ci95)


def _latency_p99(limit: float | None, engine: LatencyFigures | None, level: str) -> BudgetCheck | None:
    if engine is None:
        return _check("latency_p99_ms", limit, None)
    if engine.p99 is None:
        return _check("latency_p99_ms", limit, None, note=f"level {level}: {engine.queries:,} queries back no p99")
    return _timed("latency_p99_ms", limit, engine.p99, {"engine": engine})


def _latency_ratio(limit: float | None, latency: Latency | None) -> BudgetCheck | None:
    if latency is None:
        return _check("latency_ratio", limit, None)
    both = {"unpruned": latency.unpruned, "engine": latency.engine}
    return _timed("latency_ratio", limit, latency.ratio, both, interval=latency.ratio_ci95)


def _metered(
    name: Literal["power_w", "energy_mj"], limit: float | None, engine: LatencyFigures | None
) -> BudgetCheck | None:
    """Power or energy of the widest scope that was measured: a board's counts everything that its GPU's does."""
    if engine is None or not engine.energy:
        return _check(name, limit, None, note=(engine.energy_note if engine else "") or "nothing tells power here")
    used = engine.energy[0]
    value = used.mean_power_w if name == "power_w" else 1000 * used.joules_per_image
    check = _timed(name, limit, value, {"engine": engine})
    return check and check.replace(note="; ".join(filter(None, (f"of {used.covers}", check.note))))


def _timed(
    name: str,
    limit: float | None,
    value: float,
    measured: Mapping[str, LatencyFigures],
    *,
    interval: tuple[float, float] | None = None,
) -> BudgetCheck | None:
    """One line about time: undecided where the machine slowed itself down. measured: what it is of, by role."""
    reasons = sorted({word for one in measured.values() for word in one.throttled})
    if reasons:
        note = f"{THROTTLED} ({', '.join(reasons)}); measure again when it is cool"
        return _check(name, limit, value, interval=interval, note=note, status="undecided")
    return _check(name, limit, value, interval=interval, note=_stability(measured))


def _check(
    name: str,
    limit: float | None,
    value: float | None,
    *,
    interval: tuple[float, float] | None = None,
    note: str = "",
    status: Status | None = None,
) -> BudgetCheck | None:
    """One line of the verdict; None where the budget has no such key."""
    if limit is None:
        return None
    status = status or _status(limit, value, interval)
    return BudgetCheck(
        name=name, unit=UNITS[name], limit=limit, value=value, interval=interval, status=status, note=note
    )


def _status(limit: float, value: float | None, interval: tuple[float, float] | None) -> Status:
    if value is None:
        return "not_measured"
    low, high = interval or (value, value)
    if high <= limit:
        return "within"
    return "over" if low > limit else "undecided"


def _stability(measured: Mapping[str, LatencyFigures]) -> str:
    unstable = [role for role, one in measured.items() if not one.stable]
    return f"the warm-up of {' and '.join(unstable)} did not settle" if unstable else ""


# The sentence.


def _sentence(
    status: Status,
    checks: list[BudgetCheck],
    accuracy: Accuracy | None,
    latency: Latency | None,
    parity: Parity | None,
    baseline_runtime: str,
    never_ran: str,
    broken: Sequence[str],
) -> str:
    """What decided comes first, then speed and accuracy; the rest is in the table of checks."""
    first = [_clause(check, accuracy) for check in checks if check.status == status != "within"]
    if never_ran:
        first = [never_ran] if status == "not_measured" else [*first, never_ran]
    if broken:
        first = list(broken)
    if parity is not None and not parity.passed:
        first = [
            f"the {'graph' if parity.proxy else 'engine'}'s outputs are not the model's: "
            f"cosine {figures.number(parity.cosine, 4)}, largest error "
            f"{parity.max_abs_error:.3g} on {parity.images:,} images, wanted {figures.visible(parity.tolerance)}"
        ]
    told = {check.name for check in checks if check.status == status != "within"} if status != "failed" else set()
    if accuracy is not None and accuracy.proxy:
        first.append(f"{_drop(accuracy, None)}, by {accuracy.proxy}")
        told = {"accuracy_drop_points"}
    if latency is not None:
        first.append(_speed(latency, baseline_runtime))
    if accuracy is not None and "accuracy_drop_points" not in told:
        check = next((one for one in checks if one.name == "accuracy_drop_points"), None)
        first.append(_clause(check, accuracy) if check else _drop(accuracy, None))
    head = figures.STATUS_WORDS[status] if checks or status == "failed" else figures.NO_BUDGET
    return ": ".join(part for part in (head, "; ".join(first)) if part)


def _clause(check: BudgetCheck, accuracy: Accuracy | None) -> str:
    """One check in words."""
    if check.name == "accuracy_drop_points" and accuracy is not None:
        return _drop(accuracy, check)
    name = figures.BUDGET_NAMES[check.name]
    if check.value is None:
        return f"{name} not measured" + (f" ({check.note})" if check.note else "")
    interval = f" {figures.budget_interval(check.name, check.interval, near=check.limit)}" if check.interval else ""
    value = figures.budget_value(check.name, check.value, near=check.limit)
    void = f" ({check.note})" if THROTTLED in check.note else ""
    return f"{name} {value}{interval} of at most {figures.budget_value(check.name, check.limit)}{void}"


def _drop(accuracy: Accuracy, check: BudgetCheck | None) -> str:
    """`top-1 drop 0.6 points [0.1, 1.4] of at most 2.0, on 1,100 images`."""
    values = [accuracy.drop_points, *(accuracy.drop_ci95 or ())]
    decimals = figures.telling_decimals(values, check.limit if check else None)
    text = f"{figures.metric_name(accuracy.metric)} drop {figures.points(accuracy.drop_points, decimals=decimals)}"
    if accuracy.drop_ci95 is not None:
        text += f" {figures.bracket(accuracy.drop_ci95, decimals)}"
    if check is not None:
        text += f" of at most {figures.number(check.limit, decimals)}"
    text += f", on {accuracy.images:,} images"
    return f"{text} ({check.note})" if check is not None and check.note else text


def _speed(latency: Latency, baseline_runtime: str) -> str:
    """`1.9x faster than fp32 ONNX Runtime (8.4 → 4.3 ms)`."""
    baseline = f"fp32 {figures.runtime_name(baseline_runtime)}" if baseline_runtime else "the fp32 baseline"
    change = figures.milliseconds_change(latency.baseline.p50, latency.engine.p50)
    low, high = latency.speedup_ci95
    if low <= 1 <= high:
        return f"no faster or slower than {baseline} beyond noise ({change})"
    if latency.speedup > 1:
        return f"{figures.significant(latency.speedup, 2)}x faster than {baseline} ({change})"
    return f"{figures.significant(1 / latency.speedup, 2)}x slower than {baseline} ({change})"
