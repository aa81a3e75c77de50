"""What a runtime is: a module that builds an engine from an ONNX file and loads it as a session.

Shapes: N images of one batch. A feed is what one query reads: {input name: array}.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from targets.errors import InputError

Array = NDArray[Any]
Feeds = dict[str, Array]
Answered = Callable[[dict[str, Array] | None], None]


@dataclass(frozen=True)
class TensorFacts:
    """Name, shape and type of an input or output."""

    name: str
    shape: tuple[int | None, ...]
    """None: dynamic"""
    dtype: str
    """numpy's name: float32"""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {**asdict(self), "shape": list(self.shape)}


class Session(Protocol):
    """A loaded model that answers queries. One per process while something is measured."""

    @property
    def inputs(self) -> tuple[TensorFacts, ...]:
        """What a query must hold."""
        ...

    @property
    def outputs(self) -> tuple[TensorFacts, ...]:
        """What an answer holds."""
        ...

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Answer one query; the arrays are valid until the next one."""
        ...

    def layers(self, feeds: Feeds, repeats: int) -> list[dict[str, Any]]:
        """What ran, slowest first, from a run of its own that looks at every layer: plain JSON, one for each layer.

        name; operator: its kind; kernel: the code that ran, as the runtime calls it; precision: what went in, `unknown`
        where the runtime does not tell; provider: who ran it; macs of one query, None where they are not known or it
        multiplies no matrices; seconds per query; calls per query.
        """
        ...

    def matrix_products(self, feeds: Feeds) -> dict[str, int]:
        """How many matrix products and convolutions ran in which precision, as the runtime itself tells it.

        Empty where it does not tell.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Options and devices that are really in force: plain JSON."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


@runtime_checkable
class ConcurrentSession(Protocol):
    """What a session has too that can answer several queries at once."""

    requests: int
    """how many it answers at once; 1: it is built for the latency of one query"""

    def submit(self, feeds: Feeds, answered: Answered) -> None:
        """Start a query, waiting while `requests` of them run.

        answered: called once, from any thread, with arrays of its own, or with None where the query failed: `wait` then
        raises why. The feeds must stay as they are until then.
        """
        ...

    def wait(self) -> None:
        """Wait until all queries are answered; raises what one of them raised."""
        ...


class Runtime(Protocol):
    """The functions of a runtime's module.

    Options of `build`: precision (fp32, bf16, int8: what the graph holds, or the hint), batch (a dynamic batch is fixed
    to it), threads. Options of `load`: threads; for a plain .onnx file also batch (optional) and precision. A runtime
    may have more of its own.
    """

    name: str

    def available(self) -> str | None:
        """None where the runtime can be used, else the reason why not."""
        ...

    def version(self) -> str:
        """Version of the software that runs."""
        ...

    def binding(self, facts: dict[str, Any]) -> dict[str, str]:
        """What of this machine (see `targets.facts.probe`) decides whether an engine runs here."""
        ...

    def build(self, model: Path, output: Path, options: dict[str, Any]) -> dict[str, Any]:
        """Build an engine from an ONNX file into an existing folder; returns its `files` (the first is loaded).

        Where the engine cannot be loaded on the machine that builds it, also `inputs` and `outputs` for engine.json;
        `bound_to` where that is not this machine's `binding`; `built`: more facts, for engine.json; `at_load`: options
        that hold at every load, unless others are given there.
        """
        ...

    def load(self, path: Path, options: dict[str, Any]) -> Session:
        """Load the first file of an engine, or a plain .onnx file."""
        ...


class Functions(NamedTuple):
    """Those of a runtime's module that shares them with others: each knows its name."""

    available: Callable[[], str | None]
    version: Callable[[], str]
    binding: Callable[[dict[str, Any]], dict[str, str]]
    build: Callable[[Path, Path, dict[str, Any]], dict[str, Any]]
    load: Callable[[Path, dict[str, Any]], Session]


