"""One job on a board, in a process of its own: engines are built where needed, answer images, and are timed.

It outlives the link and the session that started it. Events and result are files; the result comes last, in one step.
The process takes no part in what is measured: engines are in workers, by the same procedure as anywhere.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from targets.agent.images import prepare
from targets.agent.locks import try_lock
from targets.agent.session import read_json
from targets.agent.shelf import Shelf
from targets.agent.state import board_state
from targets.atomic import sync_tree, write_atomic
from targets.errors import InputError, VitrimError
from targets.measure.procedure import LEVELS, EngineUnderTest, Procedure
from targets.measure.sampling import sample
from targets.runtimes.engine import ENGINE_FILE, engine_digest, read_engine, verify_files
from targets.worker import Worker

RESULT = "vitrim.job_result/1"
EVENT_SECONDS = 0.3
"""between two events that only say how far it is"""
INPUTS = 16
"""different images that are timed with"""


class JobStoppedError(VitrimError):
    """The time limit is over, or somebody cancelled."""


@dataclass(frozen=True)
class Normal:
    """Mean and standard deviation of the channels."""

    mean: Sequence[float]
    std: Sequence[float]


def do_job(folder: Path, key: str, *, runtimes: Mapping[str, Path], measuring_lock: Path | None) -> int:
    """Do a job whose `job.json` is there; exit code 0 where it leaves a result, of whatever kind."""
    place = folder / "jobs" / key
    job = read_json(place / "job.json")
    scratch = place / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)  # of an earlier start that was killed
    scratch.mkdir()
    tempfile.tempdir = str(scratch)  # of the workers too: nothing is left elsewhere, however we end
    _stop_on_signals(float(job["limit_seconds"]))
    try:
        with _turn(measuring_lock):
            found = {"state": "done", **_Work(Shelf(folder), place, job, runtimes).all()}
    except VitrimError as error:
        found = {"state": "failed", "kind": type(error).__name__, "message": str(error)}
    except OSError as error:
        what = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
        found = {"state": "failed", "kind": "WorkerError", "message": what}
    except MemoryError:
        found = {"state": "failed", "kind": "WorkerError", "message": "out of memory; use a smaller batch"}
    except Exception as error:
        traceback.print_exc()
        found = {"state": "failed", "kind": "defect", "message": f"{type(error).__name__}: {error}"}
    signal.setitimer(signal.ITIMER_REAL, 0)
    shutil.rmtree(scratch, ignore_errors=True)
    write_atomic(place / "result.json", json.dumps({"format": RESULT, **found}).encode())
    return 0


class _Work:
    """What is done for one job."""

    def __init__(self, shelf: Shelf, place: Path, job: dict[str, Any], runtimes: Mapping[str, Path]) -> None:
        self._shelf, self._place, self._job, self._runtimes = shelf, place, job, runtimes
        self._told = 0.0

    def all(self) -> dict[str, Any]:
        """Do it; plain JSON."""
        before = board_state(self._shelf.folder)
        engines, roles = {}, {}
        for role, wanted in self._job["engines"].items():
            engines[role], roles[role] = self._engine(role, wanted)
        if self._job["answers"]:
            for role, wanted in self._job["engines"].items():
                roles[role].update(self._answers(role, engines[role], wanted))
        comparison = self._latency(engines) if self._job["latency"] else None
        return {"roles": roles, "comparison": comparison, "before": before, "after": board_state(self._shelf.folder)}

    def _engine(self, role: str, wanted: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
        """The engine of a role: the one that came, where it fits, else one that is built from the graph beside it."""
        tree = self._shelf.tree(wanted["source"])
        shipped = next((one for one in (tree, tree / "engine") if (one / ENGINE_FILE).is_file()), None)
        reason = "it was asked for" if wanted["build"] else "there is none yet"
        if shipped and not wanted["build"]:
            self._tell(f"{role}: does its engine fit?", None)
            with self._worker() as worker:
                misfit = worker.misfit(shipped)
            if misfit is None:
                return shipped, _engine_facts(shipped, built=False, reason="")
            reason = misfit
        model = tree / "model.onnx"
        if not model.is_file():
            raise InputError(
                f"the engine of {role} cannot be used ({reason}), and there is no model.onnx to build from"
            )
        return self._built(role, model, wanted, reason)

    def _built(self, role: str, model: Path, wanted: dict[str, Any], reason: str) -> tuple[Path, dict[str, Any]]:
        options = {
            "precision": wanted["precision"],
            "batch": self._job["batch"],
            "threads": wanted["threads"] or self._job["threads"],
            "more": wanted["options"],
            "at_load": {**wanted["at_load"], **_weights(wanted, model)},
        }
        with self._worker() as worker:
            key = worker.engine_key(runtime=wanted["runtime"], source=wanted["source"], options=options)
            folder = self._shelf.folder / "engines" / key
            with suppress(InputError):
                verify_files(folder, read_engine(folder))
                os.utime(folder)
                kept = read_json(folder / "built.json")
                return folder, _engine_facts(folder, built=True, reason=reason, reused=True, seconds=kept["seconds"])
            self._tell(f"{role}: building with {wanted['runtime']}, {wanted['precision']}", None)
            shutil.rmtree(folder, ignore_errors=True)
            new = folder.with_name(f"{key}.tmp")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            _, seconds = worker.build(model, new, runtime=wanted["runtime"], **options)
        write_atomic(new / "built.json", json.dumps({"seconds": seconds}).encode())
        sync_tree(new)
        os.replace(new, folder)
        return folder, _engine_facts(folder, built=True, reason=reason, reused=False, seconds=seconds)

    def _answers(self, role: str, engine: Path, wanted: dict[str, Any]) -> dict[str, Any]:
        """First output of an engine for every image, as an object."""
        shards, normal = self._images(wanted)
        parts = []
        with self._worker() as worker:
            worker.load(engine, threads=self._job["threads"])
            for index, shard in enumerate(shards):
                self._tell(f"{role}: images, part {index + 1} of {len(shards)}", index / len(shards))
                images = np.load(shard, mmap_mode="r", allow_pickle=False)
                name, answer = next(iter(worker.infer(images, preprocess=normal).items()))
                parts.append(answer)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "answers.npy")
            np.save(path, np.concatenate(parts), allow_pickle=False)
            return {"answers": self._shelf.add(path), "output": name}

    def _latency(self, engines: dict[str, Path]) -> dict[str, Any]:
        """All engines, interleaved; plain JSON as `targets.measure.measurement.Comparison` says."""
        count = max(INPUTS, self._job["batch"])
        under_test, first = {}, None
        for role, wanted in self._job["engines"].items():
            shards, normal = self._images(wanted)
            some = np.load(shards[0], mmap_mode="r", allow_pickle=False).take(range(count), axis=0, mode="wrap")
            own = prepare(some, {"mean": normal.mean, "std": normal.std})
            first = own if first is None else first
            under_test[role] = EngineUnderTest(
                folder=engines[role],
                batch=self._job["batch"],
                threads=self._job["threads"],
                inputs=own,
                floor_ms=wanted["floor_ms"],
            )
        assert first is not None  # a job has an engine
        level = self._job["level"]
        procedure = Procedure(**self._job["procedure"]) if self._job["procedure"] else LEVELS[level]
        return sample(
            under_test,
            first,
            level=level,
            procedure=procedure,
            start=lambda threads: Worker(threads, runtimes=self._runtimes),
            tell=lambda message, share: self._tell(f"latency: {message}", share),
        )

    def _images(self, wanted: dict[str, Any]) -> tuple[list[Path], Normal]:
        digest = wanted["images"] or self._job["images"]
        if not digest:
            raise InputError("images are needed: to be answered, or to be timed with")
        tree = self._shelf.tree(digest)
        told = read_json(tree / "preprocess.json")
        shards = sorted(tree.glob("*.npy"))
        if not shards or not {"mean", "std"} <= told.keys():
            raise InputError("the images must be a folder of .npy files, uint8 [N, H, W, 3], and a preprocess.json")
        return shards, Normal(told["mean"], told["std"])

    def _worker(self) -> Worker:
        return Worker(self._job["threads"], runtimes=self._runtimes)

    def _tell(self, message: str, share: float | None) -> None:
        """Add an event; those that come fast are left out."""
        now = time.monotonic()
        if share is not None and now - self._told < EVENT_SECONDS:
            return
        self._told = now
        with open(self._place / "events.jsonl", "ab") as file:
            file.write(json.dumps({"message": message, "share": share}).encode() + b"\n")


def _engine_facts(
    folder: Path, *, built: bool, reason: str, reused: bool = False, seconds: float | None = None
) -> dict[str, Any]:
    return {
        "engine": read_engine(folder),
        "engine_sha256": engine_digest(folder),
        "built": built,
        "reused": reused,
        "reason": reason,
        "build_seconds": seconds,
        "answers": None,
        "output": None,
    }


@contextmanager
def _turn(path: Path | None) -> Iterator[None]:
    """Wait until no other board of this machine measures."""
    descriptor = None
    while path is not None and descriptor is None:
        descriptor = try_lock(path, wait_seconds=60)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _stop_on_signals(limit_seconds: float) -> None:
    """Turn the end of the time limit, and SIGTERM, into an exception that lets workers be ended."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if number == signal.SIGALRM:
            raise JobStoppedError(f"the job took longer than its limit of {limit_seconds:g} s and was ended")
        raise JobStoppedError("the job was cancelled")

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_seconds)
    sys.stderr.flush()


def _weights(wanted: dict[str, Any], model: Path) -> dict[str, str]:
    """An engine without weights finds them in the graph that it was built from."""
    return {"weights": str(model)} if wanted["options"].get("strip_weights") else {}
