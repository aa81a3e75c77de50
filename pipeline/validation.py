"""Validation: what was measured of a finished engine, and the measuring itself.

Three engines are compared: the baseline (unpruned source, fp32, the profile's first runtime), the unpruned source in
the engine's own runtime and precision, and the engine. A validation is kept, and taken over by `build` when the same
engines meet the same images in the same conditions; `validate` always measures anew.

Of a target that is not at hand only the graph can be looked at: by ONNX Runtime on this processor, as a proxy.
"""

import shlex
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.answers import Tell, engine_answers
from pipeline.parity import check_parity
from pipeline.pixels import INPUTS, Pixels
from pipeline.report.record import Accuracy, LayerRow, OperatorTime, Parity
from pipeline.told import NO_CLASS, classes_of
from stages.data.images import ImageSet
from targets.errors import InputError, StageError
from targets.measure.measurement import Comparison
from targets.record import Record

if TYPE_CHECKING:
    from pipeline.recipe import Measure
    from pipeline.statistics import Floats
    from stages.graph.described import Described
    from targets.preprocess import Preprocess
    from targets.profile import Budget


class Validation(Record):
    """Everything measured of one engine."""

    format: str = "vitrim.validation/1"
    accuracy: Accuracy | None
    per_image: dict[str, tuple[int, ...]] = {}
    """top-1 answer of `baseline` and `engine`, and `label`, in the order of the images"""
    latencies: dict[str, Comparison]
    """by batch size: raw samples of the three engines, interleaved; empty for a target that is not at hand"""
    parity: Parity
    operators: dict[str, tuple[OperatorTime, ...]]
    layers: tuple[LayerRow, ...] = ()
    """of the engine"""
    seconds: float
    proxy: str = ""
    """what answered in the engine's place; empty where the engine itself did"""


@dataclass(frozen=True, kw_only=True)
class Engines:
    """Folders of the three engines, by batch size; graphs, where the target is not at hand."""

    baseline: Mapping[int, Path]
    unpruned: Mapping[int, Path]
    engine: Mapping[int, Path]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is validated."""

    engines: Engines
    batch: int
    precision: str
    model: Path | None
    """folder of the compressed model (format vit), for parity; None where the source is a graph"""
    source_graph: Path | None
    """the source's fp32 graph, which stands for torch then"""
    spec: "Described"
    """of the source"""
    preprocess: "Preprocess"
    """what the compressed model reads; the source may read another size"""
    measure: "Measure"
    budget: "Budget"
    threads: int | None
    floors: Mapping[str, Mapping[int, float | None]]
    """milliseconds that no query of a role can be faster than, by batch size; None: not known"""
    graph: Path | None = None
    """what the engine was built from, for parity; None where the engine is a graph itself"""
    held: str = "fp32"
    """precision of what that graph holds"""
    runtime: str = ""
    """of the engine"""
    command_bundle: Callable[[str, Path], None]
    """write a bundle of `baseline` or `engine` into a folder, for the user's own metric command"""


@dataclass(frozen=True)
class Readings:
    """The same images, as the source and as the engine read them."""

    source: Pixels
    engine: Pixels

    @classmethod
    def of(cls, subject: Subject, images: ImageSet, folder: Path) -> "Readings":
        """Decode images for both."""
        return cls(*(Pixels.of(images, one, folder) for one in (subject.spec.preprocess, subject.preprocess)))


def validate(subject: Subject, *, select: ImageSet, evaluate: ImageSet | None, pixels: Path, tell: Tell) -> Validation:
    """Measure everything. pixels: folder for decoded images. tell(message, share) receives progress."""
    started = time.monotonic()
    read = Readings.of(subject, select, pixels)
    tell("parity", None)
    parity = check_parity(subject, read.engine, tell=tell)
    tell("accuracy", None)
    accuracy, per_image = measure_accuracy(subject, evaluate, pixels, tell=tell)
    latencies = measure_latency(subject, read, tell=tell)
    tell("time by layer", None)
    operators, layers = measure_layers(subject, read)
    return Validation(
        accuracy=accuracy,
        per_image=per_image,
        latencies=latencies,
        parity=parity,
        operators=operators,
        layers=layers,
        seconds=time.monotonic() - started,
    )


