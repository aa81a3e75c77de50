"""`vitrim validate`: measure a finished bundle anew on this machine, whatever was measured when it was built."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

from pipeline.answers import engine_answers
from pipeline.pixels import INPUTS, Pixels
from pipeline.report.compose import figures
from stages.data.images import ImageSet, check_labels, open_images
from stages.data.source import DataSource
from stages.stage import Role
from targets.bundle.verify import verify_bundle
from targets.errors import InputError, StageError
from targets.preprocess import Preprocess

LEVELS = ("quick", "full")


def revalidate(
    bundle: Path,
    *,
    recipe: Path | None = None,
    images: Path | None = None,
    labels: Path | None = None,
    level: str = "quick",
) -> dict[str, Any]:
    """Check every file of a bundle, time its engine, and read its accuracy where images are given.

    Images come from `images` (with `labels`, a CSV, or folders per class), or from data.evaluate of `recipe`.
    Returns plain figures by name. Raises InputError for a folder that is no bundle, StageError for a damaged one.
    """
    if level not in LEVELS:
        raise InputError(f"level must be quick or full, got {level!r}")
    manifest_file = bundle / "manifest.json"
    if not manifest_file.is_file():
        raise InputError(
            f"{str(bundle)!r} is not a bundle: it has no manifest.json; give the folder that `vitrim build` wrote"
        )
    problems = verify_bundle(bundle)
    if problems:
        raise StageError(f"the bundle {str(bundle)!r} is damaged: {'; '.join(problems[:3])}; build it again")
    preprocess = Preprocess.model_validate_json((bundle / "preprocessing.json").read_text())
    manifest = json.loads(manifest_file.read_text())
    told: dict[str, Any] = {
        "bundle": str(bundle),
        "files": "complete",
        "runtime": manifest["runtime"],
        "precision": manifest["precision"],
    }
    source = _source(recipe, images, labels)
    with TemporaryDirectory(prefix="vitrim-validate-") as folder:
        evaluate = open_images(source, Role.EVALUATE, index_cache=None) if source else None
        told |= _latency(bundle / "engine", preprocess, evaluate, Path(folder), cast(Literal["quick", "full"], level))
        if evaluate is not None:
            told |= _accuracy(bundle, preprocess, evaluate, Path(folder))
    return told


def _source(recipe: Path | None, images: Path | None, labels: Path | None) -> DataSource | None:
    if recipe is not None:
        from pipeline.recipe import load_recipe

        found: DataSource | None = load_recipe(recipe).images().get(Role.EVALUATE)
        if found is None:
            raise InputError(f"the recipe {str(recipe)!r} has no data.evaluate; add it, or use --images")
        return found
    if images is not None:
        return DataSource(images=images, labels=labels)
    if labels is not None:
        raise InputError("--labels needs --images")
    return None


def _latency(
    engine: Path, preprocess: Preprocess, images: ImageSet | None, folder: Path, level: Literal["quick", "full"]
) -> dict[str, Any]:
    import numpy as np

    from targets.measure.latency import EngineUnderTest, compare
    from targets.preprocess import normalise

    batch = int(json.loads((engine / "engine.json").read_text())["batch"])
    count = max(INPUTS, batch)
    if images is not None and len(images):
        inputs = Pixels.of(images.subset(range(min(count, len(images)))), preprocess, folder).inputs(count)
    else:
        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, (count, preprocess.height, preprocess.width, 3), dtype=np.uint8)
        inputs = normalise(pixels, preprocess)
    comparison = compare({"engine": EngineUnderTest(folder=engine, batch=batch)}, inputs, level=level)
    found = figures(comparison.measurements["engine"])
    return {
        "batch": batch,
        "latency_p50_ms": round(found.p50, 3),
        "latency_p50_ms_ci95": [round(edge, 3) for edge in found.ci95],
        "latency_p90_ms": None if found.p90 is None else round(found.p90, 3),
        "latency_p99_ms": None if found.p99 is None else round(found.p99, 3),
        "queries": found.queries,
        "processes": found.processes,
        "stable": found.stable,
    }


def _accuracy(bundle: Path, preprocess: Preprocess, images: ImageSet, folder: Path) -> dict[str, Any]:
    answers = engine_answers(bundle / "engine", Pixels.of(images, preprocess, folder), tell=lambda message, share: None)
    if images.labels is None:
        return {"images": len(images), "accuracy": "not measured: the images have no labels"}
    check_labels(images, answers.shape[1])
    return {"images": len(images), "top1": round(float((answers.argmax(axis=1) == images.labels).mean()), 4)}
