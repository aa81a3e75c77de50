"""Measure bundles on a device: pushed there, built there where their engines do not fit, answered and timed there."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from targets.bundle.verify import verify_bundle
from targets.devices.device import Device, Session
from targets.devices.job import Job, JobEngine, JobResult
from targets.errors import InputError, StageError
from targets.measure.procedure import Level
from targets.preprocess import Preprocess
from targets.runtimes.own import own_table

if TYPE_CHECKING:
    from pipeline.answers import Tell
    from stages.data.images import ImageSet

SHARD_IMAGES = 512
"""of one file; what was pushed is not pushed again"""
TIMED_IMAGES = 16
SAME = ("hint", "streams")
"""options that an engine is built anew with as the bundle's was"""
BATCHES = ("batch_min", "batch_max")
"""options of a runtime that are of one batch size"""
SWEPT = (
    "batch",
    "latency_p50_ms",
    "latency_p90_ms",
    "latency_p99_ms",
    "throughput_ips",
    "requests",
    "joules_per_image",
    "throttled",
)
"""what is told of each batch size"""
BUILD_SECONDS = 3600
"""that the builds of one engine may take; those of others come on top"""
ANSWERS_PER_SECOND = 1.0
"""of the slowest board that is thought of, for the job's time limit"""
LATENCY_SECONDS = {"quick": 1800, "full": 7200}


def measure_bundles(
    device: Device,
    bundles: Mapping[str, Path],
    images: "ImageSet | None",
    level: Level,
    *,
    who: str = "",
    wait_seconds: float = 0,
    batch: int | None = None,
    threads: int | None = None,
    build: bool = False,
    latency: bool = True,
    health: bool = True,
    answers: Path | None = None,
    nonce: str = "",
    tell: "Tell" = lambda message, share: None,
) -> JobResult:
    """Measure bundles against each other on a board, interleaved; hold it meanwhile.

    bundles: folders by role. images: every engine answers all of them; None: random pixels, for the timing alone.
    batch: in place of the bundles' own, then engines are built on the board. build: build in any case. answers: folder
    for the pulled answers, which are gone with the session otherwise. nonce: with the same, a job that is done there is
    not done again. Raises InputError for what is no bundle, StageError for a damaged one, and the device's errors.
    """
    manifests = {role: read_bundle(folder) for role, folder in bundles.items()}
    with (
        TemporaryDirectory(prefix="vitrim-ondevice-") as work,
        device.session(who=who, wait_seconds=wait_seconds, folder=answers or Path(work, "answers")) as session,
    ):
        job = prepare_job(
            session,
            bundles,
            manifests,
            images,
            level,
            work=Path(work),
            batch=batch,
            threads=threads,
            build=build,
            latency=latency,
            nonce=nonce,
            tell=tell,
        )
        around = []
        if health:
            tell("health of the board", None)
            around.append(session.health())
        result = session.run(job, tell)
        if health:
            tell("health of the board", None)
            around.append(session.health())
        return result.replace(health=tuple(around))


def prepare_job(
    session: Session,
    bundles: Mapping[str, Path],
    manifests: Mapping[str, Mapping[str, Any]],
    images: "ImageSet | None",
    level: Level,
    *,
    work: Path,
    batch: int | None,
    threads: int | None,
    build: bool,
    latency: bool,
    nonce: str,
    tell: "Tell",
) -> Job:
    """Push what a job needs, and say what it is. work: a folder for what is prepared here."""
    sizes = {int(manifest["batch"]) for manifest in manifests.values()}
    if batch is None and len(sizes) > 1:
        raise InputError(f"the bundles have the batch sizes {sorted(sizes)}; say which one with `batch`")
    size = batch or sizes.pop()
    pushed: dict[str, str] = {}
    engines = {}
    for role, folder in bundles.items():
        preprocess = Preprocess.model_validate_json((folder / "preprocessing.json").read_text())
        key = preprocess.digest()
        if key not in pushed:
            shards = write_shards(work / f"images-{len(pushed)}", images, preprocess, work)
            tell(f"copying images for {role}", None)
            pushed[key] = session.push(shards)
        tell(f"copying the bundle of {role}", None)
        engines[role] = JobEngine(
            source=session.push(folder),
            runtime=manifests[role]["runtime"],
            precision=manifests[role]["precision"],
            build=build or int(manifests[role]["batch"]) != size,
            options=_options(folder),
            images=pushed[key],
        )
    count = len(images) if images is not None else 0
    return Job(
        engines=engines,
        images=next(iter(pushed.values())),
        batch=size,
        threads=threads,
        level=level,
        answers=images is not None,
        latency=latency,
        limit_seconds=len(engines) * (BUILD_SECONDS + count / ANSWERS_PER_SECOND) + LATENCY_SECONDS[level],
        nonce=nonce,
    )