def validate_graph(
    subject: Subject, *, held: str, select: ImageSet, evaluate: ImageSet | None, pixels: Path, tell: Tell
) -> Validation:
    """Look at a graph whose engine cannot run here: parity and accuracy by ONNX Runtime, no latency.

    held: precision of what the graph holds.
    """
    from targets.facts import installed_version
    from targets.worker import Worker

    started = time.monotonic()
    with Worker() as worker:
        emulated = worker.load(subject.engines.engine[subject.batch], precision=held).facts.get("emulated")
    sixteen = emulated if emulated in ("bf16", "fp16") else "its parts of 16 bits"
    how = f", which emulates {sixteen} in fp32" if emulated else ""
    proxy = f"the same graph in onnxruntime {installed_version('onnxruntime')}, on this machine's processor{how}"
    tell("parity", None)
    parity = check_parity(subject, Readings.of(subject, select, pixels).engine, tell=tell)
    tell("accuracy", None)
    accuracy, per_image = measure_accuracy(subject, evaluate, pixels, tell=tell)
    return Validation(
        accuracy=accuracy and accuracy.replace(proxy=proxy),
        per_image=per_image,
        latencies={},
        parity=parity.replace(proxy=proxy),
        operators={},
        seconds=time.monotonic() - started,
        proxy=proxy,
    )


def measure_accuracy(
    subject: Subject, evaluate: ImageSet | None, pixels: Path, *, tell: Tell
) -> tuple[Accuracy | None, dict[str, tuple[int, ...]]]:
    """Read `evaluate` once with the baseline and the engine; None where the recipe names no such images."""
    import numpy as np

    from pipeline import statistics

    budget = subject.budget.accuracy_drop_points
    metric = subject.measure.metric
    if metric == "command":
        return _by_command(subject), {}
    if evaluate is None:
        return None, {}
    read = Readings.of(subject, evaluate, pixels)

    def answers(role: str, folder: Path, images: Pixels) -> "Floats":
        return engine_answers(
            folder,
            images,
            tell=lambda message, share: tell(f"accuracy of the {role}: {message}", share),
            precision=subject.precision if role == "engine" else "fp32",
        )

    baseline = answers("baseline", subject.engines.baseline[subject.batch], read.source)
    engine = answers("engine", subject.engines.engine[subject.batch], read.engine)
    labels = evaluate.labels
    if metric == "zero_shot":
        baseline, engine = _zero_shot(subject, baseline), _zero_shot(subject, engine)
    if metric in ("zero_shot", "top1") and labels is None:
        raise InputError(f"metric {metric!r} needs labels for data.evaluate; add labels: FILE.csv, or use metric: auto")
    if metric == "knn" or (metric == "auto" and not subject.spec.classes):
        return statistics.compare_features(baseline, engine, labels=labels, budget_points=budget), {}
    top1 = {"baseline": tuple(classes_of(baseline)), "engine": tuple(classes_of(engine))}
    if labels is None:
        same = np.array([one == other != NO_CLASS for one, other in zip(*top1.values(), strict=True)], float)
        accuracy = statistics.compare_scores("agreement", np.ones_like(same), same, budget_points=budget)
        return accuracy.replace(agreement=float(same.mean())), top1
    name = "zero_shot_top1" if metric == "zero_shot" else "top1"
    accuracy = statistics.compare_answers(baseline, engine, labels, metric=name, budget_points=budget)
    return accuracy, {**top1, "label": tuple(int(label) for label in labels)}


