"""Bench: what a night asks of a board, whatever is behind it; and the board that is this very machine."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from targets.errors import DeviceBusyError, InputError, WorkerError
from targets.measure.measurement import Comparison, Level

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.data.images import ImageSet
    from targets.preprocess import Preprocess

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


@dataclass(frozen=True, kw_only=True)
class LocalBench:
    """This machine."""

    name: str
    target: str
    lock: Path
    """file whose lock stands for the machine"""
    shares_host: bool = True

    def open(self, *, wait_seconds: float) -> AbstractContextManager[None]:
        """Hold the machine against other runs of this user."""
        return _held(self.lock, wait_seconds, self.name)

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
        """Measure with the workers of this machine."""
        from pipeline.answers import engine_answers
        from pipeline.pixels import Pixels
        from targets.bundle.verify import verify_bundle
        from targets.measure.latency import EngineUnderTest, compare
        from targets.preprocess import Preprocess

        engines, manifests, read = {}, {}, {}
        for role, bundle in bundles.items():
            problems = verify_bundle(bundle)
            if problems:
                raise WorkerError(f"the bundle of {role} is damaged: {'; '.join(problems[:3])}")
            manifests[role] = manifest = json.loads((bundle / "manifest.json").read_text())
            if manifest["engine_sha256"] is None:
                raise InputError(f"device {self.name!r} is this machine, and the bundle has no engine for it")
            read[role] = Preprocess.model_validate_json((bundle / "preprocessing.json").read_text())
            batch = int(manifest["batch"])
            engines[role] = EngineUnderTest(
                folder=bundle / "engine",
                batch=batch,
                inputs=timed_inputs(batch, read[role], images, scratch),
            )
        first = next(iter(engines.values())).inputs
        assert first is not None
        comparison = compare(engines, first, level=level, tell=tell)
        found = {}
        if answers and images is not None:
            for role, bundle in bundles.items():
                pixels = Pixels.of(images, read[role], scratch)
                found[role] = engine_answers(bundle / "engine", pixels, tell=tell)
        return Measured(
            comparison=comparison,
            environment=_environment(comparison, next(iter(manifests.values()))["runtime"]),
            engine_bytes={role: bytes_of(bundle / "engine") for role, bundle in bundles.items()},
            answers=found,
        )


def timed_inputs(batch: int, preprocess: "Preprocess", images: "ImageSet | None", folder: Path) -> "NDArray[Any]":
    """What engines are timed with, float32 [N, 3, H, W]: the first evaluation images, else random pixels."""
    import numpy as np

    from pipeline.pixels import INPUTS, Pixels
    from targets.preprocess import normalise

    count = max(INPUTS, batch)
    if images is not None and len(images):
        return Pixels.of(images.subset(range(min(count, len(images)))), preprocess, folder).inputs(count)
    size = (count, preprocess.height, preprocess.width, 3)
    return normalise(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8), preprocess)


def bytes_of(folder: Path) -> int:
    """Size of an engine's files, without what describes them."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "engine.json")


def _held(lock: Path, wait_seconds: float, name: str) -> AbstractContextManager[None]:
    from collections.abc import Iterator
    from contextlib import contextmanager

    from pipeline.store.locks import BusyError, locked, read_holder, write_holder

    holder = lock.with_suffix(".holder")

    @contextmanager
    def holding() -> Iterator[None]:
        try:
            with locked(lock, holder_file=holder, timeout_s=wait_seconds):
                write_holder(holder)
                yield
        except BusyError:
            who = read_holder(holder)
            raise DeviceBusyError(f"device {name!r} is held by {who or 'somebody else'}") from None

    return holding()


def _environment(comparison: Comparison, runtime: str) -> dict[str, str]:
    """What this machine is and how it is set."""
    from targets.facts import installed_version, probe, stable_facts

    facts = probe()
    before = comparison.conditions_before
    found = {name: value for name, value in stable_facts(facts).items() if value}
    found["kernel"] = facts["kernel"]
    found[runtime] = installed_version(runtime) or "unknown"
    for name in ("governors", "turbo", "cpu_quota"):
        if before.get(name) is not None:
            value = before[name]
            found[name] = ", ".join(sorted(value)) if isinstance(value, dict) else str(value)
    watched = comparison.watched
    if watched is not None and watched.facts.get("power_mode"):
        found["power_mode"] = str(watched.facts["power_mode"])
    return found
