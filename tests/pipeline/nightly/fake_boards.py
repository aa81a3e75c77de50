"""Boards and builds that are made up: times come from a script and a seeded draw, so that nothing depends on speed."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.nightly.bench import Measured
from pipeline.nightly.builder import Unit
from pipeline.nightly.stop import Stop
from targets.errors import StageError
from targets.measure.measurement import Comparison, Energy, Measurement, Run

RUNS = {"quick": 2, "full": 5}
BLOCKS, QUERIES = 10, 8


@dataclass
class FakeBoard:
    """A board whose engines take what their bundle says, times what the night and the board do to it."""

    name: str
    target: str = "cpu"
    shares_host: bool = False
    base_ms: float = 10.0
    noise: float = 0.003
    """relative standard deviation from measurement to measurement"""
    seed: int = 0
    factor: float = 1.0
    """of the board itself"""
    engines: float = 1.0
    """of the engines that are built from now on: what this board makes of tonight's code"""
    environment: dict[str, str] = field(default_factory=lambda: {"driver": "560", "power_mode": "15W"})
    trouble: list[Exception | None] = field(default_factory=list)
    """what each measurement raises, first to last"""
    energy: bool = True
    throttled: bool = False
    health_ms: tuple[float, ...] = ()
    asked: list[tuple[str, ...]] = field(default_factory=list)
    """roles of each measurement"""
    during: Callable[[], None] = lambda: None
    """what happens while it measures"""

    def __post_init__(self) -> None:
        self._engines: dict[str, float] = {}
        self._draw = np.random.default_rng([self.seed, *self.name.encode()])
        self._held = threading.Lock()

    @contextmanager
    def open(self, *, wait_seconds: float) -> Iterator[None]:
        assert self._held.acquire(blocking=False), f"{self.name} is used twice at once"
        try:
            yield
        finally:
            self._held.release()

    def measure(self, bundles: Mapping[str, Path], *, images: Any, level: str, answers: bool, **_: Any) -> Measured:
        self.asked.append(tuple(bundles))
        self.during()
        trouble = self.trouble.pop(0) if self.trouble else None
        if trouble is not None:
            raise trouble
        told = {role: json.loads((bundle / "engine" / "engine.json").read_text()) for role, bundle in bundles.items()}
        for bundle in bundles.values():
            self._engines.setdefault(_digest(bundle), self.engines)  # an engine stays as fast as it was
        night = self.factor * float(np.exp(self._draw.normal(0, self.noise)))
        drift = night * np.exp(self._draw.normal(0, 0.002, (RUNS[level], BLOCKS)))  # the same moments for all roles
        return Measured(
            comparison=Comparison(
                measurements={role: self._measurement(bundles[role], one, drift, level) for role, one in told.items()},
                conditions_before={},
                conditions_after={},
                started_at=datetime(2026, 1, 1, tzinfo=UTC),
                seconds=1.0,
            ),
            environment=self.environment,
            engine_bytes={role: int(one["bytes"]) for role, one in told.items()},
            answers={role: _answers(images, one) for role, one in told.items()} if answers else {},
            health_ms=tuple(one * self.factor for one in self.health_ms),
        )

    def _measurement(self, bundle: Path, told: dict[str, Any], drift: np.ndarray, level: str) -> Measurement:
        times = self.base_ms * told["speed"] * self._engines[_digest(bundle)] * drift[:, :, None]
        times = times * np.exp(self._draw.normal(0, 0.002, (*drift.shape, QUERIES)))
        runs = tuple(
            Run(
                samples=tuple(map(float, run.ravel())),
                blocks=(QUERIES,) * BLOCKS,
                load_seconds=0.1,
                first_ms=20,
                warmup_queries=10,
                warmup_seconds=0.1,
                stable=True,
                peak_memory_bytes=50_000_000,
                throttled=("thermal",) if self.throttled else (),
            )
            for run in times
        )
        watts = 5.0
        joules = watts * float(np.median(times)) / 1000
        used = Energy(scope="board", covers="module rails", mean_power_w=watts, joules_per_image=joules, seconds=4)
        return Measurement(
            level=level,
            engine_sha256=_digest(bundle),
            batch=1,
            runs=runs,
            flags=("throttled",) if self.throttled else (),
            energy=(used,) if self.energy else (),
        )


@dataclass
class FakeBuilder:
    """Writes bundles whose speed is what `speed` says of a unit; every build is another engine."""

    speed: Callable[[Unit], float] = lambda unit: 1.0
    wrong: Callable[[Unit], int] = lambda unit: 0
    """images that are answered wrong"""
    runtime: str = "onnxruntime"
    trouble: Callable[[Unit], str | None] = lambda unit: None
    always_alike: bool = False
    layers: list[dict[str, Any]] = field(default_factory=list)
    built: list[str] = field(default_factory=list)

    def build(self, unit: Unit, output: Path, *, stop: Stop, tell: Any) -> Path:
        stop.check()
        self.built.append(f"{unit.name}/{unit.target}")
        reason = self.trouble(unit)
        if reason is not None:
            raise StageError(reason)
        folder = output / unit.target
        (folder / "bundle" / "engine").mkdir(parents=True)
        nonce = 0 if self.always_alike else len(self.built)
        engine = {"speed": self.speed(unit), "wrong": self.wrong(unit), "nonce": nonce, "bytes": 1_000_000}
        (folder / "bundle" / "engine" / "engine.json").write_text(json.dumps({"unit": unit.name, **engine}))
        manifest = {"runtime": self.runtime, "precision": "int8", "batch": 1, "output": {"kind": "logits"}}
        (folder / "bundle" / "manifest.json").write_text(json.dumps(manifest))
        report = {"verdict": {"status": "within", "sentence": "within"}, "proof": {"layers": self.layers}}
        (folder / "report.json").write_text(json.dumps(report))
        return folder


def _digest(bundle: Path) -> str:
    return hashlib.sha256((bundle / "engine" / "engine.json").read_bytes()).hexdigest()


def _answers(images: Any, told: dict[str, Any]) -> np.ndarray:
    """Right for all images but the first `wrong` ones."""
    labels = images.labels.copy()
    labels[: told["wrong"]] = (labels[: told["wrong"]] + 1) % 10
    return np.eye(10, dtype=np.float32)[labels]
