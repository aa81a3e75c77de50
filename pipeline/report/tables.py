"""The rows that every rendering of a report shows: HTML, Markdown and terminal write the same figures."""

from dataclasses import dataclass

from pipeline.report import figures
from pipeline.report.record import Change, Latency, Parity, Report, StageRow

NO_ACCURACY = "the recipe names no images to evaluate on"
NO_LATENCY = "no engine was timed"
NO_MEMORY = "the platform reported none"
BLOCKS = ("command", "recipe", "latency")
"""what of `reproduce` is shown as lines of their own"""


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One figure of the baseline against the engine's."""

    label: str
    before: str | None = None
    after: str | None = None
    change: str = ""
    """the change in words"""
    detail: str = ""
    """what to know beside it; why, where it is not measured"""
    values: tuple[float, float] | None = None
    """the two numbers, for drawing"""


@dataclass(frozen=True, kw_only=True)
class LatencyRow:
    """Latency of one engine."""

    role: str
    name: str
    p50: str
    interval: str
    p90: str
    p99: str
    queries: str
    note: str


MICROSECOND = 1e-3
"""in milliseconds: floors below say nothing"""


def headlines(report: Report) -> list[Headline]:
    """What became of accuracy, speed and size."""
    size = report.size
    built = report.proof is None or report.proof.engine != "not built"
    return [
        _accuracy(report),
        _latency(report),
        _throughput(report),
        _memory(report),
        *_energy(report),
        _size(
            "engine size" if built else "graph size",
            figures.size(size.bytes.before),
            figures.size(size.bytes.after),
            size.bytes,
        ),
        _size("parameters", figures.count(size.params.before), figures.count(size.params.after), size.params),
        _size("MACs", figures.count(size.macs.before), figures.count(size.macs.after), size.macs),
    ]


def latency_rows(report: Report, latency: Latency) -> list[LatencyRow]:
    """The three engines of one comparison."""
    rows = []
    for role in figures.ROLES:
        one = figures.figures_of(latency, role)
        decimals = figures.decimals_of(one.p50, 3)
        unbacked = [name for name, value in (("p90", one.p90), ("p99", one.p99)) if value is None]
        rows.append(
            LatencyRow(
                role=role,
                name=figures.engine_name(report, role),
                p50=figures.number(one.p50, decimals),
                interval=figures.bracket(one.ci95, decimals),
                p90=figures.NOT_MEASURED if one.p90 is None else figures.number(one.p90, decimals),
                p99=figures.NOT_MEASURED if one.p99 is None else figures.number(one.p99, decimals),
                queries=f"{one.queries:,} in {one.processes} process{'es' if one.processes != 1 else ''}",
                note="; ".join(
                    note
                    for note, holds in (
                        ("warm-up did not settle", not one.stable),
                        (f"the machine throttled: {', '.join(one.throttled)}", one.throttled),
                        (f"too few queries for {' and '.join(unbacked)}", unbacked),
                    )
                    if holds
                ),
            )
        )
    return rows


def speed(latency: Latency) -> str:
    """`1.94x [1.90, 1.98] the speed of the baseline, 0.61 [0.59, 0.63] of the unpruned model's time`."""
    return (
        f"{latency.speedup:.2f}x {figures.bracket(latency.speedup_ci95, 2)} the speed of the baseline, "
        f"{latency.ratio:.2f} {figures.bracket(latency.ratio_ci95, 2)} of the unpruned model's time"
    )


def stage_time(stage: StageRow) -> str:
    """How long a step took, and whether this build waited for it."""
    return f"{figures.duration(stage.seconds)}{' (cached)' if stage.cached else ''}"


def accuracy_rows(report: Report) -> list[tuple[str, str]]:
    """Everything known about accuracy, as (what, how much)."""
    accuracy = report.accuracy
    if accuracy is None:
        return []
    drop = _accuracy(report)
    agreement = None if accuracy.metric in ("agreement", "knn_agreement") else accuracy.agreement
    rows: list[tuple[str, str | None]] = [
        (drop.label, f"{drop.before} → {drop.after}"),
        (
            "top-5",
            f"{figures.percent(accuracy.baseline_top5)} → {figures.percent(accuracy.engine_top5)}"
            if accuracy.baseline_top5 is not None and accuracy.engine_top5 is not None
            else None,
        ),
        ("drop, 95 % interval" if accuracy.drop_ci95 else "drop", drop.change.removeprefix("drop ")),
        ("same answer from both", None if agreement is None else figures.percent(agreement)),
        (
            "exact McNemar test",
            None if accuracy.mcnemar_p is None else f"p = {figures.significant(accuracy.mcnemar_p, 2)}",
        ),
        (
            "cosine of the features",
            None if accuracy.feature_cosine is None else figures.number(accuracy.feature_cosine, 4),
        ),
        ("images", f"{accuracy.images:,}"),
        ("images that would decide", f"about {accuracy.images_to_decide:,}" if accuracy.images_to_decide else None),
    ]
    return [(name, text) for name, text in rows if text is not None]


def outcomes(report: Report) -> list[tuple[str, str, int]]:
    """How many images each of the two gets right: (kind, words, images); empty where that is not counted."""
    accuracy = report.accuracy
    if accuracy is None or accuracy.lost is None or accuracy.gained is None:
        return []
    both = round(accuracy.baseline * accuracy.images) - accuracy.lost
    return [
        ("both", "both", both),
        ("only_baseline", "baseline only", accuracy.lost),
        ("only_engine", "engine only", accuracy.gained),
        ("neither", "neither", accuracy.images - both - accuracy.lost - accuracy.gained),
    ]


