"""Memory, streams and graphs of the CUDA runtime, by ctypes on libcudart: no torch, no pycuda.

A call that fails raises WorkerError with CUDA's own words. Sizes are bytes, addresses and handles whole numbers.
Signatures: https://docs.nvidia.com/cuda/cuda-runtime-api (CUDA 11.4 to 13).
"""

import ctypes
import ctypes.util
import sys
from ctypes import byref, c_char, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from targets.errors import InputError, WorkerError

NAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
WHEELS = ("nvidia/cu13/lib", "nvidia/cuda_runtime/lib")
"""where NVIDIA's packages of pip keep it, below a folder of sys.path"""

_TO_DEVICE, _TO_HOST = 1, 2
_MAJOR, _MINOR = 75, 76
_THREAD_LOCAL = 1
_PROPERTIES_BYTES = 16384
"""more than cudaDeviceProp has in any version; it begins with the name, 256 bytes"""


def find_library() -> Any:
    """Open libcudart; raises WorkerError where there is none."""
    folders = [Path(base, wheel) for base in sys.path for wheel in WHEELS]
    found = [str(folder / name) for folder in folders for name in NAMES if (folder / name).is_file()]
    system = ctypes.util.find_library("cudart")
    for name in [*NAMES, *found, *([system] if system else [])]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise WorkerError("no CUDA runtime (libcudart) is installed; install NVIDIA's driver and the CUDA runtime")


class Cuda:
    """One GPU of this machine."""

    def __init__(self, device: int = 0, library: Any = None) -> None:
        """Choose the GPU. Raises WorkerError where there is none, InputError where it has no such number."""
        self._library = find_library() if library is None else library
        count = c_int(0)
        self._call("cudaGetDeviceCount", byref(count))
        if not count.value:
            raise WorkerError("cudaGetDeviceCount failed: there is no GPU here")
        if device >= count.value:
            raise InputError(f"device {device} is not one of the {count.value} GPUs here, whose numbers begin with 0")
        self.device = device
        self._call("cudaSetDevice", c_int(device))

    def compute_capability(self) -> str:
        """Return e.g. `8.7`."""
        parts = []
        for attribute in (_MAJOR, _MINOR):
            value = c_int(0)
            self._call("cudaDeviceGetAttribute", byref(value), c_int(attribute), c_int(self.device))
            parts.append(str(value.value))
        return ".".join(parts)

    def name(self) -> str:
        """Name of the GPU, as its maker calls it."""
        properties = (c_char * _PROPERTIES_BYTES)()
        newer = hasattr(self._library, "cudaGetDeviceProperties_v2")
        call = "cudaGetDeviceProperties_v2" if newer else "cudaGetDeviceProperties"
        self._call(call, byref(properties), c_int(self.device))
        return properties.raw[:256].partition(b"\0")[0].decode(errors="replace")

    def version(self) -> str:
        """Version of the CUDA runtime: `12.6`."""
        value = c_int(0)
        self._call("cudaRuntimeGetVersion", byref(value))
        return f"{value.value // 1000}.{value.value % 1000 // 10}"

    def stream(self) -> int:
        """Make a stream; kernels on the default one would wait for each other."""
        return self._handle("cudaStreamCreate")

    def allocate(self, size_bytes: int) -> int:
        """Return the address of memory of the GPU."""
        return self._handle("cudaMalloc", c_size_t(max(1, size_bytes)))

    def allocate_pinned(self, size_bytes: int) -> int:
        """Return the address of memory of the host that copies need no staging for."""
        return self._handle("cudaHostAlloc", c_size_t(max(1, size_bytes)), ctypes.c_uint(0))

    def copy_in(self, device: int, host: int, size_bytes: int, stream: int) -> None:
        """Begin to copy from the host to the GPU."""
        self._copy(device, host, size_bytes, _TO_DEVICE, stream)

    def copy_out(self, host: int, device: int, size_bytes: int, stream: int) -> None:
        """Begin to copy from the GPU to the host."""
        self._copy(host, device, size_bytes, _TO_HOST, stream)

    def synchronize(self, stream: int) -> None:
        """Wait until all that was begun is done; what went wrong on the GPU is told here."""
        self._call("cudaStreamSynchronize", c_void_p(stream))

    def begin_capture(self, stream: int) -> None:
        """From here on record what is sent to a stream instead of running it."""
        self._call("cudaStreamBeginCapture", c_void_p(stream), c_int(_THREAD_LOCAL))

    def end_capture(self, stream: int) -> int:
        """Return what was recorded, ready for launching."""
        graph = c_void_p(0)
        self._call("cudaStreamEndCapture", c_void_p(stream), byref(graph))
        try:
            ready = c_void_p(0)
            self._call("cudaGraphInstantiateWithFlags", byref(ready), graph, c_uint64(0))
            return ready.value or 0
        finally:
            self._call("cudaGraphDestroy", graph)

    def abandon_capture(self, stream: int) -> None:
        """End a recording that went wrong, and take back the error that it left behind."""
        graph = c_void_p(0)
        self._library.cudaStreamEndCapture(c_void_p(stream), byref(graph))
        if graph.value:
            self._library.cudaGraphDestroy(graph)
        self._library.cudaGetLastError()

    def launch(self, graph: int, stream: int) -> None:
        """Begin to run what was recorded."""
        self._call("cudaGraphLaunch", c_void_p(graph), c_void_p(stream))

    def free(self, address: int) -> None:
        """Give memory of the GPU back."""
        self._call("cudaFree", c_void_p(address))

    def free_pinned(self, address: int) -> None:
        """Give memory of the host back."""
        self._call("cudaFreeHost", c_void_p(address))

    def destroy_graph(self, graph: int) -> None:
        """Forget a recording."""
        self._call("cudaGraphExecDestroy", c_void_p(graph))

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""
        self._call("cudaStreamDestroy", c_void_p(stream))

    def _copy(self, to: int, source: int, size_bytes: int, kind: int, stream: int) -> None:
        self._call(
            "cudaMemcpyAsync", c_void_p(to), c_void_p(source), c_size_t(size_bytes), c_int(kind), c_void_p(stream)
        )

    def _handle(self, name: str, *arguments: Any) -> int:
        value = c_void_p(0)
        self._call(name, byref(value), *arguments)
        return value.value or 0

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            if name.endswith("Alloc") or name == "cudaMalloc":
                size = next(one.value for one in arguments if isinstance(one, c_size_t))
                raise WorkerError(f"{name} of {size} bytes failed: {self._words(code)}; use a smaller batch")
            raise WorkerError(f"{name} failed: {self._words(code)}")

    def _words(self, code: int) -> str:
        describe = self._library.cudaGetErrorString
        describe.restype = c_char_p
        text = describe(c_int(code)) or b"unknown error"
        return f"{text.decode(errors='replace')} (cudaError {code})"