def measure_latency(subject: Subject, read: Readings, *, tell: Tell) -> dict[str, Comparison]:
    """Time the three engines interleaved, at every batch size."""
    from targets.measure.latency import EngineUnderTest, compare

    found = {}
    for batch in sorted(subject.engines.engine):
        count = max(INPUTS, batch)
        own = read.engine.inputs(count)
        roles = {
            "baseline": subject.engines.baseline[batch],
            "unpruned": subject.engines.unpruned[batch],
            "engine": subject.engines.engine[batch],
        }
        found[str(batch)] = compare(
            {
                role: EngineUnderTest(
                    folder=folder,
                    batch=batch,
                    threads=subject.threads,
                    inputs=own if role == "engine" else None,
                    floor_ms=subject.floors.get(role, {}).get(batch),
                )
                for role, folder in roles.items()
            },
            read.source.inputs(count),
            level=subject.measure.level,
            tell=lambda message, share, batch=batch: tell(f"latency at batch {batch}: {message}", share),  # type: ignore[misc]
        )
    return found


def measure_layers(
    subject: Subject, read: Readings
) -> tuple[dict[str, tuple[OperatorTime, ...]], tuple[LayerRow, ...]]:
    """Ask the runtimes what ran: time by kind of operator of baseline and engine, and every layer of the engine."""
    from targets.runtimes.runtime import by_operator
    from targets.worker import Worker

    operators: dict[str, tuple[OperatorTime, ...]] = {}
    found: list[dict[str, Any]] = []
    for role, folder, pixels in (
        ("baseline", subject.engines.baseline[subject.batch], read.source),
        ("engine", subject.engines.engine[subject.batch], read.engine),
    ):
        with Worker(threads=subject.threads) as worker:
            worker.load(folder)
            found = worker.layers(pixels.inputs(subject.batch))
        operators[role] = tuple(OperatorTime.model_validate(row) for row in by_operator(found))
    whole = sum(row["seconds"] for row in found) or 1.0
    return operators, tuple(
        LayerRow(
            share=row["seconds"] / whole,
            **{key: row[key] for key in ("name", "operator", "kernel", "precision", "provider", "macs")},
        )
        for row in found
    )


def _zero_shot(subject: Subject, features: "Floats") -> "Floats":
    from pipeline.features import load_text_embeddings, zero_shot_logits

    if subject.measure.text_embeddings is None:
        raise InputError(
            "metric 'zero_shot' needs measure.text_embeddings: a .npy or .safetensors file [classes, width]"
        )
    return zero_shot_logits(features, load_text_embeddings(subject.measure.text_embeddings))


def _by_command(subject: Subject) -> Accuracy:
    """Run the user's command on bundles of the baseline and the engine; it prints JSON with `value` and `images`."""
    import json

    from pipeline.statistics import compare_totals

    command = subject.measure.command
    if not command or "{bundle}" not in command:
        raise InputError("metric 'command' needs measure.command with {bundle} in it, e.g. python metric.py {bundle}")
    told: dict[str, dict[str, Any]] = {}
    for role in ("baseline", "engine"):
        with TemporaryDirectory(prefix="vitrim-metric-") as folder:
            subject.command_bundle(role, Path(folder, "bundle"))
            words = [word.replace("{bundle}", str(Path(folder, "bundle"))) for word in shlex.split(command)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StageError(
                f"the metric command ended with {done.returncode} for the {role}: {done.stderr.strip()[-300:]}"
            )
        try:
            told[role] = json.loads(done.stdout.strip().splitlines()[-1])
            float(told[role]["value"]), int(told[role]["images"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            wanted = '{"value": 0..1, "images": N, "name": ...}'
            raise StageError(
                f"the metric command must print {wanted} as its last line, got {done.stdout.strip()[-200:]!r}"
            ) from error
    return compare_totals(
        str(told["engine"].get("name", "command")),
        float(told["baseline"]["value"]),
        float(told["engine"]["value"]),
        images=int(told["engine"]["images"]),
    )
