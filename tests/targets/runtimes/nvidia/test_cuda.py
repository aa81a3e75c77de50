"""CUDA by ctypes: on a fake library, and on the real one where it is installed without a GPU."""

import ctypes
from pathlib import Path

import pytest
from fake_cuda import FakeCudart

from targets.errors import InputError, WorkerError
from targets.runtimes.nvidia import cuda as module
from targets.runtimes.nvidia.cuda import Cuda


def test_a_gpu_is_described() -> None:
    cuda = Cuda(0, FakeCudart(capability="12.1", name="GB10"))

    assert (cuda.name(), cuda.compute_capability(), cuda.version()) == ("GB10", "12.1", "12.6")


def test_no_gpu_and_a_wrong_number_are_told() -> None:
    with pytest.raises(WorkerError, match="cudaGetDeviceCount failed: no CUDA-capable device is detected"):
        Cuda(0, FakeCudart(devices=0))
    with pytest.raises(InputError, match="device 2 is not one of the 2 GPUs"):
        Cuda(2, FakeCudart(devices=2))


def test_a_machine_without_the_library_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "NAMES", ("libcudart-of-nowhere.so",))
    monkeypatch.setattr(module.ctypes.util, "find_library", lambda name: None)

    with pytest.raises(WorkerError, match=r"no CUDA runtime \(libcudart\) is installed; install"):
        module.find_library()


def test_the_real_library_has_every_function_that_is_called() -> None:
    try:
        library = module.find_library()
    except WorkerError as error:
        pytest.skip(str(error))
    called = {name.removeprefix("_") for name in vars(FakeCudart) if name.startswith("_cuda")}
    if not hasattr(library, "cudaGetDeviceProperties_v2"):  # CUDA 11 and 13 have it under its plain name
        called = called - {"cudaGetDeviceProperties_v2"} | {"cudaGetDeviceProperties"}

    assert [name for name in sorted(called) if not hasattr(library, name)] == []


def test_the_real_library_says_why_there_is_no_gpu() -> None:
    try:
        library = module.find_library()
    except WorkerError as error:
        pytest.skip(str(error))
    if not library.cudaGetDeviceCount(ctypes.byref(ctypes.c_int())):
        pytest.skip("there is a GPU here")

    with pytest.raises(WorkerError, match=r"cudaGetDeviceCount failed: .+ \(cudaError \d+\)"):
        Cuda(0, library)
