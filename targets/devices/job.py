"""Job: what is done on a board, under a key that makes it one thing however often it is asked for; and its result."""

import hashlib
from typing import Any, Literal

from pydantic import Field

from targets.measure.measurement import Comparison
from targets.measure.procedure import Level
from targets.record import Record, canonical_json

Sha256 = Field(pattern="^[0-9a-f]{64}$")


class JobEngine(Record):
    """One engine of a job, where it comes from and how it is built if it has to be."""

    source: str = Sha256
    """digest of a pushed folder: a bundle (model.onnx, perhaps engine/), or an engine (engine.json)"""
    runtime: str
    precision: str
    build: bool = False
    """build it anew from model.onnx; else only where there is no engine, or one that does not fit the board"""
    threads: int | None = Field(default=None, gt=0)
    """that it is built for; null: the job's"""
    options: dict[str, Any] = {}
    """of the build, that the runtime alone has"""
    at_load: dict[str, Any] = {}
    """of an engine that is built there: options that hold at every load, and `cores`"""
    images: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """its own, where its input has another size than the others'"""
    floor_ms: float | None = None


class ShortProcedure(Record):
    """How much is timed, in place of the level's own: see `targets.measure.procedure.Procedure`."""

    processes: int = Field(ge=1)
    queries: int = Field(ge=1)
    seconds: float = Field(ge=0)
    blocks: int = Field(ge=1)
    warmup_queries: int = Field(ge=1)
    warmup_seconds: float = Field(ge=0)
    warmup_limit_seconds: float = Field(gt=0)


class Job(Record):
    """What is asked of a board."""

    format: Literal["vitrim.job/1"] = "vitrim.job/1"
    engines: dict[str, JobEngine] = Field(min_length=1)
    """by role"""
    images: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """digest of a pushed folder: shards 0000.npy, ... of uint8 [N, H, W, 3], and preprocess.json with mean and std"""
    batch: int = Field(gt=0)
    threads: int | None = Field(default=None, gt=0)
    level: Level = "quick"
    procedure: ShortProcedure | None = None
    answers: bool = False
    """every engine answers all images"""
    latency: bool = True
    """engines are timed, interleaved"""
    limit_seconds: float = Field(default=3600, gt=0)
    nonce: str = ""
    """what makes this job another one than an equal one of before, e.g. the night; with the same, a finished result is
    given again
    """

    @property
    def key(self) -> str:
        """Digest of all of it, 64 hex digits."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json")).encode()).hexdigest()


class RoleResult(Record):
    """What a board says of one engine."""

    engine: dict[str, Any]
    """engine.json"""
    engine_sha256: str
    built: bool
    """on the board"""
    reused: bool
    """it had built it before"""
    reason: str
    """why it was built there; empty where the engine that came was used"""
    build_seconds: float | None
    answers: str | None = None
    """path of a .npy file here: the first output for every image"""
    output: str | None = None
    """its name"""


class JobResult(Record):
    """What a job gave."""

    format: Literal["vitrim.device_result/1"] = "vitrim.device_result/1"
    device: str
    key: str
    roles: dict[str, RoleResult]
    comparison: Comparison | None
    """latency: raw samples, conditions, energy"""
    environment: dict[str, str]
    """what makes a new segment of a history where it changes"""
    before: dict[str, Any]
    """state of the board, see `targets.agent.state`"""
    after: dict[str, Any]
    agent: str
    """SHA-256 of the agent's file"""
    attempts: int = Field(ge=1)
    """starts that it took; more than one: an earlier one failed or was killed"""
    health: tuple["Health", ...] = ()
    """before and after, where it was looked at"""


class Health(Record):
    """How fast the board runs a reference graph now: a value for its history."""

    value_ms: float
    reference: str
    """name and version of the graph, and the runtime that ran it"""
    runs_ms: tuple[float, ...]
    """median of each process"""
    flags: tuple[str, ...] = ()
    """throttled, unstable_warmup"""
    environment: dict[str, str] = {}


JobResult.model_rebuild()
