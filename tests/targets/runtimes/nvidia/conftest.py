"""Fakes of CUDA and of both TensorRTs in place of the real ones, and graphs of tiny ViTs."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_cuda import FakeCudart
from fake_tensorrt import fake_tensorrt

from targets.runtimes.nvidia import cuda


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> FakeCudart:
    """A machine with a Jetson Orin."""
    library = FakeCudart()
    monkeypatch.setattr(cuda, "find_library", lambda: library)
    return library


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, cudart: FakeCudart) -> Callable[..., Any]:
    """install(version, name="tensorrt"): put a fake of the package in its place and return it."""

    def put(version: str, name: str = "tensorrt") -> Any:
        module = fake_tensorrt(version, cudart, name=name)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return put


@pytest.fixture
def rtx() -> Any:
    """The real package; skips where it is missing."""
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'vitrim[rtx]'")


@pytest.fixture(autouse=True)
def kernels(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of each test's own for what is kept of kernels, in place of the user's cache."""
    folder = tmp_path_factory.mktemp("kernels") / "kept"
    monkeypatch.setenv("VITRIM_KERNELS", str(folder))
    return folder