def validate_on_device(
    device: Device,
    bundle: Path,
    images: "ImageSet | None",
    *,
    level: Level,
    batches: Sequence[int] = (),
    wait_seconds: float = 0,
    tell: "Tell" = lambda message, share: None,
) -> tuple[dict[str, Any], list[JobResult]]:
    """What `vitrim validate BUNDLE --device NAME` tells: plain figures by name, and the records behind them."""
    import secrets

    manifest = read_bundle(bundle)
    own = int(manifest["batch"])
    if images is not None and images.labels is not None and manifest["output"]["kind"] == "logits":
        from stages.data.images import check_labels

        check_labels(images, manifest["output"]["size"])
    results: dict[int, JobResult] = {}
    told: dict[str, Any] = {}
    with TemporaryDirectory(prefix="vitrim-answers-") as folder:
        for batch in [own, *sorted(set(batches) - {own})]:
            results[batch] = measure_bundles(
                device,
                {"engine": bundle},
                images if batch == own else None,
                level,
                wait_seconds=wait_seconds,
                batch=batch,
                health=batch == own,
                answers=Path(folder),
                nonce=secrets.token_hex(8),  # `validate` always measures anew
                tell=tell,
            )
        told = _told(bundle, manifest, results[own])
        if batches:
            told["batches"] = [
                {name: value for name, value in _latency(results[batch]).items() if name in SWEPT}
                for batch in sorted(set(batches))
            ]
        if images is not None:
            told |= _accuracy(results[own], images)
    gone = {"roles": {"engine": results[own].roles["engine"].replace(answers=None)}}
    return told, [results[own].replace(**gone), *(one for batch, one in results.items() if batch != own)]


def read_bundle(folder: Path) -> dict[str, Any]:
    """manifest.json of a whole bundle; raises InputError for what is none, StageError for a damaged one."""
    if not (folder / "manifest.json").is_file():
        raise InputError(
            f"{str(folder)!r} is not a bundle: it has no manifest.json; give the folder that `vitrim build` wrote"
        )
    problems = verify_bundle(folder)
    if problems:
        raise StageError(f"the bundle {str(folder)!r} is damaged: {'; '.join(problems[:3])}; build it again")
    return dict(json.loads((folder / "manifest.json").read_text()))


def write_shards(folder: Path, images: "ImageSet | None", preprocess: Preprocess, work: Path) -> Path:
    """Images as a board reads them: files of uint8 [N, H, W, 3], mean and std. Random pixels where there are none."""
    import numpy as np

    folder.mkdir()
    if images is None:
        random = np.random.default_rng(0)
        shape = (TIMED_IMAGES, preprocess.height, preprocess.width, 3)
        pixels = random.integers(0, 256, shape, dtype=np.uint8)
    else:
        pixels = np.load(images.pixels_file(preprocess, work), mmap_mode="r")
    for index in range(math.ceil(len(pixels) / SHARD_IMAGES)):
        part = pixels[index * SHARD_IMAGES : (index + 1) * SHARD_IMAGES]
        np.save(folder / f"{index:04}.npy", part, allow_pickle=False)
    (folder / "preprocess.json").write_text(json.dumps({"mean": preprocess.mean, "std": preprocess.std}))
    return folder


def _options(bundle: Path) -> dict[str, Any]:
    """How the bundle's engine was built, beside precision, batch and threads."""
    file = bundle / "engine" / "engine.json"
    return options_again(json.loads(file.read_text())) if file.is_file() else {}


def options_again(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Options that an engine is built with once more, perhaps for another batch size. engine: its engine.json."""
    options = engine["options"]
    names = [*SAME, *(name for name in own_table(engine["runtime"]) if name not in BATCHES)]
    return {name: options[name] for name in names if options.get(name) is not None}


def _told(bundle: Path, manifest: Mapping[str, Any], result: JobResult) -> dict[str, Any]:
    engine = result.roles["engine"]
    before, after = result.health
    built = f"built there: {engine.reason}" if engine.built else "the bundle's own"
    return {
        "bundle": str(bundle),
        "files": "complete",
        "device": result.device,
        "runtime": f"{engine.engine['runtime']} {engine.engine['version']}",
        "precision": manifest["precision"],
        "engine": f"{built}{', built earlier' if engine.reused else ''}",
        "engine_sha256": engine.engine_sha256,
        **({} if engine.build_seconds is None else {"build_seconds": round(engine.build_seconds, 1)}),
        **_latency(result),
        "health_ms": [round(before.value_ms, 3), round(after.value_ms, 3)],
        "power_mode": result.environment.get("power_mode"),
        "attempts": result.attempts,
    }


def _latency(result: JobResult) -> dict[str, Any]:
    from pipeline.report.compose import figures

    assert result.comparison is not None
    found = figures(result.comparison.measurements["engine"])
    hint = result.roles["engine"].engine.get("at_load", {}).get("hint")
    return {
        "batch": result.comparison.measurements["engine"].batch,
        "latency_p50_ms": round(found.p50, 3),
        "latency_p50_ms_ci95": [round(edge, 3) for edge in found.ci95],
        "latency_p90_ms": None if found.p90 is None else round(found.p90, 3),
        "latency_p99_ms": None if found.p99 is None else round(found.p99, 3),
        "throughput_ips": None
        if hint == "throughput" or found.throughput_ips is None
        else round(found.throughput_ips, 2),
        "mean_power_w": {one.scope: round(one.mean_power_w, 2) for one in found.energy} or None,
        "joules_per_image": {one.scope: round(one.joules_per_image, 4) for one in found.energy} or None,
        "energy_note": found.energy_note,
        "peak_gpu_memory_bytes": found.peak_gpu_memory_bytes,
        "queries": found.queries,
        "processes": found.processes,
        "stable": found.stable,
        "throttled": list(found.throttled),
    }


def _accuracy(result: JobResult, images: "ImageSet") -> dict[str, Any]:
    import numpy as np

    path = result.roles["engine"].answers
    assert path is not None
    answers = cast("np.typing.NDArray[np.float32]", np.load(path, allow_pickle=False))
    if images.labels is None:
        return {"images": len(images), "accuracy": "not measured: the images have no labels"}
    return {"images": len(images), "top1": round(float((answers.argmax(axis=1) == images.labels).mean()), 4)}