def parity_rows(report: Report) -> list[tuple[str, str]]:
    """The engine's outputs against torch's, as (what, how much)."""
    parity = report.parity
    if parity is None:
        return []
    return [
        ("cosine", figures.number(parity.cosine, 5)),
        ("largest error", f"{parity.max_abs_error:.4g}"),
        ("mean error", f"{parity.mean_abs_error:.4g}"),
        ("wanted", parity.tolerance),
        ("images", f"{parity.images:,}"),
        *_pair_rows(parity),
    ]


def _pair_rows(parity: Parity) -> list[tuple[str, str]]:
    """Engine against graph against torch, and the part of the model where the errors are largest."""
    rows = [
        (
            f"{one.one} against {one.other}",
            f"cosine {figures.number(one.cosine, 5)}, largest error {one.max_abs_error:.4g}",
        )
        for one in parity.pairs
    ]
    if parity.groups:
        rows.append(("after each block", ", ".join(f"{one.snr_db:.0f}" for one in parity.groups) + " dB"))
        worst = min(parity.groups, key=lambda one: one.snr_db)
        said = f"{worst.name}: {worst.snr_db:.1f} dB, cosine {figures.number(worst.cosine, 5)}"
        rows.append(("least like torch", f"{said} (by {parity.groups_by})"))
    return rows


def _accuracy(report: Report) -> Headline:
    accuracy = report.accuracy
    if accuracy is None:
        return Headline(label="accuracy", detail=NO_ACCURACY)
    values = [accuracy.drop_points, *(accuracy.drop_ci95 or ())]
    limits = [check.limit for check in report.verdict.checks if check.name == "accuracy_drop_points"]
    decimals = figures.telling_decimals(values, limits[0] if limits else None)
    interval = f" {figures.bracket(accuracy.drop_ci95, decimals)}" if accuracy.drop_ci95 else ""
    return Headline(
        label=figures.metric_name(accuracy.metric),
        before=figures.percent(accuracy.baseline),
        after=figures.percent(accuracy.engine),
        change=f"drop {figures.points(accuracy.drop_points, decimals=decimals)}{interval}",
        detail=f"on {accuracy.images:,} images",
        values=(accuracy.baseline, accuracy.engine),
    )


def _latency(report: Report) -> Headline:
    latency = report.latency_ms
    if latency is None:
        return Headline(label="latency p50", detail=NO_LATENCY)
    return Headline(
        label="latency p50",
        before=figures.milliseconds(latency.baseline.p50),
        after=figures.milliseconds(latency.engine.p50),
        change=f"{latency.speedup:.2f}x {figures.bracket(latency.speedup_ci95, 2)}",
        detail=f"batch {latency.batch}, {latency.level} level",
        values=(latency.baseline.p50, latency.engine.p50),
    )


def _throughput(report: Report) -> Headline:
    rates = report.throughput_ips
    if rates is None or rates.baseline is None or rates.engine is None:
        return Headline(label="throughput", detail=NO_LATENCY)
    return Headline(
        label="throughput",
        before=f"{figures.significant(rates.baseline)} images/s",
        after=f"{figures.significant(rates.engine)} images/s",
        change=figures.relative_change(rates.baseline, rates.engine),
        detail=f"batch {report.target.batch}, from the median",
        values=(rates.baseline, rates.engine),
    )


def proof_lists(report: Report) -> list[tuple[str, tuple[str, ...]]]:
    """(title, lines) of what was shown of the engine, what was not, and what is left to its board."""
    proof = report.proof
    if proof is None:
        return []
    broken = tuple(f"{line}: so the build failed" for line in proof.broken)
    shortest = proof.floor_ms or 0.0
    least = figures.milliseconds(shortest) if shortest >= MICROSECOND else "some nanoseconds"
    floor = (f"no query takes less than {least} on this board ({proof.floor_note})",)
    lists = (
        ("Demanded and not so", broken),
        ("Proven", proof.proven),
        ("Not proven", proof.unproven),
        ("Left to the board", proof.left),
        ("Floor", floor if proof.floor_ms is not None else ()),
    )
    return [(title, lines) for title, lines in lists if lines]


def _energy(report: Report) -> list[Headline]:
    """Energy per image where both engines have one of the same scope; nothing where none was measured."""
    latency = report.latency_ms
    if latency is None:
        return []
    before = {one.scope: one for one in latency.baseline.energy}
    found = next(((before[one.scope], one) for one in latency.engine.energy if one.scope in before), None)
    if found is None:
        return []
    old, new = found
    return [
        Headline(
            label="energy per image",
            before=f"{figures.significant(1000 * old.joules_per_image)} mJ",
            after=f"{figures.significant(1000 * new.joules_per_image)} mJ",
            change=figures.relative_change(old.joules_per_image, new.joules_per_image),
            detail=f"{new.covers}, {figures.significant(new.mean_power_w)} W; rest included",
            values=(old.joules_per_image, new.joules_per_image),
        )
    ]


def _memory(report: Report) -> Headline:
    memory = report.memory_bytes
    if memory is None or memory.baseline is None or memory.engine is None:
        return Headline(label="memory", detail=NO_MEMORY)
    return Headline(
        label="memory",
        before=figures.size(memory.baseline),
        after=figures.size(memory.engine),
        change=figures.relative_change(memory.baseline, memory.engine),
        detail="peak of the process",
        values=(memory.baseline, memory.engine),
    )


def _size(label: str, before: str, after: str, change: Change) -> Headline:
    return Headline(
        label=label,
        before=before,
        after=after,
        change=figures.relative_change(change.before, change.after),
        values=(change.before, change.after),
    )
