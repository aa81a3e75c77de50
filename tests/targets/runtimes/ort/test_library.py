"""The library onnxruntime itself, which here has no GPU: what is asked of it is had or refused, never replaced."""

import os
from pathlib import Path

import pytest
from tiny_graphs import save_fp32

from targets.errors import WorkerError
from targets.runtimes.ort.library import (
    CPU,
    CUDA,
    TENSORRT,
    load_library,
    new_settings,
    open_session,
    provider_word,
    refuse_other_providers,
)


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("provider", [CUDA, TENSORRT])
def test_a_real_session_that_falls_back_to_the_cpu_is_refused(
    tmp_path: Path, provider: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if provider in load_library().get_available_providers():
        pytest.skip(f"this onnxruntime has {provider}")
    model = save_fp32(tmp_path / "graph.onnx")

    with pytest.raises(WorkerError, match=f"fell back to CPUExecutionProvider, wanted {provider}; `vitrim doctor`"):
        open_session(model, new_settings({"threads": 1}), [(provider, {})], runtime="onnxruntime_cuda")
    assert capfd.readouterr().out == "", "the agent speaks on standard output"


def test_what_cannot_be_loaded_is_not_tried_again_on_the_cpu(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"no graph")

    with pytest.raises(WorkerError, match="onnxruntime_cuda cannot load") as caught:
        open_session(tmp_path / "graph.onnx", new_settings({"threads": 1}), [(CPU, {})], runtime="onnxruntime_cuda")
    assert "Falling back" not in capfd.readouterr().out
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("found", "wanted", "refused"),
    [
        ([CUDA, CPU], [CUDA], False),
        ([CPU], [CPU], False),
        ([TENSORRT, CPU], [TENSORRT], False),
        ([CPU], [CUDA], True),
        ([CUDA, CPU], [TENSORRT], True),
        ([TENSORRT, CUDA, CPU], [TENSORRT], True),
        ([CPU, CUDA], [CUDA], True),
        ([], [CUDA], True),
    ],
)
def test_providers_in_force_must_be_those_asked_for(found: list[str], wanted: list[str], refused: bool) -> None:
    if not refused:
        refuse_other_providers(found, wanted, runtime="onnxruntime")
        return
    with pytest.raises(WorkerError, match="fell back"):
        refuse_other_providers(found, wanted, runtime="onnxruntime")


def test_telemetry_is_off() -> None:
    load_library()

    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_providers_have_words() -> None:
    assert [provider_word(one) for one in (CPU, CUDA, TENSORRT, "QNNExecutionProvider")] == [
        "CPU",
        "CUDA",
        "TensorRT",
        "QNNExecutionProvider",
    ]
