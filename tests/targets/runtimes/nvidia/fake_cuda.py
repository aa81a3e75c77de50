"""A CUDA runtime that runs on the host: memory is real, a stream does its work when it is waited for, calls are kept.

What is sent to a stream is done only at cudaStreamSynchronize, so that a query that is not synchronised hands out old
values. Errors can be planned: `fail["cudaMalloc"] = 2`. Signatures and codes as in libcudart.
"""
# ruff: noqa: N802  # names of libcudart

import ctypes
from collections import Counter
from collections.abc import Callable
from typing import Any

NO_MEMORY, NO_DEVICE, NOT_ALLOWED_WHILE_RECORDING = 2, 100, 900


def number(argument: Any) -> int:
    return int(getattr(argument, "value", argument) or 0)


class FakeCudart:
    """The library; `kernel` is what the fake TensorRT sends to a stream."""

    def __init__(self, capability: str = "8.7", name: str = "Orin", devices: int = 1) -> None:
        self.capability, self.gpu, self.devices = capability, name, devices
        self.calls: list[str] = []
        self.fail: dict[str, int] = {}
        self.live: dict[str, set[int]] = {
            "memory": set(),
            "pinned": set(),
            "stream": set(),
            "graph": set(),
            "exec": set(),
        }
        self.handled: Counter[str] = Counter()
        self._kept: dict[int, Any] = {}
        self._pending: list[Callable[[], None]] = []
        self._recording: list[Callable[[], None]] | None = None
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._next = 1000
        self.cudaGetErrorString = _ErrorString()

    def __getattr__(self, name: str) -> Callable[..., int]:
        method = getattr(type(self), f"_{name}", None)
        if not name.startswith("cuda") or method is None:
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.fail:
                return self.fail[name]
            return method(self, *arguments) or 0

        return call

    @property
    def forgotten(self) -> dict[str, int]:
        """What was never given back."""
        return {kind: len(left) for kind, left in self.live.items() if left}

    def enqueue(self, work: Callable[[], None]) -> None:
        """Send work to the stream, or into the recording."""
        (self._pending if self._recording is None else self._recording).append(work)

    def recording(self) -> bool:
        return self._recording is not None

    def _cudaGetDeviceCount(self, count: Any) -> int | None:
        count._obj.value = self.devices
        return None if self.devices else NO_DEVICE

    def _cudaSetDevice(self, device: Any) -> None:
        assert number(device) < self.devices

    def _cudaDeviceGetAttribute(self, value: Any, attribute: Any, device: Any) -> None:
        major, minor = map(int, self.capability.split("."))
        value._obj.value = {75: major, 76: minor}[number(attribute)]

    def _cudaGetDeviceProperties_v2(self, properties: Any, device: Any) -> None:
        properties._obj.value = self.gpu.encode()

    def _cudaRuntimeGetVersion(self, value: Any) -> None:
        value._obj.value = 12060

    def _cudaGetLastError(self) -> None:
        pass

    def _cudaStreamCreate(self, stream: Any) -> None:
        stream._obj.value = self._new("stream")

    def _cudaStreamDestroy(self, stream: Any) -> None:
        self.live["stream"].remove(number(stream))

    def _cudaMalloc(self, pointer: Any, size: Any) -> int | None:
        return self._allocate("memory", pointer, size)

    def _cudaHostAlloc(self, pointer: Any, size: Any, flags: Any) -> int | None:
        return self._allocate("pinned", pointer, size)

    def _cudaFree(self, pointer: Any) -> None:
        self._drop("memory", pointer)

    def _cudaFreeHost(self, pointer: Any) -> None:
        self._drop("pinned", pointer)

    def _cudaMemcpyAsync(self, to: Any, source: Any, size: Any, kind: Any, stream: Any) -> None:
        assert number(stream) in self.live["stream"]
        assert number(kind) in (1, 2)
        self.calls[-1] = {1: "copy in", 2: "copy out"}[number(kind)]
        target, origin, count = number(to), number(source), number(size)
        self.enqueue(lambda: ctypes.memmove(target, origin, count) and None)

    def _cudaStreamSynchronize(self, stream: Any) -> int | None:
        assert number(stream) in self.live["stream"]
        work, self._pending = self._pending, []
        for one in work:
            one()
        return None

    def _cudaStreamBeginCapture(self, stream: Any, mode: Any) -> None:
        assert not self._pending, "recording began while work was under way"
        self._recording = []

    def _cudaStreamEndCapture(self, stream: Any, graph: Any) -> int | None:
        if self._recording is None:
            return 401
        graph._obj.value = self._new("graph")
        self._graphs[graph._obj.value], self._recording = self._recording, None
        return None

    def _cudaGraphInstantiateWithFlags(self, ready: Any, graph: Any, flags: Any) -> None:
        ready._obj.value = self._new("exec")
        self._graphs[ready._obj.value] = self._graphs[number(graph)]

    def _cudaGraphDestroy(self, graph: Any) -> None:
        self.live["graph"].remove(number(graph))

    def _cudaGraphExecDestroy(self, ready: Any) -> None:
        self.live["exec"].remove(number(ready))

    def _cudaGraphLaunch(self, ready: Any, stream: Any) -> None:
        assert number(ready) in self.live["exec"]
        for one in self._graphs[number(ready)]:
            self.enqueue(one)

    def _new(self, kind: str) -> int:
        self._next += 8
        self.live[kind].add(self._next)
        return self._next

    def _allocate(self, kind: str, pointer: Any, size: Any) -> int | None:
        if self.recording():
            return NOT_ALLOWED_WHILE_RECORDING
        memory = ctypes.create_string_buffer(b"\xff" * number(size), number(size))
        address = ctypes.addressof(memory)
        self._kept[address] = memory
        self.live[kind].add(address)
        pointer._obj.value = address
        return None

    def _drop(self, kind: str, pointer: Any) -> None:
        self.live[kind].remove(number(pointer))
        assert not self._pending, "memory was freed while work was under way"
        ctypes.memset(number(pointer), 0, 1)  # the memory itself stays, so that a mistake fails instead of crashing


class _ErrorString:
    restype: Any = None

    def __call__(self, code: Any) -> bytes:
        return {NO_MEMORY: b"out of memory", NO_DEVICE: b"no CUDA-capable device is detected"}.get(
            number(code), b"operation not permitted"
        )
