"""A worker: the torch-free agent in a process of its own, behind typed methods. Inference never runs in our process.

In Python 3.10 and without pydantic: on a board the agent starts workers of its own.

Shapes: N images, H and W of the model's input.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

import targets
from targets.errors import InputError, WorkerError

Array = NDArray[Any]


class Normalisation(Protocol):
    """What a worker has to know of a preprocess: the pixels come resized and cropped."""

    @property
    def mean(self) -> Sequence[float]:
        """Of each channel, in shares of 255."""
        ...

    @property
    def std(self) -> Sequence[float]:
        """Of each channel, in shares of 255."""
        ...


Tell = Callable[[str, float | None], None]

START_SECONDS = 120
LONG_SECONDS = 3600
"""no single request takes longer: a build of a large engine, a block of slow queries, 256 images"""
LEAVE_SECONDS = 5
CHUNK_IMAGES = 256
"""images that travel at once: about 40 MB of uint8 at 224 x 224"""
_INPUT_ERRORS = ("InputError", "UnknownNameError", "RecipeError")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What was loaded, as the runtime tells it."""

    runtime: str
    version: str
    inputs: tuple[dict[str, Any], ...]
    """name, shape (None: dynamic), dtype"""
    outputs: tuple[dict[str, Any], ...]
    facts: dict[str, Any]
    """options and devices in force"""
    requests: int
    """queries that it answers at once"""
    engine_sha256: str
    """of engine.json; empty for a plain .onnx file"""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """How a warm-up went."""

    first_ms: float
    query_ms: float
    """median of the last window"""
    queries: int
    seconds: float
    stable: bool


@dataclass(frozen=True, kw_only=True)
class Served:
    """Queries that came at given times; nanoseconds since the first was due, one each."""

    due_ns: tuple[int, ...]
    started_ns: tuple[int, ...]
    ended_ns: tuple[int, ...]
    unserved: int
    """queries left when the time was over"""


ROOT = Path(targets.__file__).absolute().parent.parent
"""where this program is: a folder, or the one file that the agent is on a board"""
_GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"preexec_fn": os.setpgrp}


def agent_command() -> list[str]:
    """Start the agent as we were started ourselves; the working folder hides nothing of ours."""
    if ROOT.is_file():  # a zip archive: Python puts it first, and nothing else of ours is there
        return [sys.executable, str(ROOT)]
    return [sys.executable, "-P", "-m", "targets.agent"]


