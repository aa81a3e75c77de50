"""Measure bundles on a device: pushed there, built there where their engines do not fit, answered and timed there."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.again import build_again
from pipeline.held import against_build
from pipeline.told import accuracy_told, check_labelled, latency_told, swept
from targets.bundle.expected import read_expected
from targets.bundle.verify import check_bundle
from targets.devices.device import Device, Session
from targets.devices.job import Job, JobEngine, JobResult
from targets.errors import InputError, StageError
from targets.measure.procedure import Level
from targets.preprocess import Preprocess

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.answers import Tell
    from stages.data.images import ImageSet
    from targets.measure.measurement import Measurement

SHARD_IMAGES = 512
"""of one file; what was pushed is not pushed again"""
TIMED_IMAGES = 16
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
        again = build_again(folder, manifests[role], batch=size)
        engines[role] = JobEngine(
            source=session.push(folder),
            runtime=manifests[role]["runtime"],
            precision=manifests[role]["precision"],
            build=build or int(manifests[role]["batch"]) != size,
            threads=threads or again.threads,
            options=again.options,
            at_load=again.at_load,
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
    expected = read_expected(bundle)
    own = int(manifest["batch"])
    check_labelled(images, manifest["output"])
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
            told["batches"] = [swept(_latency(results[batch])) for batch in sorted(set(batches))]
        top1 = None
        if images is not None:
            found, top1 = accuracy_told(images, _answers(results[own]), manifest["output"]["kind"])
            told |= found
        told |= against_build(expected, measurement=_measurement(results[own]), images=images, answers=top1)
    gone = {"roles": {"engine": results[own].roles["engine"].replace(answers=None)}}
    return told, [results[own].replace(**gone), *(one for batch, one in results.items() if batch != own)]


def read_bundle(folder: Path) -> dict[str, Any]:
    """manifest.json of a whole bundle; raises InputError for what is none or newer, StageError for a damaged one."""
    if not (folder / "manifest.json").is_file():
        raise InputError(
            f"{str(folder)!r} is not a bundle: it has no manifest.json; give the folder that `vitrim build` wrote"
        )
    problems = check_bundle(folder).problems
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


def _measurement(result: JobResult) -> "Measurement":
    assert result.comparison is not None
    return result.comparison.measurements["engine"]


def _latency(result: JobResult) -> dict[str, Any]:
    from pipeline.report.compose import figures

    measurement = _measurement(result)
    found = figures(measurement)
    many = result.roles["engine"].engine.get("at_load", {}).get("hint") == "throughput"
    return latency_told(found, batch=measurement.batch, throughput_ips=None if many else found.throughput_ips)


def _answers(result: JobResult) -> "NDArray[Any]":
    import numpy as np

    path = result.roles["engine"].answers
    assert path is not None
    answers: NDArray[Any] = np.load(path, allow_pickle=False)
    return answers
