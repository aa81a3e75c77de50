"""What a measured cell leaves: a night per series, with raw samples, answers and the bundle in the history's files."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from pipeline.nightly.accuracy import Answers, top1_percent
from pipeline.nightly.bench import Measured
from pipeline.nightly.history import Objects
from pipeline.nightly.record import Metric, Night, Rerun, Series, Status
from targets.measure.measurement import Energy, Measurement

if TYPE_CHECKING:
    from stages.data.images import ImageSet

TONIGHT, GOOD = "engine", "good"
"""roles: tonight's engine, and the last good one"""
RERUN_METRICS: tuple[Metric, ...] = (
    "latency_p50_ms",
    "latency_p99_ms",
    "energy_mj",
    "power_w",
    "memory_bytes",
    "engine_bytes",
)
Kind = Literal["logits", "features"]
"""of answers"""
SCOPES = ("board", "gpu", "cpu")
"""of energy: the first that is measured counts"""
POWER_NOISE = 0.01
"""half of the least interval of a ratio of energies or powers: sensors of boards are no better"""
RESAMPLES = 2000
SEED = 20261127


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A recipe on a device, with what is known before it runs."""

    name: str
    """recipe@device"""
    recipe: str
    device: str
    target: str
    commit: str
    vitrim: str


@dataclass(frozen=True, kw_only=True)
class Left:
    """What a cell left."""

    nights: tuple[Night, ...]
    facts: Mapping[str, Any]
    """digests in the history's files, and what is told of the engine"""


def leave(
    cell: Cell, measured: Measured, built: Path, *, at: datetime, images: "ImageSet | None", objects: Objects
) -> Left:
    """Keep what was measured, and make nights of it. built: folder with `report.json` and `bundle`."""
    manifest = json.loads((built / "bundle" / "manifest.json").read_text())
    report_text = (built / "report.json").read_text() if (built / "report.json").is_file() else "{}"
    one = measured.comparison.measurements[TONIGHT]
    answers = _answers(measured, manifest, images)
    kept = objects.put_arrays(_arrays(answers)) if answers is not None else ""
    facts = {
        "raw": objects.put_json(measured.comparison.model_dump(mode="json")),
        "report": objects.put(report_text.encode()),
        "bundle": objects.put_folder(built / "bundle"),
        "answers": kept,
        "kind": answers.kind if answers is not None else "",
        "artifact": one.engine_sha256,
        "runtime": manifest["runtime"],
        "precision": manifest["precision"],
        "budget": _budget(report_text),
        "device": dict(measured.facts),
    }
    common: dict[str, Any] = {
        "at": at,
        "artifact": one.engine_sha256,
        "environment": dict(measured.environment),
        "commit": cell.commit,
        "vitrim": cell.vitrim,
        "flags": one.flags,
    }

    def series(metric: Metric, *, recipe: str = cell.recipe) -> Series:
        return Series(
            recipe=recipe,
            target=cell.target,
            device=cell.device,
            runtime=manifest["runtime"],
            precision=manifest["precision"],
            batch=one.batch,
            metric=metric,
            harness=f"{one.method} {one.level}",
        )

    nights = [Night(series=series(metric), values=values, **common) for metric, values in values_of(measured, TONIGHT)]
    if answers is not None:
        metric: Metric = "top1" if answers.labels is not None and answers.kind == "logits" else "answered"
        counted = {**common, "flags": ()}  # a board that throttles answers no worse
        nights.append(
            Night(
                series=series(metric).replace(harness="answers/1"),
                values=(top1_percent(answers),),
                answers=kept,
                images=answers.images,
                **counted,
            )
        )
    if measured.health_ms:
        nights.append(
            Night(series=series("health_ms"), values=measured.health_ms, **{**common, "artifact": "reference graph"})
        )
    return Left(nights=tuple(nights), facts=facts)


def values_of(measured: Measured, role: str) -> Iterator[tuple[Metric, tuple[float, ...]]]:
    """Of each metric that was measured: a value per run."""
    from targets.measure.percentiles import tail_percentile

    one = measured.comparison.measurements[role]
    yield "latency_p50_ms", tuple(float(median(run.samples)) for run in one.runs)
    tails = [tail_percentile(run.samples, 0.99) for run in one.runs]
    if None not in tails:
        yield "latency_p99_ms", tuple(tail for tail in tails if tail is not None)
    energy = _energy(one)
    if energy is not None:
        yield "energy_mj", (1000 * energy.joules_per_image,)
        yield "power_w", (energy.mean_power_w,)
    memory = [run.peak_gpu_memory_bytes or run.peak_memory_bytes for run in one.runs]
    if None not in memory:
        yield "memory_bytes", tuple(float(peak) for peak in memory if peak is not None)
    yield "engine_bytes", (float(measured.engine_bytes[role]),)


