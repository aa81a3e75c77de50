"""What the agent can do: build an engine, load it, answer images, and measure itself. One session at a time."""

import gc
import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from targets.agent import images as pictures
from targets.agent.at_once import Pool, saturate, serve_at_once
from targets.agent.cores import Cores, allowed_cores
from targets.agent.open_loop import serve
from targets.errors import InputError, WorkerError
from targets.facts import probe, read_text
from targets.measure.sampler import Sampler
from targets.runtimes.catalog import get_runtime
from targets.runtimes.engine import ENGINE_FILE, check_binding, engine_digest, read_engine, verify_files, write_engine
from targets.runtimes.runtime import ConcurrentSession, Feeds, Session, by_operator, zero_feeds

PROTOCOL = "vitrim.agent/1"
PINNING = ("onnxruntime",)
"""runtimes that give each thread a processor of its own where they are told which"""
STABLE_WITHIN = 0.05
"""warm-up ends when the medians of its last three windows agree within this share"""
WARM_UP_ROUNDS = 3
"""queries of each request of a pool before those that count: `warm_up` only asks the first"""


class Service:
    """The requests, one method each; arguments and results are plain JSON, arrays travel in .npy files."""

    def __init__(self, *, threads: int, runtimes: Mapping[str, Path]) -> None:
        self._threads, self._runtimes = threads, runtimes
        self._session: Session | None = None
        self._feeds: list[Feeds] = []
        self._asked = 0
        self._window = (0, 0)
        self._sampler: Sampler | None = None
        self._cores = Cores()
        self._facts = probe()
        self._requests: dict[str, Callable[..., Any]] = {
            "hello": self.hello,
            "build": self.build,
            "check_fit": self.check_fit,
            "load": self.load,
            "misfit": self.misfit,
            "engine_key": self.engine_key,
            "infer": self.infer,
            "rotate": self.rotate,
            "warm_up": self.warm_up,
            "measure": self.measure,
            "window": self.window,
            "serve": self.serve,
            "saturate": self.saturate,
            "watch": self.watch,
            "watched": self.watched,
            "profile": self.profile,
            "layers": self.layers,
            "matrix_products": self.matrix_products,
            "memory": self.memory,
            "close": self.close,
        }

    def answer(self, request: dict[str, Any]) -> Any:
        """Carry out one request; raises InputError for one that is not known."""
        name = request.pop("do", None)
        if name not in self._requests:
            raise InputError(f"unknown request {name!r}; known: {', '.join(self._requests)}")
        return self._requests[name](**request)

    def hello(self) -> dict[str, Any]:
        """Say who answers, and on what machine."""
        return {"protocol": PROTOCOL, "threads": self._threads, "pid": os.getpid(), "facts": self._facts}

    def build(
        self, runtime: str, model: str, output: str, options: dict[str, Any], at_load: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Build an engine from an ONNX file into an existing empty folder; returns engine.json and the seconds.

        at_load: options that hold at every load, unless others are given there.
        """
        software = get_runtime(runtime, self._runtimes)
        source, folder = Path(model), Path(output)
        if not source.is_file():
            raise InputError(f"no ONNX file at {model!r}")
        if not folder.is_dir() or any(folder.iterdir()):
            raise InputError(f"{output!r} is not an empty folder")
        options = {"threads": self._threads, **options}
        start = time.perf_counter()
        made = software.build(source, folder, options)
        seconds = time.perf_counter() - start
        if "inputs" not in made:
            kept = {name: one for name, one in (at_load or {}).items() if name != "cores"}
            loading = {**options, **kept, "optimized": True, "batch": None}
            session = software.load(folder / made["files"][0], loading)
            made["inputs"] = [one.to_json() for one in session.inputs]
            made["outputs"] = [one.to_json() for one in session.outputs]
            session.close()
        engine = write_engine(
            folder,
            runtime=runtime,
            version=software.version(),
            precision=options["precision"],
            batch=options["batch"],
            options=options,
            **{"bound_to": software.binding(self._facts), **made, **_kept(made, at_load)},
        )
        return {"engine": engine, "seconds": seconds}

    def check_fit(self, path: str) -> None:
        """Compare this machine with what the engine.json of a folder says it was built for; raises InputError."""
        engine = read_engine(Path(path))
        check_binding(engine, get_runtime(engine["runtime"], self._runtimes).binding(self._facts))

    def load(self, path: str, runtime: str | None = None, options: dict[str, Any] | None = None) -> dict[str, Any]:
        """Load an engine's folder after checking it, or a plain .onnx file with the named runtime."""
        self.close()
        given = {key: value for key, value in (options or {}).items() if value is not None}
        if Path(path).is_dir():
            folder = Path(path)
            engine = read_engine(folder)
            if runtime not in (None, engine["runtime"]):
                raise InputError(f"engine {path!r} was built by {engine['runtime']!r}, not by {runtime!r}")
            software = get_runtime(engine["runtime"], self._runtimes)
            check_binding(engine, software.binding(self._facts))
            verify_files(folder, engine)
            file, digest = folder / engine["load"], engine_digest(folder)
            kept = engine.get("at_load", {})
            settings = {"threads": self._threads, "precision": engine["precision"], **kept, **given}
            settings.update(optimized=True, batch=None)
        elif Path(path).is_file():
            software = get_runtime(runtime or "onnxruntime", self._runtimes)
            file, digest = Path(path), ""
            settings = {"threads": self._threads, "precision": "fp32", **given}
        else:
            raise InputError(
                f"neither an engine nor an .onnx file at {path!r}; an engine is a folder with {ENGINE_FILE}"
            )
        cores = [int(one) for one in settings.pop("cores", ())]
        self._cores.pin(cores)
        if cores and software.name in PINNING:
            settings["cores"] = cores
        start = time.perf_counter()
        self._session = session = software.load(file, settings)
        seconds = time.perf_counter() - start
        if len(session.inputs) != 1:
            raise InputError(
                f"the model has the inputs {[one.name for one in session.inputs]}; exactly one is supported"
            )
        return {
            "runtime": software.name,
            "version": software.version(),
            "inputs": [one.to_json() for one in session.inputs],
            "outputs": [one.to_json() for one in session.outputs],
            "facts": {**session.facts(), **({"cores": sorted(allowed_cores())} if cores else {})},
            "requests": self._requests_at_once(),
            "engine_sha256": digest,
            "seconds": seconds,
        }

    def misfit(self, path: str) -> str | None:
        """Why an engine's folder cannot be loaded here, before anything is tried; None where it should be."""
        try:
            engine = read_engine(Path(path))
            software = get_runtime(engine["runtime"], self._runtimes)
            check_binding(engine, software.binding(self._facts))
            verify_files(Path(path), engine)
        except (InputError, WorkerError) as error:
            return str(error)
        return None

    def engine_key(self, runtime: str, source: str, options: dict[str, Any]) -> str:
        """Digest of all that decides what a build gives: source, options, runtime, machine. 64 hex digits."""
        software = get_runtime(runtime, self._runtimes)
        told = {
            "runtime": runtime,
            "version": software.version(),
            "source": source,
            "options": {
                "threads": self._threads,
                **{key: value for key, value in options.items() if value is not None},
            },
            "bound_to": software.binding(self._facts),
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def infer(
        self, images: str, output: str, batch: int | None = None, preprocess: dict[str, Any] | None = None
    ) -> dict[str, str]:
        """Answer all images of a .npy file; writes one .npy per output into a folder, returns {output: file}."""
        session, size = self._loaded(), self._batch(batch)
        given = pictures.open_images(Path(images), tensor=session.inputs[0], preprocess=preprocess)
        fixed = session.inputs[0].shape[0] is not None
        answers: dict[str, list[Any]] = {one.name: [] for one in session.outputs}
        for part, real in pictures.batches(given, preprocess, batch=size, pad=fixed):
            for name, answer in session.run({session.inputs[0].name: part}).items():
                answers[name].append(np.array(answer[:real]))
        files = {}
        for index, (name, parts) in enumerate(answers.items()):
            files[name] = f"{index}.npy"
            np.save(Path(output) / files[name], np.concatenate(parts), allow_pickle=False)
        return files

    def rotate(self, images: str, batch: int | None = None, preprocess: dict[str, Any] | None = None) -> int:
        """Keep images of a .npy file as the queries of warm_up, measure and profile; returns how many queries."""
        session, size = self._loaded(), self._batch(batch)
        given = pictures.open_images(Path(images), tensor=session.inputs[0], preprocess=preprocess)
        self._feeds = pictures.rotation(given, preprocess, name=session.inputs[0].name, batch=size)
        self._asked = 0
        return len(self._feeds)

    def warm_up(self, seconds: float, queries: int, limit_seconds: float) -> dict[str, Any]:
        """Run until time, count and stability are reached, or the limit is."""
        window = max(3, queries // 5)
        samples: list[int] = []
        stable, spent = False, 0.0
        start = time.perf_counter()
        while spent < limit_seconds and not (stable and spent >= seconds and len(samples) >= queries):
            samples.append(self._query())
            medians = [statistics.median(samples[-window * n :][:window]) for n in (1, 2, 3)]
            stable = len(samples) >= 3 * window and max(medians) <= (1 + STABLE_WITHIN) * min(medians)
            spent = time.perf_counter() - start
        return {
            "first_ms": samples[0] / 1e6,
            "query_ms": statistics.median(samples[-window:]) / 1e6,
            "queries": len(samples),
            "seconds": spent,
            "stable": stable,
        }

    def measure(self, queries: int) -> list[int]:
        """Time a block of queries, one after the other: nanoseconds each. One query before it is not counted."""
        gc.collect()
        gc.disable()
        try:
            self._query()  # since the last block other processes had the caches and the cores
            begin = time.monotonic_ns()
            samples = [self._query() for _ in range(queries)]
            self._window = (begin, time.monotonic_ns())
            return samples
        finally:
            gc.enable()

    def window(self) -> tuple[int, int]:
        """Begin and end of the last block of `measure`, in nanoseconds of this machine's monotonic clock."""
        return self._window

    def serve(self, due_ns: list[int], limit_seconds: float) -> dict[str, list[int]]:
        """Answer queries that come at given times, in nanoseconds since the first; see `open_loop`.

        At once as many as the session answers at once, which is one for most.
        """
        limit_ns = int(limit_seconds * 1e9)
        pool = self._pool()
        gc.collect()
        gc.disable()
        try:
            if pool is None:
                self._query()
                return serve(due_ns, self._query, limit_ns=limit_ns)
            saturate(pool, WARM_UP_ROUNDS * pool.requests)
            return serve_at_once(due_ns, pool, limit_ns=limit_ns)
        finally:
            gc.enable()

    def saturate(self, queries: int) -> int:
        """Answer a block of queries, always as many at once as the session answers at once: nanoseconds for all."""
        pool = self._pool()
        gc.collect()
        gc.disable()
        try:
            if pool is None:
                self._query()
                start = time.perf_counter_ns()
                for _ in range(queries):
                    self._query()
                return time.perf_counter_ns() - start
            saturate(pool, WARM_UP_ROUNDS * pool.requests)
            return saturate(pool, queries)
        finally:
            gc.enable()

    def watch(self) -> dict[str, Any]:
        """Begin to sample what this machine tells of clocks, heat and power; see `targets.measure.sampler`."""
        if self._sampler is None:
            self._sampler = Sampler()
        return self._sampler.watch()

    def watched(self) -> list[dict[str, Any]]:
        """Samples since the last call."""
        if self._sampler is None:
            raise WorkerError("nothing is watched: send `watch` first")
        return self._sampler.watched()

    def profile(self, repeats: int) -> list[dict[str, Any]]:
        """Where the time goes, by operator."""
        return by_operator(self.layers(repeats))

    def layers(self, repeats: int) -> list[dict[str, Any]]:
        """What ran, layer by layer."""
        return self._loaded().layers(self._next_feeds(), repeats)

    def matrix_products(self) -> dict[str, int]:
        """How many matrix products ran in which precision."""
        session = self._loaded()
        return session.matrix_products(zero_feeds(session.inputs, self._batch(None)))

    def memory(self) -> int | None:
        """Peak resident memory of this process in bytes: interpreter, runtime, engine and the rotating images.

        VmHWM, because the ru_maxrss of a started process begins with the peak of the one that started it.
        """
        for line in read_text(Path("/proc/self/status")).splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None

    def close(self) -> None:
        """Close the session; the agent itself ends when its standard input closes."""
        if self._session is not None:
            self._session.close()
        self._session, self._feeds = None, []

    def _requests_at_once(self) -> int:
        session = self._loaded()
        return session.requests if isinstance(session, ConcurrentSession) else 1

    def _pool(self) -> Pool | None:
        """The session as a pool of requests; None where it answers one query after the other."""
        session = self._loaded()
        if not isinstance(session, ConcurrentSession) or session.requests == 1:
            return None
        return Pool(session, self._next_feeds)

    def _query(self) -> int:
        session, feeds = self._loaded(), self._next_feeds()
        start = time.perf_counter_ns()
        session.run(feeds)
        return time.perf_counter_ns() - start

    def _next_feeds(self) -> Feeds:
        if not self._feeds:
            raise WorkerError("no images to measure with: send `rotate` first")
        self._asked += 1
        return self._feeds[self._asked % len(self._feeds)]

    def _loaded(self) -> Session:
        if self._session is None:
            raise WorkerError("no engine is loaded: send `load` first")
        return self._session

    def _batch(self, wanted: int | None) -> int:
        """Images per query: the engine's fixed batch, else what is wanted, else 1."""
        fixed = self._loaded().inputs[0].shape[0]
        if fixed is not None and wanted not in (None, fixed):
            raise InputError(f"the engine's batch is fixed at {fixed}, got batch {wanted}")
        return fixed or wanted or 1


def _kept(made: dict[str, Any], at_load: dict[str, Any] | None) -> dict[str, Any]:
    """`at_load` of engine.json: what the runtime wants kept, and what was asked for; nothing where there is neither."""
    kept = {**made.get("at_load", {}), **(at_load or {})}
    return {"at_load": kept} if kept else {}
