"""Engines built ahead of time of a bf16 graph, for a GPU that is elsewhere, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from stages.quantize.half import HALVES, convert
from targets.errors import InputError
from targets.profile import RuntimeChoice

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'vitrim[rtx]'")
pytestmark = pytest.mark.slow  # the graphs to compile take some seconds to make

Run = Callable[..., Any]


@pytest.fixture
def bf16(graphs: Any, tmp_path: Path) -> Path:
    model = onnx.load(graphs.fp32 / "model.onnx")
    convert(model, set(), HALVES["bf16"])
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path


@pytest.fixture
def target(make_target: Run) -> Any:
    return make_target(runtimes=(RuntimeChoice(name="tensorrt_rtx", precisions=("fp32", "bf16", "fp16")),))


def test_a_bf16_graph_is_built_for_a_gpu_that_has_bf16(bf16: Path, target: Any, run_compile: Run) -> None:
    asked = {"runtime": "tensorrt_rtx", "precision": "bf16", "compute_capability": "8.6"}

    result, _ = run_compile(bf16, bf16 / "engine", target=target, **asked)

    assert result.facts["products_of_the_graph"] == {"bf16": 13, "fp32": 1}
    assert "built ahead of time for compute capability 8.6, never loaded" in result.facts["summary"]
    assert result.bound_to["compute_capability"] == "8.6"


@pytest.mark.parametrize(
    ("precision", "capability", "reason"),
    [
        ("bf16", "7.5", "does not run 'bf16' on compute capability 7.5 .*: use fp16"),
        ("fp32", "8.6", "for fp32, but the graph has matrix products 13 in bf16, 1 in fp32; ask for those"),
        ("fp16", "8.6", r"matrix products are 13 in bf16, 1 in fp32, .* \(stage quantize, precision fp16\)"),
    ],
)
def test_a_bf16_graph_is_refused_where_it_does_not_fit(
    bf16: Path, target: Any, run_compile: Run, precision: str, capability: str, reason: str
) -> None:
    asked = {"runtime": "tensorrt_rtx", "precision": precision, "compute_capability": capability}

    with pytest.raises(InputError, match=reason):
        run_compile(bf16, bf16 / "engine", target=target, **asked)


def test_an_fp32_graph_is_no_bf16_graph_and_the_refusal_names_the_step_that_makes_one(
    graphs: Any, target: Any, run_compile: Run, tmp_path: Path
) -> None:
    asked = {"runtime": "tensorrt_rtx", "precision": "bf16", "compute_capability": "8.6"}

    with pytest.raises(InputError, match=r"converts nothing; convert it \(stage quantize, precision bf16\)"):
        run_compile(graphs.fp32, tmp_path, target=target, **asked)
