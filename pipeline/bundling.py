"""From a finished build to its bundle: picks the files and writes the model card's figures."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.graph.described import read_described
from targets.bundle.write import write_bundle

if TYPE_CHECKING:
    from pipeline.report.record import Report
    from stages.artifact import Artifact
    from targets.bundle.expected import Expected
    from targets.profile import TargetProfile


def write_bundle_of(
    folder: Path,
    *,
    report: "Report",
    engine: "Artifact | None",
    graph: "Artifact",
    spec_folder: Path,
    profile: "TargetProfile | None" = None,
    options: Mapping[str, Any] | None = None,
    expected: "Expected | None" = None,
) -> None:
    """Write the bundle of a report's engine: engine, portable graph, preprocessing, labels, run.py, model card.

    engine: None where the board builds it. profile: the target, where it is not at hand. options: of the runtime's own,
    with which the board builds. expected: what it can be held against again.
    """
    target = report.target
    planned = {
        "runtime": target.runtime,
        "version": target.runtime_version,
        "precision": target.precision,
        "batch": target.batch,
        "options": dict(options or {}),
    }
    _write(
        folder,
        engine=engine,
        graph=graph,
        spec_folder=spec_folder,
        card=_card(report),
        planned=planned,
        target=profile.model_dump(mode="json") if profile else None,
        expected=expected,
    )


def write_plain_bundle(
    folder: Path,
    *,
    engine: "Artifact | None",
    graph: "Artifact",
    spec_folder: Path,
    planned: Mapping[str, Any] | None = None,
) -> None:
    """Write a bundle before there is a report: for the user's own metric command."""
    _write(folder, engine=engine, graph=graph, spec_folder=spec_folder, card={}, planned=planned)


def _write(
    folder: Path,
    *,
    engine: "Artifact | None",
    graph: "Artifact",
    spec_folder: Path,
    card: dict[str, Any],
    planned: Mapping[str, Any] | None = None,
    target: Mapping[str, Any] | None = None,
    expected: "Expected | None" = None,
) -> None:
    spec = read_described(spec_folder)
    labels_file = spec_folder / "labels.json"
    write_bundle(
        folder,
        engine=engine.folder if engine else None,
        onnx=graph.folder / "model.onnx",
        spec=spec.model_dump(mode="json"),
        preprocess=spec.preprocess,
        labels=json.loads(labels_file.read_text()) if labels_file.is_file() else None,
        card={
            "vitrim": version("vitrim"),
            "provenance": {
                **({"engine_key": engine.manifest.key} if engine else {}),
                "graph_key": graph.manifest.key,
                **{name: card[name] for name in ("recipe_digest", "versions") if card.get(name)},
            },
            **card,
        },
        planned=planned,
        target=target,
        expected=expected,
    )


def _card(report: "Report") -> dict[str, Any]:
    """What the model card says, as plain JSON."""
    accuracy, latency = report.accuracy, report.latency_ms
    return {
        "name": report.name,
        "model": report.model,
        "target": report.target.model_dump(mode="json"),
        "verdict": report.verdict.sentence,
        "status": report.verdict.status,
        "accuracy": accuracy.model_dump(mode="json") if accuracy else None,
        "latency_ms": {
            "batch": latency.batch,
            "p50": latency.engine.p50,
            "baseline_p50": latency.baseline.p50,
            "speedup": latency.speedup,
            "speedup_ci95": latency.speedup_ci95,
        }
        if latency
        else None,
        "size": report.size.model_dump(mode="json"),
        "steps": [{"name": row.name, "key": row.key} for row in report.stages],
        "recipe_digest": report.reproduce.get("recipe_digest"),
        "versions": report.versions,
    }
