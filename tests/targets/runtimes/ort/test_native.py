"""Which library is missing is read from the provider's own file, and told with what to install."""

import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from targets.runtimes.ort.native import load_what_it_needs, needed_libraries, provider_file, tensorrt_version

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared libraries of Linux")

SHARED = "libonnxruntime_providers_shared.so"


def package() -> Path:
    spec = find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


Needing = Callable[[str], Path]


@pytest.fixture
def needing(tmp_path: Path) -> Needing:
    """needing("libcuda.so.1"): a copy of a real library of ONNX Runtime that needs this one, not libstdc++.so.6."""

    def make(name: str) -> Path:
        content = (package() / "capi" / SHARED).read_bytes()
        old = b"libstdc++.so.6\0"
        assert content.count(old) == 1
        assert len(name) < len(old)
        path = tmp_path / "libonnxruntime_providers_cuda.so"
        path.write_bytes(content.replace(old, name.encode().ljust(len(old), b"\0")))
        return path

    return make


def no_library(name: str) -> object:
    raise OSError(f"{name}: cannot open shared object file: No such file or directory")


def test_what_a_real_library_needs_is_read_from_it() -> None:
    needed = needed_libraries(package() / "capi" / SHARED)

    assert "libc.so.6" in needed
    assert all(name.startswith(("lib", "ld-")) for name in needed)


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(90)])
def test_other_files_need_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.so").write_bytes(content)

    assert needed_libraries(tmp_path / "file.so") == ()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("libcuda.so.1", "it needs libcuda.so.1 .*cannot open.*; install NVIDIA's driver"),
        ("libcudart.so.9", r"it needs libcudart.so.9 .*; install the CUDA libraries .*onnxruntime-gpu\[cuda,cudnn\]"),
        ("libcudnn.so.7", "it needs libcudnn.so.7 .*; install cuDNN 7"),
        ("libnvonnx.so.8", "it needs libnvonnx.so.8 .*install TensorRT 8: pip install 'tensorrt==8"),
    ],
)
def test_a_missing_library_is_named_with_what_to_install(needing: Needing, name: str, words: str) -> None:
    file = needing(name)
    assert name in needed_libraries(file)

    reason = load_what_it_needs(file, folders=[], load=no_library)

    assert reason is not None
    assert re.search(words, reason), reason
    assert "\n" not in reason


def test_another_version_that_is_here_is_named(needing: Needing, tmp_path: Path) -> None:
    folder = tmp_path / "nvidia" / "cuda_runtime" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcudart.so.8").write_bytes(b"")

    reason = load_what_it_needs(needing("libcudart.so.9"), folders=[str(tmp_path)], load=no_library)

    assert str(reason).startswith("it needs libcudart.so.9 (here is libcudart.so.8); install")


def test_a_library_that_pip_brought_is_loaded_from_where_it_lies(needing: Needing, tmp_path: Path) -> None:
    place = tmp_path / "nvidia" / "cu9" / "lib" / "libcudart.so.9"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"")
    loaded = []

    def load(name: str) -> object:
        if name != str(place):
            raise OSError("not there")
        loaded.append(name)
        return None

    assert load_what_it_needs(needing("libcudart.so.9"), folders=[str(tmp_path)], load=load) is None
    assert loaded == [str(place)]


def test_libraries_of_the_system_are_left_to_the_system(tmp_path: Path) -> None:
    assert load_what_it_needs(package() / "capi" / SHARED, folders=[], load=no_library) is None


def test_a_provider_that_was_not_built_has_no_file() -> None:
    if provider_file(package(), "CUDAExecutionProvider") is None:
        assert not (package() / "capi" / "libonnxruntime_providers_cuda.so").exists()
    assert provider_file(package(), "SharedExecutionProvider") == package() / "capi" / SHARED
    assert tensorrt_version(package() / "capi" / SHARED) == "unknown"
