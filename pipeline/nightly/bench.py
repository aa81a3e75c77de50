"""Bench: what a night asks of a board; and the devices of the devices file, which answer it."""

import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.nightly.stop import StoppedError
from pipeline.ondevice import prepare_job, read_bundle
from targets.devices.device import Device, Session
from targets.errors import InputError, VitrimError, WorkerError
from targets.measure.measurement import Comparison, Level

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.data.images import ImageSet

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
        before = _health(session)
        work = Path(tempfile.mkdtemp(prefix="job-", dir=scratch))
        job = prepare_job(
            session,
            bundles,
            {role: read_bundle(bundle) for role, bundle in bundles.items()},
            images,
            level,
            work=work,
            batch=None,
            threads=None,
            build=False,
            latency=True,
            nonce=secrets.token_hex(8),
            tell=tell,
        )
        if not answers:
            job = job.replace(answers=False)
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


def _engine_bytes(engine: Mapping[str, Any]) -> int:
    return sum(int(file["size_bytes"]) for file in engine["files"].values())