class Worker:
    """Start the agent on entry, end it and its whole process group on exit.

    Raises InputError for what the caller did wrong, WorkerError for all else: a runtime that fails, a worker that
    dies or takes longer than `limit_seconds` for one request.
    """

    def __init__(
        self,
        threads: int | None = None,
        *,
        limit_seconds: float = LONG_SECONDS,
        runtimes: Mapping[str, Path] | None = None,
    ) -> None:
        self._threads, self._limit_seconds, self._runtimes = threads, limit_seconds, dict(runtimes or {})
        self._unread = b""
        self._heard = 0  # bytes of standard error that belong to requests answered before

    def __enter__(self) -> "Worker":
        self._folder = tempfile.TemporaryDirectory(prefix="vitrim-worker-")
        self._words: IO[bytes] = tempfile.TemporaryFile()  # standard error: a pipe could fill up
        command = agent_command()
        command += ["--threads", str(self._threads)] if self._threads else []
        command += [f"--runtime={name}={file}" for name, file in self._runtimes.items()]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env={**os.environ, "PYTHONPATH": path},
            **_GROUP,  # Ctrl-C reaches us alone, and we end the group
        )
        try:
            self._hello: dict[str, Any] = self._ask("hello")
        except BaseException:
            self._leave(at_once=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(at_once=kind is not None)

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self._process.pid

    def facts(self) -> dict[str, Any]:
        """What the machine is that it runs on; see `targets.facts.probe`."""
        return dict(self._hello["facts"])

    def build(
        self,
        model: Path,
        output: Path,
        *,
        runtime: str,
        precision: str,
        batch: int,
        threads: int | None = None,
        more: Mapping[str, Any] | None = None,
        at_load: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Any], float]:
        """Build an engine from an ONNX file into an existing empty folder: (engine.json, seconds).

        more: options that the runtime alone has, as plain JSON. at_load: such that hold at every load, unless others
        are given there.
        """
        options = (
            {"precision": precision, "batch": batch} | ({"threads": threads} if threads else {}) | {**(more or {})}
        )
        told = self._ask(
            "build",
            runtime=runtime,
            model=_absolute(model),
            output=_absolute(output),
            options=options,
            **({"at_load": dict(at_load)} if at_load else {}),
        )
        return told["engine"], told["seconds"]

    def check_fit(self, folder: Path) -> None:
        """Raise InputError where the engine.json of a folder is for another machine or runtime than the worker's.

        Raises WorkerError where its runtime cannot be used here.
        """
        self._ask("check_fit", path=_absolute(folder))

    def misfit(self, path: Path) -> str | None:
        """Why an engine's folder cannot be loaded on this machine; None where nothing is in the way."""
        told: str | None = self._ask("misfit", path=_absolute(path))
        return told

    def engine_key(self, *, runtime: str, source: str, options: Mapping[str, Any]) -> str:
        """Digest of all that decides what a build gives here. source: digest of what it is built from."""
        return str(self._ask("engine_key", runtime=runtime, source=source, options=dict(options)))

    def load(
        self,
        path: Path,
        *,
        runtime: str | None = None,
        precision: str | None = None,
        batch: int | None = None,
        threads: int | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> Loaded:
        """Load an engine's folder, or a plain .onnx file (only there runtime, precision and batch count).

        more: options that the runtime alone has, as plain JSON.
        """
        options = {"precision": precision, "batch": batch, "threads": threads, **(more or {})}
        if path.is_dir():
            options = {"threads": threads, **(more or {})}
        told = self._ask("load", path=_absolute(path), runtime=runtime, options=options)
        return Loaded(**{**told, "inputs": tuple(told["inputs"]), "outputs": tuple(told["outputs"])})

    def infer(
        self,
        images: Array,
        *,
        batch: int | None = None,
        preprocess: Normalisation | None = None,
        tell: Tell = lambda message, share: None,
    ) -> dict[str, Array]:
        """Answer images in order: {output: [N, ...]}.

        images: float32 [N, 3, H, W], or uint8 [N, H, W, 3] with a preprocess. batch: where none is fixed.
        """
        if len(images) == 0:
            raise InputError("no images to answer")
        found: dict[str, list[Array]] = {}
        chunk = max(1, CHUNK_IMAGES // (batch or 1)) * (batch or 1)
        for start in range(0, len(images), chunk):
            path = self._send(images[start : start + chunk])
            files = self._ask("infer", images=path, output=self._folder.name, batch=batch, **_normal(preprocess))
            for name, file in files.items():
                found.setdefault(name, []).append(np.load(Path(self._folder.name, file), allow_pickle=False))
            done = min(start + chunk, len(images))
            tell(f"{done} of {len(images)} images", done / len(images))
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def rotate(self, images: Array, *, batch: int | None = None, preprocess: Normalisation | None = None) -> int:
        """Keep images as the queries of warm_up and measure; returns how many different queries they make."""
        return int(self._ask("rotate", images=self._send(images), batch=batch, **_normal(preprocess)))

    def warm_up(self, *, seconds: float, queries: int, limit_seconds: float) -> WarmUp:
        """Run queries until seconds, count and stability are reached; gives up at the limit."""
        return WarmUp(**self._ask("warm_up", seconds=seconds, queries=queries, limit_seconds=limit_seconds))

    def measure(self, queries: int) -> list[int]:
        """Time a block of queries, one after the other, from numpy in to numpy out: nanoseconds each."""
        return list(self._ask("measure", queries=queries))

    def window(self) -> tuple[int, int]:
        """Begin and end of the last measured block, in nanoseconds of its machine's monotonic clock."""
        begin, end = self._ask("window")
        return int(begin), int(end)

    def serve(self, due_ns: Sequence[int], *, limit_seconds: float) -> Served:
        """Answer queries that come at given times, rising from 0; stops at the limit, whatever is left then."""
        told = self._ask("serve", due_ns=list(due_ns), limit_seconds=limit_seconds)
        started, ended = tuple(told["started_ns"]), tuple(told["ended_ns"])
        due = tuple(due_ns[: len(started)])
        return Served(due_ns=due, started_ns=started, ended_ns=ended, unserved=len(due_ns) - len(due))

    def saturate(self, queries: int) -> int:
        """Time a block of queries, as many at once as the engine answers at once: nanoseconds for all."""
        return int(self._ask("saturate", queries=queries))

    def watch(self) -> dict[str, Any]:
        """Begin to sample clocks, heat and power of the machine that it runs on, see `targets.measure.sampler`.

        A worker that watches must not be one that is measured: it would disturb itself, and stand still when paused.
        """
        return dict(self._ask("watch"))

    def watched(self) -> list[dict[str, Any]]:
        """Samples since the last call."""
        return list(self._ask("watched"))

    @property
    def own_pid(self) -> int:
        """Process id of the agent, as its own machine counts."""
        return int(self._hello["pid"])

    def pause(self) -> None:
        """Stop the process where it stands: threads that a runtime leaves spinning take no time from others then.

        Nothing can be asked of it until `resume`. Were we killed now, it would go on, and leave.
        """
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on; of no effect on one that runs."""
        self._signal(signal.SIGCONT)

    def profile(
        self, images: Array, *, batch: int | None = None, preprocess: Normalisation | None = None, repeats: int = 5
    ) -> list[dict[str, Any]]:
        """Where the time goes, slowest first: [{operator, share, calls}]; shares sum to 1, calls are per query."""
        self.rotate(images, batch=batch, preprocess=preprocess)
        return list(self._ask("profile", repeats=repeats))

    def layers(
        self, images: Array, *, batch: int | None = None, preprocess: Normalisation | None = None, repeats: int = 5
    ) -> list[dict[str, Any]]:
        """What ran, layer by layer, slowest first: see `targets.runtimes.runtime.Session.layers`."""
        self.rotate(images, batch=batch, preprocess=preprocess)
        return list(self._ask("layers", repeats=repeats))

    def matrix_products(self) -> dict[str, int]:
        """How many matrix products and convolutions ran in which precision, as the runtime tells it."""
        return dict(self._ask("matrix_products"))

    def peak_memory_bytes(self) -> int | None:
        """Peak resident memory of the worker: interpreter, runtime, engine, images in use."""
        peak: int | None = self._ask("memory")
        return peak

    def _ask(self, what: str, /, **fields: Any) -> Any:
        """Send one request and wait for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **fields}).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:  # it died or was ended before
            raise self._death(what) from error
        line = self._line(what, START_SECONDS if what == "hello" else self._limit_seconds)
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise self._failure(f"the worker answered {what!r} with {line[:80]!r}") from error
        if "error" not in answer:
            self._heard = self._said()
            return answer["result"]
        kind, message = answer["error"]["kind"], answer["error"]["message"]
        if kind in _INPUT_ERRORS:
            raise InputError(message)
        if kind == WorkerError.__name__:  # it says all there is to say
            raise WorkerError(f"{what} failed: {message}")
        raise self._failure(f"{what} failed in the worker: {message}")

    def _line(self, what: str, limit_seconds: float) -> bytes:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        end = time.monotonic() + limit_seconds
        while b"\n" not in self._unread:
            ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                self._end(at_once=True)
                raise self._failure(f"the worker did not answer {what!r} within {limit_seconds:g} s and was ended")
            data = os.read(pipe, 1 << 20)
            if not data:
                raise self._death(what)
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _send(self, images: Array) -> str:
        path = Path(self._folder.name, "images.npy")
        np.save(path, images, allow_pickle=False)
        return str(path)

    def _death(self, what: str) -> WorkerError:
        self._end(at_once=False)
        code = self._process.returncode
        how = f"ended with exit code {code}" if code >= 0 else f"was ended by {_signal_name(-code)}"
        why = ", probably out of memory: use a smaller batch" if code == -signal.SIGKILL else ""
        return self._failure(f"the worker {how} at {what!r}{why}")

    def _failure(self, message: str) -> WorkerError:
        """Make an error with the last lines that the worker wrote to standard error since its last answer."""
        start = max(self._heard, self._said() - 4096)
        tail = os.pread(self._words.fileno(), 4096, start).decode(errors="replace")
        lines = [line.strip() for line in tail.splitlines() if line.strip()][-3:]
        return WorkerError(f"{message}; its last words: {' | '.join(lines)}" if lines else message)

    def _said(self) -> int:
        """Bytes of standard error so far."""
        return os.fstat(self._words.fileno()).st_size

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and all that it started, if it is still there: the next request tells."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _leave(self, *, at_once: bool) -> None:
        """End the process and close what was open for it."""
        assert self._process.stdout is not None
        self._end(at_once=at_once)
        self._process.stdout.close()
        self._words.close()
        self._folder.cleanup()

    def _end(self, *, at_once: bool) -> None:
        """Close its standard input and let it leave, else end its process group; leaves no process."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        if self._process.poll() is None and not at_once:
            self.resume()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(LEAVE_SECONDS)
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _normal(preprocess: Normalisation | None) -> dict[str, Any]:
    return {"preprocess": None if preprocess is None else {"mean": list(preprocess.mean), "std": list(preprocess.std)}}


def _absolute(path: Path) -> str:
    return str(path.absolute())


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
