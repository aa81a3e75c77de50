"""A loaded engine that answers queries: pinned memory, copies and kernels on one stream, one wait at the end.

Order of a query: copy in, run (or launch the recorded graph), copy out, synchronize. A query that is not synchronized
would hand out arrays that are still being written.
"""

import ctypes
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from targets.errors import InputError, WorkerError
from targets.runtimes.nvidia.cuda import Cuda
from targets.runtimes.nvidia.layers import count_products, describe_layer, read_layers, share_macs
from targets.runtimes.nvidia.library import Listener
from targets.runtimes.nvidia.network import TYPES, tensor_shape
from targets.runtimes.runtime import Array, Feeds, TensorFacts, check_feeds, in_their_types

OFF = "off"
RECORDED = "recorded"
NOT_YET = "not yet: the first query of a shape runs without"


@dataclass(frozen=True)
class Loaded:
    """What is needed to run: the library's objects, in the order in which they were made."""

    library: Any
    runtime: Any
    engine: Any
    make_context: Callable[[], Any]
    listener: Listener
    products: tuple[str, ...]
    """names of the ONNX nodes that multiply matrices"""
    facts: dict[str, Any]
    on_close: Callable[[], None] = lambda: None
    macs: Mapping[str, int] = field(default_factory=dict)
    """of each such node, for `batch` images; empty for an engine from before they were counted"""
    batch: int = 1


@dataclass(frozen=True)
class _Buffer:
    """A tensor twice: on the host, pinned, and on the GPU."""

    name: str
    host: int
    device: int
    array: Array
    """on the pinned memory"""


