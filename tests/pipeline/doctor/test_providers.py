"""Providers of the real ONNX Runtime, each tried in a process of its own."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.doctor import providers


def answering(monkeypatch: pytest.MonkeyPatch, *, listed: str, **answer: Any) -> None:
    def run(words: list[str], **options: Any) -> SimpleNamespace:
        assert words[0] == sys.executable
        assert options["env"]["ORT_DISABLE_TELEMETRY"] == "1"
        if words[-1].endswith("Provider"):
            if "raises" in answer:
                raise answer["raises"]
            return SimpleNamespace(**{"returncode": 0, "stdout": "", "stderr": "", **answer})
        return SimpleNamespace(returncode=0, stdout=listed, stderr="")

    monkeypatch.setattr(subprocess, "run", run)


def test_the_cpu_of_onnx_runtime_works_here() -> None:
    assert providers.try_providers() == {"CPUExecutionProvider": None}


def test_a_provider_whose_session_falls_back_is_found_out() -> None:
    _, reason = providers._ask(providers._TRY, "CUDAExecutionProvider")

    assert "built without the CUDA provider" in str(reason), "this wheel has none, so the session cannot be one"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({}, None),
        ({"returncode": 1, "stderr": "warning\nlibcudnn.so.9: cannot open\n"}, "libcudnn.so.9: cannot open"),
        ({"returncode": -11}, "the process was ended by signal 11"),
        ({"returncode": 3}, "the process ended with exit code 3"),
        ({"raises": subprocess.TimeoutExpired("python", 120)}, "it did not answer within 120 s"),
    ],
    ids=["works", "fails", "crashes", "says nothing", "hangs"],
)
def test_how_a_provider_fails_is_told(monkeypatch: pytest.MonkeyPatch, answer: Any, reason: str | None) -> None:
    answering(monkeypatch, listed='["CUDAExecutionProvider", "AzureExecutionProvider"]', **answer)

    assert providers.try_providers() == {"CUDAExecutionProvider": reason}


def test_without_onnx_runtime_there_are_no_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, listed="no list")

    assert providers.try_providers() == {}