def rerun_of(measured: Measured, metric: Metric, good_artifact: str) -> Rerun | None:
    """Tonight's engine against the good one by a re-run; None where that tells nothing of the metric."""
    from targets.measure.percentiles import paired_ratio

    comparison = measured.comparison
    if any(one.flags for one in comparison.measurements.values()):
        return None  # throttled or unstable: as void as a night
    if metric == "latency_p50_ms":
        ratio, interval = paired_ratio(comparison.measurements[TONIGHT], comparison.measurements[GOOD])
        return Rerun(ratio=ratio, ratio_ci95=interval, good_artifact=good_artifact)
    tonight, good = dict(values_of(measured, TONIGHT)).get(metric), dict(values_of(measured, GOOD)).get(metric)
    if not tonight or not good or median(good) <= 0:
        return None
    ratio = median(tonight) / median(good)
    if metric == "engine_bytes":
        interval = (ratio, ratio)
    elif metric in ("energy_mj", "power_w"):  # one figure of an engine: as sure as its times, which it is the sum over
        _, (low, high) = paired_ratio(comparison.measurements[TONIGHT], comparison.measurements[GOOD])
        wide = max((high - low) / 2, POWER_NOISE)
        interval = (ratio * (1 - wide), ratio * (1 + wide))
    elif min(len(tonight), len(good)) < 2:
        return None
    else:
        interval = _ratio_interval(tonight, good)
    return Rerun(ratio=ratio, ratio_ci95=interval, good_artifact=good_artifact)


def without_values(cell: Cell, known: Sequence[Series], *, status: Status, reason: str, at: datetime) -> list[Night]:
    """Nights of a cell that gave no values: one of every series that is known of it, else one of its latency."""
    if not known:
        unknown = {
            "runtime": "unknown",
            "precision": "unknown",
            "batch": 1,
            "metric": "latency_p50_ms",
            "harness": "none",
        }
        known = [
            Series.model_validate({"recipe": cell.recipe, "target": cell.target, "device": cell.device, **unknown})
        ]
    return [
        Night(series=one, at=at, status=status, reason=reason, commit=cell.commit, vitrim=cell.vitrim) for one in known
    ]


def read_answers(objects: Objects, night: Night, kind: str) -> Answers:
    """The answers of a night, out of the history's files."""
    arrays = objects.get_arrays(night.answers)
    told: Kind = "features" if kind == "features" else "logits"
    return Answers(values=arrays["values"], labels=arrays.get("labels"), images=night.images, kind=told)


def _answers(measured: Measured, manifest: Mapping[str, Any], images: "ImageSet | None") -> Answers | None:
    import numpy as np

    values = measured.answers.get(TONIGHT)
    if values is None or images is None:
        return None
    kind: Kind = "features" if manifest["output"]["kind"] == "features" else "logits"
    labels = images.labels if kind == "logits" else None
    return Answers(values=np.asarray(values, dtype=np.float32), labels=labels, images=images.fingerprint, kind=kind)


def _arrays(answers: Answers) -> dict[str, Any]:
    return {"values": answers.values, **({} if answers.labels is None else {"labels": answers.labels})}


def _energy(one: Measurement) -> Energy | None:
    by_scope = {energy.scope: energy for energy in one.energy}
    return next((by_scope[scope] for scope in SCOPES if scope in by_scope), None)


def _ratio_interval(tonight: Sequence[float], good: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a ratio of medians by bootstrap over runs, widened as few runs vary too little."""
    import numpy as np

    random = np.random.default_rng(SEED)

    def medians(values: Sequence[float]) -> Any:
        return np.median(random.choice(np.asarray(values), size=(RESAMPLES, len(values))), axis=1)

    ratio = median(tonight) / median(good)
    low, high = np.percentile(medians(tonight) / medians(good), [2.5, 97.5])
    runs = min(len(tonight), len(good))
    wider = (runs / (runs - 1)) ** 0.5
    return float(ratio - wider * (ratio - low)), float(ratio + wider * (high - ratio))


def _budget(report_text: str) -> str:
    """What the build said of its budget, where that is not kept."""
    verdict = json.loads(report_text).get("verdict") or {}
    return str(verdict.get("sentence", "")) if verdict.get("status") == "over" else ""