class GpuSession:
    """One engine on one GPU, one query at a time."""

    def __init__(self, loaded: Loaded, cuda: Cuda, *, cuda_graph: bool) -> None:
        """cuda_graph: record each query's kernels; where the library does it by itself, leave it to that."""
        self._loaded, self._cuda, self._wants_graph = loaded, cuda, cuda_graph
        self._graph = 0
        self._graph_state = NOT_YET if cuda_graph else str(loaded.facts.get("cuda_graph", OFF))
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._inputs: list[_Buffer] = []
        self._outputs: list[_Buffer] = []
        self._memory: list[tuple[Callable[[int], None], int]] = []  # how to give each address back
        self._stream = 0
        self._context: Any = None
        self._open = True
        engine = loaded.engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        reads = {one: engine.get_tensor_mode(one) == loaded.library.TensorIOMode.INPUT for one in names}
        self.inputs = tuple(self._describe(one) for one in names if reads[one])
        self.outputs = tuple(self._describe(one) for one in names if not reads[one])
        try:
            self._stream = cuda.stream()
            self._context = self._new_context()
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Answer one query; the arrays are valid until the next one."""
        feeds = in_their_types(self.inputs, feeds)
        self._prepare(feeds)
        first = not self._graph and self._graph_state == NOT_YET
        self._answer(self._context, feeds)
        if first:
            self._record()
        return {one.name: one.array for one in self._outputs}

    def layers(self, feeds: Feeds, repeats: int) -> list[dict[str, Any]]:
        """Layers of the engine, in a context of its own without recording: asking every layer slows queries down."""
        feeds = in_their_types(self.inputs, feeds)
        self._prepare(feeds)
        milliseconds: dict[str, float] = defaultdict(float)
        calls: Counter[str] = Counter()
        base: Any = self._loaded.library.IProfiler

        class Profiler(base):  # type: ignore[misc]  # the library is not there to be looked at
            def __init__(self) -> None:
                base.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                milliseconds[layer_name] += ms
                calls[layer_name] += 1

        context = self._new_context()
        self._point(context)
        self._answer(context, feeds)
        profiler = Profiler()
        context.profiler = profiler
        for _ in range(repeats):
            self._answer(context, feeds)
        if not sum(milliseconds.values()):
            raise WorkerError("the engine told no times of its layers; it cannot be profiled")
        inspected = self._inspected()
        known = {str(layer.get("Name", "")): layer for layer in inspected}
        macs = share_macs(inspected, self._loaded.macs)
        scale = self._inputs[0].array.shape[0] / self._loaded.batch
        return [
            {
                "name": one,
                **describe_layer(known.get(one, {})),
                "provider": self._loaded.library.__name__,
                "macs": round(macs[one] * scale) if one in macs else None,
                "seconds": milliseconds[one] / repeats / 1000,
                "calls": max(1, calls[one] // repeats),
            }
            for one in sorted(milliseconds, key=lambda name: -milliseconds[name])
        ]

    def matrix_products(self, feeds: Feeds) -> dict[str, int]:
        """Precision of each product by what the engine says of the layers it was made into."""
        return count_products(self._inspected(), list(self._loaded.products))

    def _new_context(self) -> Any:
        context = self._loaded.make_context()
        if context is None:
            reason = self._loaded.listener.last_error()
            raise WorkerError(f"no context for the engine: {reason}; use a smaller batch")
        return context

    def _inspected(self) -> list[dict[str, Any]]:
        inspector = self._loaded.engine.create_engine_inspector()
        text = str(inspector.get_engine_information(self._loaded.library.LayerInformationFormat.JSON))
        return read_layers(text)

    def facts(self) -> dict[str, Any]:
        """What is in force."""
        return {**self._loaded.facts, "cuda_graph": self._graph_state}

    def close(self) -> None:
        """Give the memory back; a second time does nothing."""
        if not self._open:
            return
        self._open = False
        try:
            self._release()
            self._loaded.on_close()
        finally:
            self._context = None  # before the engine that made it
            if self._stream:
                self._cuda.destroy_stream(self._stream)

    def _answer(self, context: Any, feeds: Feeds) -> None:
        """Copy in, run, copy out, wait. The recorded graph stands for the session's own context only."""
        cuda, stream = self._cuda, self._stream
        for one in self._inputs:
            np.copyto(one.array, feeds[one.name])
        try:
            for one in self._inputs:
                cuda.copy_in(one.device, one.host, one.array.nbytes, stream)
            if self._graph and context is self._context:
                cuda.launch(self._graph, stream)
            elif not context.execute_async_v3(stream):
                raise WorkerError(f"the engine did not run: {self._loaded.listener.last_error()}")
            for one in self._outputs:
                cuda.copy_out(one.host, one.device, one.array.nbytes, stream)
        except BaseException:
            with suppress(WorkerError):  # nothing may go on writing to memory that is about to be freed
                cuda.synchronize(stream)
            raise
        cuda.synchronize(stream)

    def _record(self) -> None:
        """Record the kernels of a query; where that fails, go on without and say why."""
        cuda, stream = self._cuda, self._stream
        try:
            cuda.begin_capture(stream)
        except WorkerError as error:
            self._graph_state = f"{OFF}: {error}"
            return
        try:
            ran = self._context.execute_async_v3(stream)
        except BaseException:
            cuda.abandon_capture(stream)
            raise
        if not ran:
            cuda.abandon_capture(stream)
            self._graph_state = f"{OFF}: {self._loaded.listener.last_error()}"
            return
        try:
            self._graph = cuda.end_capture(stream)
            self._graph_state = RECORDED
        except WorkerError as error:
            cuda.abandon_capture(stream)
            self._graph_state = f"{OFF}: {error}"

    def _prepare(self, feeds: Feeds) -> None:
        """Memory for the shapes of a query, where they differ from those of the last one."""
        if not self._open:
            raise WorkerError("the session is closed: load the engine again")
        check_feeds(self.inputs, feeds)
        shapes = {one.name: tuple(feeds[one.name].shape) for one in self.inputs}
        if shapes == self._shapes:
            return
        self._release()
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                least, _, most = (list(one) for one in self._loaded.engine.get_tensor_profile_shape(name, 0))
                raise InputError(f"input {name!r} has shape {list(shape)}; the engine takes {least} to {most}")
        sizes = {one.name: tensor_shape(self._context.get_tensor_shape(one.name)) for one in self.outputs}
        unknown = [name for name, shape in sizes.items() if None in shape]
        if unknown:
            raise WorkerError(f"the shape of output {unknown[0]!r} depends on what is computed, which is not supported")
        try:
            self._inputs = [self._allocate(one, shapes[one.name]) for one in self.inputs]
            self._outputs = [
                self._allocate(one, tuple(size for size in sizes[one.name] if size is not None)) for one in self.outputs
            ]
            self._point(self._context)
        except BaseException:
            self._release()
            raise
        self._shapes = shapes
        if self._wants_graph:
            self._graph_state = NOT_YET

    def _allocate(self, tensor: TensorFacts, shape: tuple[int, ...]) -> _Buffer:
        dtype = np.dtype(tensor.dtype)
        size_bytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        host = self._cuda.allocate_pinned(size_bytes)
        self._memory.append((self._cuda.free_pinned, host))
        device = self._cuda.allocate(size_bytes)
        self._memory.append((self._cuda.free, device))
        memory = (ctypes.c_char * size_bytes).from_address(host)
        return _Buffer(tensor.name, host, device, np.frombuffer(memoryview(memory), dtype).reshape(shape))

    def _point(self, context: Any) -> None:
        """Tell a context the shapes and where the tensors lie."""
        for one in self._inputs:
            context.set_input_shape(one.name, one.array.shape)
        for one in (*self._inputs, *self._outputs):
            if not context.set_tensor_address(one.name, one.device):
                raise WorkerError(f"tensor {one.name!r} has no place: {self._loaded.listener.last_error()}")

    def _release(self) -> None:
        """Give memory and the recording back, all of it, and tell the first failure."""
        self._shapes, self._inputs, self._outputs = {}, [], []
        ways = [*self._memory, *([(self._cuda.destroy_graph, self._graph)] if self._graph else [])]
        self._graph, self._memory = 0, []
        failures = []
        for give_back, address in reversed(ways):
            try:
                give_back(address)
            except WorkerError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _describe(self, name: str) -> TensorFacts:
        engine = self._loaded.engine
        kind = engine.get_tensor_dtype(name).name
        return TensorFacts(name=name, shape=tensor_shape(engine.get_tensor_shape(name)), dtype=TYPES[kind][0])
