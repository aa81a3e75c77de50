"""Libraries that a provider of ONNX Runtime needs on Linux: which they are, where pip put them, which one is missing.

ONNX Runtime itself tells a missing library in its log only and goes on with the CPU. What a provider needs is read from
its own file (ELF, DT_NEEDED), so it is right for every version. https://refspecs.linuxfoundation.org/elf/elf.pdf
"""

import ctypes
import os
import re
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

FOLDERS = ("nvidia/*/lib", "tensorrt_libs")
"""where NVIDIA's packages of pip keep libraries, below a folder of sys.path"""
_OURS = re.compile(r"lib(cu|nv)\w*\.so")
_LOAD, _DYNAMIC = 1, 2
_END, _NEEDED, _STRINGS = 0, 1, 5


def needed_libraries(file: Path) -> tuple[str, ...]:
    """Names of the shared libraries that an ELF file of 64 bits is linked to, in its order; empty for other files."""
    with open(file, "rb") as stream:
        head = stream.read(64)
        if head[:6] != b"\x7fELF\x02\x01":
            return ()
        start, size, count = _unpack("<Q", head, 32), _unpack("<H", head, 54), _unpack("<H", head, 56)
        stream.seek(start)
        table = stream.read(size * count)
        segments = [struct.unpack_from("<IIQQQQ", table, at) for at in range(0, size * count, size)]
        place = next(((one[2], one[5]) for one in segments if one[0] == _DYNAMIC), None)
        if place is None:
            return ()
        stream.seek(place[0])
        entries = [struct.unpack("<qQ", stream.read(16)) for _ in range(place[1] // 16)]
        entries = entries[: [tag for tag, _ in entries].index(_END)]
        address = dict(entries)[_STRINGS]
        strings = next(one[2] + address - one[3] for one in segments if one[0] == _LOAD and _holds(one, address))
        return tuple(_text(stream, strings + value) for tag, value in entries if tag == _NEEDED)


def load_what_it_needs(
    file: Path, *, folders: Iterable[str] | None = None, load: Callable[[str], object] | None = None
) -> str | None:
    """Load the libraries of NVIDIA that a provider needs; returns why one is not there, with the remedy, else None.

    A library that is loaded already, wherever it lies, is found by the provider too. folders: of sys.path, where pip's
    packages are. load: opens a library or raises OSError.
    """
    load = load or (lambda name: ctypes.CDLL(name, mode=getattr(ctypes, "RTLD_GLOBAL", 0)))
    known = sorted(
        path
        for base in (sys.path if folders is None else folders)
        for pattern in FOLDERS
        for path in Path(base or ".").glob(f"{pattern}/*.so*")
    )
    for name in needed_libraries(file):
        if not _OURS.match(name):
            continue
        tried = []
        for place in (name, *(str(path) for path in known if path.name == name)):
            try:
                load(place)
                break
            except OSError as error:
                tried.append(" ".join(str(error).split()))
        else:
            return _missing(name, tried[-1], [path.name for path in known])
    return None


def _missing(name: str, error: str, known: Sequence[str]) -> str:
    stem, _, number = name.partition(".so.")
    others = sorted({one for one in known if one.startswith(f"{stem}.so.")} - {name})
    found = f"here is {', '.join(others)}" if others else error
    return f"it needs {name} ({found}); {_remedy(stem, number)}"


def _remedy(stem: str, number: str) -> str:
    if stem == "libcuda":
        return "install NVIDIA's driver, or start the container with --gpus all"
    if stem.startswith("libnv") and stem not in ("libnvrtc", "libnvJitLink"):
        return f"install TensorRT {number}: pip install 'tensorrt=={number}.*'; on a Jetson it comes with JetPack"
    what = f"cuDNN {number}" if stem == "libcudnn" else f"the CUDA libraries that have {stem}.so.{number}"
    return f"install {what}: pip install 'onnxruntime-gpu[cuda,cudnn]'"


def tensorrt_version(file: Path) -> str:
    """Version of the TensorRT that a provider is linked to, as the library tells it: `10.16.1`; `unknown` elsewhere."""
    for name in needed_libraries(file):
        if name.startswith("libnvinfer.so"):
            try:
                number = int(ctypes.CDLL(name).getInferLibVersion())
            except (OSError, AttributeError):
                break
            return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return "unknown"


def provider_file(package: Path, provider: str) -> Path | None:
    """The shared library of a provider in the package's folder; None where it has none (Windows names it otherwise)."""
    name = provider.removesuffix("ExecutionProvider").lower()
    file = package / "capi" / f"libonnxruntime_providers_{name}.so"
    return file if os.name == "posix" and file.is_file() else None


def _holds(segment: tuple[int, ...], address: int) -> bool:
    return segment[3] <= address < segment[3] + segment[5]


def _unpack(form: str, data: bytes, at: int) -> int:
    return int(struct.unpack_from(form, data, at)[0])


def _text(stream: object, at: int) -> str:
    stream.seek(at)  # type: ignore[attr-defined]
    found: bytes = stream.read(256)  # type: ignore[attr-defined]
    return found.partition(b"\0")[0].decode(errors="replace")
