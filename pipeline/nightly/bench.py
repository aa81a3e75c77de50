"""Bench: what a night asks of a board; and the devices of the devices file, which answer it."""

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.nightly.stop import StoppedError
from targets.bundle.manifest import BundleManifest
from targets.devices.device import Device, Session
from targets.devices.job import Job, JobEngine
from targets.errors import InputError, VitrimError, WorkerError
from targets.measure.measurement import Comparison, Level

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.data.images import ImageSet

SHARD = 512
"""images in one file that is copied"""
Tell = Callable[[str, float | None], None]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a board measured of some bundles, interleaved."""

    comparison: Comparison
    """raw samples by role"""
    environment: Mapping[str, str]
    """what makes a new segment when it changes"""
    engine_bytes: Mapping[str, int]
    """by role"""
    answers: "Mapping[str, NDArray[Any]]" = field(default_factory=dict)
    """by role, [N, C] in the order of the images; empty where none were asked for"""
    health_ms: tuple[float, ...] = ()
    """of the board's reference graph, before and after; empty where it has none"""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """whatever else the board tells, for people"""


class Bench(Protocol):
    """One board. Its lock is held while it is open."""

    @property
    def name(self) -> str:
        """What the devices file calls it."""
        ...

    @property
    def target(self) -> str:
        """What is built for it."""
        ...

    @property
    def shares_host(self) -> bool:
        """Whether it is this machine: then nothing may be built while it measures."""
        ...

    def open(self, *, wait_seconds: float) -> AbstractContextManager[None]:
        """Hold the board. Raises DeviceBusyError where somebody else still does after this time."""
        ...

    def measure(
        self,
        bundles: Mapping[str, Path],
        *,
        images: "ImageSet | None",
        level: Level,
        answers: bool,
        scratch: Path,
        tell: Tell,
    ) -> Measured:
        """Time the engines of bundles against each other, and have each answer the images.

        bundles: by role. images: the evaluation images; without them random pixels are timed and nothing is answered.
        scratch: a folder for decoded images. Raises DeviceLostError, DeviceRefusedError, WorkerError, StageError.
        """
        ...


@dataclass
class DeviceBench:
    """A device of the devices file, whatever its kind."""

    device: Device
    shares_host: bool
    _session: Session | None = None

    @property
    def name(self) -> str:
        """What the devices file calls it."""
        return self.device.name

    @property
    def target(self) -> str:
        """What is built for it."""
        return self.device.spec.target

    @contextmanager
    def open(self, *, wait_seconds: float) -> Iterator[None]:
        """Hold the board."""
        with self.device.session(who="vitrim nightly", wait_seconds=wait_seconds) as session:
            self._session = session
            try:
                yield
            finally:
                self._session = None

    def measure(
        self,
        bundles: Mapping[str, Path],
        *,
        images: "ImageSet | None",
        level: Level,
        answers: bool,
        scratch: Path,
        tell: Tell,
    ) -> Measured:
        """Push what is missing there, and run one job."""
        session = self._session
        if session is None:
            raise RuntimeError("a board is held while it measures")
        manifests = {role: read_manifest(bundle, role) for role, bundle in bundles.items()}
        before = _health(session)
        engines, pushed = {}, {}
        for role, bundle in bundles.items():
            pixels = _push_pixels(bundle, images, session, Path(scratch, f"pixels-{role}"))
            pushed[role] = pixels
            engines[role] = JobEngine(
                source=session.push(bundle),
                runtime=manifests[role].runtime,
                precision=manifests[role].precision,
                images=pixels,
            )
        job = Job(
            engines=engines,
            images=next(iter(pushed.values())),
            batch=next(iter(manifests.values())).batch,
            level=level,
            answers=answers and images is not None,
            nonce=secrets.token_hex(8),
        )
        try:
            result = session.run(job, tell)
        except StoppedError:
            with suppress(VitrimError):
                session.cancel(job.key)
            raise
        if result.comparison is None:
            raise WorkerError(f"device {self.name!r} gave no times")
        after = _health(session)
        return Measured(
            comparison=result.comparison,
            environment=result.environment,
            engine_bytes={role: _engine_bytes(one.engine) for role, one in result.roles.items()},
            answers={role: np.load(one.answers) for role, one in result.roles.items() if one.answers is not None},
            health_ms=(before, after) if before is not None and after is not None else (),
            facts={
                "agent": result.agent,
                "attempts": result.attempts,
                "built_there": {role: one.reason for role, one in result.roles.items() if one.built},
                "before": result.before,
                "after": result.after,
            },
        )


def _health(session: Session) -> float | None:
    """Milliseconds of the reference graph; None where the board cannot run it, or was disturbed."""
    with suppress(WorkerError, InputError):
        found = session.health()
        return None if found.flags else found.value_ms
    return None


def read_manifest(bundle: Path, role: str) -> BundleManifest:
    """What a bundle says of itself. Raises WorkerError where it is damaged."""
    from targets.bundle.verify import verify_bundle

    problems = verify_bundle(bundle)
    if problems:
        raise WorkerError(f"the bundle of {role} is damaged: {'; '.join(problems[:3])}; build it again")
    return BundleManifest.model_validate_json((bundle / "manifest.json").read_text())


def _push_pixels(bundle: Path, images: "ImageSet | None", session: Session, folder: Path) -> str:
    """Bring the images onto the board as one engine reads them, else random pixels; returns their digest there."""
    from pipeline.pixels import INPUTS
    from targets.preprocess import Preprocess

    preprocess = Preprocess.model_validate_json((bundle / "preprocessing.json").read_text())
    folder.mkdir()
    if images is not None and len(images):
        pixels = np.load(images.pixels_file(preprocess, folder.parent), mmap_mode="r")
    else:
        size = (INPUTS, preprocess.height, preprocess.width, 3)
        pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    for number, start in enumerate(range(0, len(pixels), SHARD)):
        np.save(folder / f"{number:04}.npy", pixels[start : start + SHARD], allow_pickle=False)
    (folder / "preprocess.json").write_text(json.dumps({"mean": preprocess.mean, "std": preprocess.std}))
    return session.push(folder)


def _engine_bytes(engine: Mapping[str, Any]) -> int:
    return sum(int(file["size_bytes"]) for file in engine["files"].values())
