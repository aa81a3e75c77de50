"""A TensorRT is not believed to work because it can be imported: it is tried, in a process of its own."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from fake_cuda import FakeCudart

from targets.runtimes.ask import ask_in_child
from targets.runtimes.nvidia.trial import tensorrt_obstacle, trial

Install = Callable[..., Any]


class Network:
    """What a trial asks of a network."""

    def add_input(self, name: str, kind: Any, shape: Any) -> str:
        return name

    def add_identity(self, tensor: str) -> Any:
        return SimpleNamespace(get_output=lambda index: tensor)

    def mark_output(self, tensor: str) -> None:
        assert tensor == "x"


def works(library: Any, plan: bytes | None = b"plan", engine: Any = "engine") -> None:
    """Let a fake build and load such plans."""
    library.Builder.create_network = lambda self, flags=0: Network()
    library.Builder.build_serialized_network = lambda self, network, config: plan
    library.Runtime.deserialize_cuda_engine = lambda self, given: engine


def test_one_that_builds_and_loads_works(install: Install) -> None:
    works(install("10.3.0"))

    assert trial("tensorrt") is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"plan": None}, "tensorrt 10.3.0 builds nothing: it did not say why"),
        ({"engine": None}, "tensorrt 10.3.0 loads nothing: it did not say why"),
    ],
)
def test_one_that_builds_or_loads_nothing_does_not(install: Install, given: dict[str, Any], words: str) -> None:
    works(install("10.3.0"), **given)

    assert trial("tensorrt") == words


def test_without_a_gpu_tensorrt_is_of_no_use_and_that_is_said(install: Install, cudart: FakeCudart) -> None:
    works(install("10.3.0"))
    cudart.devices = 0

    assert "no GPU" in str(trial("tensorrt")) or "no CUDA-capable device" in str(trial("tensorrt"))


def test_a_library_that_raises_is_told_in_one_line(install: Install) -> None:
    library = install("10.3.0")

    def broken(logger: Any) -> Any:
        raise TypeError("factory function\nreturned nullptr")

    library.Builder = broken
    assert trial("tensorrt") == "tensorrt 10.3.0 cannot start: factory function returned nullptr; it did not say why"


def test_a_package_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)

    assert "install the package tensorrt" in str(trial("tensorrt"))


@pytest.mark.usefixtures("rtx")
def test_the_real_tensorrt_rtx_builds_in_a_process_of_its_own_without_a_gpu() -> None:
    assert tensorrt_obstacle("tensorrt_rtx", "8.9") is None
    assert "does not know compute capability 9.9" in str(tensorrt_obstacle("tensorrt_rtx", "9.9"))


def test_other_runtimes_are_not_asked() -> None:
    assert tensorrt_obstacle("openvino") is None


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", "x cannot be started: the process ended with exit code -9"),
        (
            "raise SystemExit('no driver')",
            "x cannot be started: the process ended with exit code 1; it said: no driver",
        ),
        ("print('noise')", "x cannot be started: the process ended with exit code 0"),
        ("print('noise'); print('null')", None),
        ("print('\"it lacks a file\"')", "it lacks a file"),
    ],
)
def test_a_process_that_breaks_is_an_answer(code: str, words: str | None) -> None:
    assert ask_in_child(code, what="x") == words


def test_a_process_that_hangs_is_ended() -> None:
    asked = ask_in_child("import time; time.sleep(600)", what="x", limit_seconds=0.2)

    assert asked == "x does not start within 0.2 s"
