"""A stand-in for the GPU: ONNX Runtime's CPU under the names of its providers for GPUs. Everything else is real."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from targets.runtimes.nvidia.options import ORT_CUDA, ORT_TENSORRT
from targets.runtimes.ort import gpu, library, providers

GPU = {"gpu": "NVIDIA L4", "compute_capability": "8.9", "cuda": "13.0"}


@pytest.fixture
def told() -> list[dict[str, str]]:
    """What the providers were told, in order."""
    return []


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, told: list[dict[str, str]]) -> Callable[..., None]:
    """stand_in(capability="8.9", engine=path): the CPU takes the place of that GPU; TensorRT's provider leaves path."""

    def on_the_cpu(make: Callable[..., tuple[str, dict[str, str]]]) -> Callable[..., tuple[str, dict[str, str]]]:
        def made(*arguments: Any, **named: Any) -> tuple[str, dict[str, str]]:
            told.append(make(*arguments, **named)[1])
            return library.CPU, {}

        return made

    builder = on_the_cpu(providers.tensorrt_builder)

    def leaving(engine: Path) -> Callable[..., tuple[str, dict[str, str]]]:
        def build(options: Mapping[str, Any], **named: Any) -> tuple[str, dict[str, str]]:
            """Leave what TensorRT's provider leaves: a graph and an engine beside it."""
            shutil.copyfile(engine, named["folder"] / providers.CONTEXT)
            (named["folder"] / "TensorrtExecutionProvider_TRTKernel_graph_0_0_fp32_sm89.engine").write_bytes(b"engine")
            return builder(options, **named)

        return build

    def put(*, capability: str = "8.9", engine: Path | None = None) -> None:
        facts = {**GPU, "compute_capability": capability}
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")  # which a session changes: put back after the test
        monkeypatch.setattr(gpu, "DEVICE_TYPE", "cpu")
        monkeypatch.setattr(gpu, "PROVIDERS", dict.fromkeys((ORT_CUDA, ORT_TENSORRT), library.CPU))
        others = {"gpu": "NVIDIA T4", "compute_capability": "7.5", "cuda": "13.0"}  # what is not GPU 0
        monkeypatch.setattr(gpu, "gpu_facts", lambda device: others if device else facts)
        monkeypatch.setattr(
            gpu,
            "here",
            lambda runtime, version, device: {"platform": "x", runtime: version, **gpu.gpu_facts(device)},
        )
        monkeypatch.setattr(gpu, "_tensorrt_version", lambda: "10.16.1")
        monkeypatch.setattr(providers, "cuda_provider", on_the_cpu(providers.cuda_provider))
        monkeypatch.setattr(providers, "tensorrt_loader", on_the_cpu(providers.tensorrt_loader))
        monkeypatch.setattr(providers, "tensorrt_builder", leaving(engine) if engine else builder)

    return put


@pytest.fixture(autouse=True)
def kernels(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of each test's own for what is kept of kernels, in place of the user's cache."""
    folder = tmp_path_factory.mktemp("kernels") / "kept"
    monkeypatch.setenv("VITRIM_KERNELS", str(folder))
    return folder