def query_shape(shape: tuple[int | None, ...], *, batch: int, name: str) -> list[int]:
    """Shape of an input with its batch fixed; raises InputError where the batch differs or more is dynamic."""
    if not shape or any(size is None for size in shape[1:]):
        raise InputError(
            f"input {name!r} has shape {list(shape)}: only its first dimension may be dynamic; export it again"
        )
    if shape[0] not in (None, batch):
        raise InputError(f"the graph's batch is fixed at {shape[0]}, got batch {batch}; export it with a dynamic batch")
    return [batch, *(size for size in shape[1:] if size is not None)]


def check_feeds(inputs: tuple[TensorFacts, ...], feeds: Feeds) -> None:
    """Raise InputError for a query that is not of the shapes and types that a session takes."""
    for one in inputs:
        if one.name not in feeds:
            raise InputError(f"input {one.name!r} is missing; the query has {', '.join(feeds) or 'none'}")
        given = feeds[one.name]
        fits = len(given.shape) == len(one.shape) and all(
            want in (None, size) for want, size in zip(one.shape, given.shape, strict=True)
        )
        if not fits or str(given.dtype) != one.dtype:
            raise InputError(
                f"input {one.name!r} is {given.dtype} {list(given.shape)}; "
                f"the engine takes {one.dtype} {['any' if size is None else size for size in one.shape]}"
            )


def in_their_types(inputs: tuple[TensorFacts, ...], feeds: Feeds) -> Feeds:
    """Make halves of fp32 numbers that go into an fp16 graph without casts at its ends (quantize with `io: keep`)."""
    halves = {
        one.name: feeds[one.name].astype(np.float16)
        for one in inputs
        if one.dtype == "float16" and one.name in feeds and feeds[one.name].dtype == np.float32
    }
    return {**feeds, **halves} if halves else feeds


def cpu_binding(runtime: str, version: str, facts: dict[str, Any]) -> dict[str, str]:
    """What an engine for a CPU is bound to: instruction sets decide kernels and layouts, versions the format."""
    return {
        "architecture": facts["architecture"],
        "instruction_sets": " ".join(facts["instruction_sets"]),
        runtime: version,
    }


def check_precision(runtime: str, precision: str, known: tuple[str, ...]) -> None:
    """Raise InputError for a precision that a runtime does not run."""
    if precision not in known:
        raise InputError(f"runtime {runtime!r} does not run {precision!r}; it runs {', '.join(known)}")


def by_operator(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Share of time by kind of layer, slowest first: [{operator, share, calls}]; shares sum to 1."""
    seconds: dict[str, float] = {}
    calls: dict[str, int] = {}
    for one in layers:
        seconds[one["operator"]] = seconds.get(one["operator"], 0.0) + one["seconds"]
        calls[one["operator"]] = calls.get(one["operator"], 0) + one["calls"]
    whole = sum(seconds.values())
    if not whole:  # all below the resolution: every layer counts the same
        seconds, whole = {kind: float(count) for kind, count in calls.items()}, float(sum(calls.values())) or 1.0
    slowest = sorted(seconds, key=lambda kind: -seconds[kind])
    return [{"operator": one, "share": seconds[one] / whole, "calls": calls[one]} for one in slowest]


def product_macs(operator: str, inputs: list[list[int]], output: list[int]) -> int | None:
    """Multiply-accumulates of one matrix product or convolution by its shapes; None where they do not tell.

    inputs: shapes of data and, where they are told, weights: a convolution's are [out, in, ...]; a product sums over
    the last dimension of its data.
    """
    if not inputs or not inputs[0]:
        return None
    if "conv" in operator.lower():
        return math.prod(output) * math.prod(inputs[1][1:]) if len(inputs) > 1 and len(inputs[1]) > 2 else None
    return math.prod(output) * inputs[0][-1]


def zero_feeds(inputs: tuple[TensorFacts, ...], batch: int) -> Feeds:
    """Build a query of zeros, for looking at what runs; timings need real images."""
    return {
        one.name: np.zeros(query_shape(one.shape, batch=one.shape[0] or batch, name=one.name), one.dtype)
        for one in inputs
    }
