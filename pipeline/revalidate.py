"""`vitrim validate`: measure a finished bundle anew on this machine, whatever was measured when it was built."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast, get_args

from pipeline.again import build_again
from pipeline.answers import Tell, engine_answers
from pipeline.compare.entry import ON_CPU
from pipeline.held import against_build
from pipeline.ondevice import read_bundle
from pipeline.pixels import INPUTS, Pixels
from pipeline.report.compose import figures
from pipeline.told import accuracy_told, check_labelled, latency_told, swept
from stages.data.images import ImageSet, open_images
from stages.data.source import DataSource
from stages.stage import Role
from targets.bundle.expected import read_expected
from targets.errors import InputError
from targets.measure.measurement import Arrivals, Level
from targets.preprocess import Preprocess

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from targets.devices.job import JobResult
    from targets.measure.measurement import Measurement

LEVELS = ("quick", "full")


def revalidate(
    bundle: Path,
    *,
    recipe: Path | None = None,
    images: Path | None = None,
    labels: Path | None = None,
    level: str = "quick",
    batches: Sequence[int] = (),
    rate_ips: float | None = None,
    arrivals: str | None = None,
) -> dict[str, Any]:
    """Check every file of a bundle, time its engine, and read its accuracy where images are given.

    Images come from `images` (with `labels`, a CSV, or folders per class), or from data.evaluate of `recipe`.
    batches: sizes to time beside the engine's own; their engines are built from the bundle's graph, and not kept.
    Throughput of an engine that answers several queries at once is measured with all of them at work.
    rate_ips: also serve this many images per second, which come at `arrivals`: poisson (the default) or fixed.
    Returns plain figures by name. Raises InputError for a folder that is no bundle, StageError for a damaged one.
    """
    _check_level(level, batches)
    if arrivals not in (None, *get_args(Arrivals)):
        raise InputError(f"arrivals must be {' or '.join(get_args(Arrivals))}, got {arrivals!r}")
    if arrivals is not None and rate_ips is None:
        raise InputError("--arrivals needs --rate: without a rate one query follows the other")
    if rate_ips is not None and not (math.isfinite(rate_ips) and rate_ips > 0):
        raise InputError(f"rate must be a number of images per second above 0, got {rate_ips:g}")
    manifest = read_bundle(bundle)
    expected = read_expected(bundle)
    preprocess = Preprocess.model_validate_json((bundle / "preprocessing.json").read_text())
    if manifest["engine_sha256"] is None:
        raise InputError(
            f"the bundle {str(bundle)!r} has no engine to measure: its board builds it "
            f"({'sh build.sh ENGINE_FOLDER' if (bundle / 'build.sh').is_file() else 'it loads model.onnx itself'})"
        )
    told: dict[str, Any] = {
        "bundle": str(bundle),
        "files": "complete",
        "runtime": manifest["runtime"],
        "precision": manifest["precision"],
        "engine_sha256": manifest["engine_sha256"],
        "machine": _machine(manifest["runtime"]),
        "level": level,
    }
    source = _source(recipe, images, labels)
    with TemporaryDirectory(prefix="vitrim-validate-") as folder:
        evaluate = open_images(source, Role.EVALUATE, index_cache=None) if source else None
        check_labelled(evaluate, manifest["output"])
        own = int(manifest["batch"])
        engines = {own: bundle / "engine", **_other_engines(bundle, manifest, set(batches) - {own}, Path(folder))}
        inputs = _inputs(max(INPUTS, *engines), preprocess, evaluate, Path(folder))
        asked = cast(Level, level)
        measured = {batch: _measured(engine, batch, inputs, asked) for batch, engine in engines.items()}
        rows = {batch: _latency(engines[batch], batch, inputs, asked, one) for batch, one in measured.items()}
        told |= rows[own]
        if batches:
            told["batches"] = [swept(rows[batch]) for batch in sorted(set(batches))]
        if rate_ips is not None:
            told["open_loop"] = _open_loop(
                engines[own], own, inputs, asked, rate_ips, cast(Arrivals, arrivals or "poisson")
            )
        top1 = None
        if evaluate is not None:
            pixels = Pixels.of(evaluate, preprocess, Path(folder))
            answers = engine_answers(bundle / "engine", pixels, tell=lambda message, share: None)
            found, top1 = accuracy_told(evaluate, answers, manifest["output"]["kind"])
            told |= found
        told |= against_build(expected, measurement=measured[own], images=evaluate, answers=top1)
    return told


def _machine(runtime: str) -> str:
    """Processor, and the GPUs where the runtime uses one: what times of two machines are told apart by."""
    from targets.facts import probe

    facts = probe()
    gpus = [] if runtime in ON_CPU else [str(one["name"]) for one in facts["gpus"]]
    return ", ".join(filter(None, [str(facts["cpu_model"]), *gpus]))


def revalidate_on_device(
    bundle: Path,
    device: str,
    *,
    devices: Path | None = None,
    recipe: Path | None = None,
    images: Path | None = None,
    labels: Path | None = None,
    level: str = "quick",
    batches: Sequence[int] = (),
    rate_ips: float | None = None,
    wait_seconds: float = 0,
    tell: Tell = lambda message, share: None,
) -> tuple[dict[str, Any], list["JobResult"]]:
    """The same on a device of the devices file: figures by name, and the records behind them.

    An engine that does not fit the board, or is not there yet, is built on it from the bundle's graph.
    """
    from pipeline.ondevice import validate_on_device
    from targets.devices.open import open_device
    from targets.devices.spec import get_device

    _check_level(level, batches)
    if rate_ips is not None:
        raise InputError("--rate is for this machine: on a device only the closed loop is measured")
    if not (math.isfinite(wait_seconds) and wait_seconds >= 0):
        raise InputError(f"wait must be a number of seconds from 0, got {wait_seconds:g}")
    read_bundle(bundle)
    opened = open_device(device, get_device(device, devices))
    source = _source(recipe, images, labels)
    evaluate = open_images(source, Role.EVALUATE, index_cache=None) if source else None
    return validate_on_device(
        opened, bundle, evaluate, level=cast(Level, level), batches=batches, wait_seconds=wait_seconds, tell=tell
    )


def _check_level(level: str, batches: Sequence[int]) -> None:
    if level not in LEVELS:
        raise InputError(f"level must be quick or full, got {level!r}")
    if any(batch < 1 for batch in batches):
        raise InputError(f"batches must be whole numbers from 1, got {', '.join(map(str, batches))}")


def _source(recipe: Path | None, images: Path | None, labels: Path | None) -> DataSource | None:
    if recipe is not None:
        from pipeline.recipe import load_recipe

        if images is not None or labels is not None:
            raise InputError("--recipe and --images or --labels both say what is evaluated on; give one of them")
        found: DataSource | None = load_recipe(recipe).images().get(Role.EVALUATE)
        if found is None:
            raise InputError(f"the recipe {str(recipe)!r} has no data.evaluate; add it, or use --images")
        return found
    if images is not None:
        return DataSource(images=images, labels=labels)
    if labels is not None:
        raise InputError("--labels needs --images")
    return None


def _other_engines(bundle: Path, manifest: dict[str, Any], batches: set[int], folder: Path) -> dict[int, Path]:
    """Engines of other batch sizes, built from the bundle's graph as the engine was."""
    from targets.worker import Worker

    if not batches:
        return {}
    again = build_again(bundle, manifest)
    found = {}
    with Worker() as worker:
        for batch in sorted(batches):
            found[batch] = folder / f"engine-{batch}"
            found[batch].mkdir()
            worker.build(
                bundle / "model.onnx",
                found[batch],
                runtime=manifest["runtime"],
                precision=manifest["precision"],
                batch=batch,
                threads=again.threads,
                more=again.options,
                at_load=again.at_load,
            )
    return found


def _inputs(count: int, preprocess: Preprocess, images: ImageSet | None, folder: Path) -> "NDArray[Any]":
    """Images to time with: the first of those that are given, else random pixels."""
    import numpy as np

    from targets.preprocess import normalise

    if images is not None and len(images):
        return Pixels.of(images.subset(range(min(count, len(images)))), preprocess, folder).inputs(count)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, preprocess.height, preprocess.width, 3), dtype=np.uint8)
    return normalise(pixels, preprocess)


def _measured(engine: Path, batch: int, inputs: "NDArray[Any]", level: Level) -> "Measurement":
    from targets.measure.latency import EngineUnderTest, compare

    return compare({"engine": EngineUnderTest(folder=engine, batch=batch)}, inputs, level=level).measurements["engine"]


def _latency(engine: Path, batch: int, inputs: "NDArray[Any]", level: Level, measured: "Measurement") -> dict[str, Any]:
    found = figures(measured)
    requests, rate = _throughput(engine, batch, inputs, level, alone_ips=found.throughput_ips)
    return {**latency_told(found, batch=batch, throughput_ips=rate), "requests": requests}


def _throughput(
    engine: Path, batch: int, inputs: "NDArray[Any]", level: Level, *, alone_ips: float | None
) -> tuple[int, float | None]:
    """Queries at once and images per second; alone_ips: of one query after the other."""
    from targets.measure.procedure import EngineUnderTest
    from targets.measure.throughput import images_per_second, throughput

    if json.loads((engine / "engine.json").read_text()).get("at_load", {}).get("hint") != "throughput":
        return 1, alone_ips
    measured = throughput(EngineUnderTest(folder=engine, batch=batch), inputs, level=level)
    return measured.requests, images_per_second(measured)


def _open_loop(
    engine: Path, batch: int, inputs: "NDArray[Any]", level: Level, rate_ips: float, arrivals: Arrivals
) -> dict[str, Any]:
    from targets.measure.open_loop import open_loop, open_loop_figures
    from targets.measure.procedure import EngineUnderTest

    measured = open_loop(
        EngineUnderTest(folder=engine, batch=batch), inputs, rate_ips=rate_ips, level=level, arrivals=arrivals
    )
    found = open_loop_figures(measured)
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()}
