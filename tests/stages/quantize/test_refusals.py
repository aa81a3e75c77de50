"""What the stage refuses, each in one line and before anything is started."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from pydantic import ValidationError

from stages.quantize.stage import QuantizeOptions
from targets.errors import InputError

Run = Callable[..., Any]


@pytest.fixture
def folder_with(graph: Path, tmp_path: Path) -> Callable[[bytes], Path]:
    """folder_with(content): the export's folder, but with this as its graph."""

    def make(content: bytes) -> Path:
        folder = tmp_path / "graph"
        folder.mkdir()
        (folder / "model.onnx").write_bytes(content)
        (folder / "vit.json").write_bytes((graph / "vit.json").read_bytes())
        return folder

    return make


def assert_refused(run: Run, folder: Path, work: Path, reason: str, **options: Any) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        run(folder, work, **options)

    assert "\n" not in str(caught.value)
    assert not list((work / "output").iterdir())
    assert not list((work / "scratch").iterdir())


@pytest.mark.parametrize("content", [b"not a graph at all", b"\x08\x0a\xff\xff\xff"], ids=["text", "cut short"])
def test_a_broken_graph(content: bytes, folder_with: Callable[..., Path], run_quantize: Run, tmp_path: Path) -> None:
    assert_refused(run_quantize, folder_with(content), tmp_path, r"model\.onnx' is not a readable ONNX graph; export")


def test_a_truncated_graph(graph: Path, folder_with: Callable[..., Path], run_quantize: Run, tmp_path: Path) -> None:
    content = (graph / "model.onnx").read_bytes()[:2000]

    assert_refused(run_quantize, folder_with(content), tmp_path, "not a readable ONNX graph")


def test_an_empty_graph(folder_with: Callable[..., Path], run_quantize: Run, tmp_path: Path) -> None:
    assert_refused(run_quantize, folder_with(b""), tmp_path, "no MatMul or Gemm or Conv: there is nothing to quantize")


def test_a_graph_without_products(folder_with: Callable[..., Path], run_quantize: Run, tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 16, 16])
    answer = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 16, 16])
    plain = helper.make_graph([helper.make_node("Relu", ["images"], ["logits"])], "plain", [image], [answer])

    content = helper.make_model(plain, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()

    assert_refused(run_quantize, folder_with(content), tmp_path, "there is nothing to quantize")


def test_a_graph_that_is_quantized_already(
    graph: Path, folder_with: Callable[..., Path], run_quantize: Run, tmp_path: Path
) -> None:
    model = onnx.load(graph / "model.onnx")
    model.graph.node.append(helper.make_node("QuantizeLinear", ["images", "scale"], ["quantized"]))

    assert_refused(
        run_quantize,
        folder_with(model.SerializeToString()),
        tmp_path,
        r"quantized already \(it holds QuantizeLinear\); start from the export step",
    )


def test_a_batch_above_one(write_graph: Callable[..., Path], run_quantize: Run, tmp_path: Path) -> None:
    graph = write_graph(tmp_path, batch=2)

    assert_refused(run_quantize, graph, tmp_path, "batch is fixed at 2, .* export it with batch 'dynamic'")


def test_fp8_of_an_older_operator_set(write_graph: Callable[..., Path], run_quantize: Run, tmp_path: Path) -> None:
    graph = write_graph(tmp_path, opset=18)
    reason = "fp8 needs opset 19, the graph has 18; export with opset 19 or later, or take int8"

    assert_refused(run_quantize, graph, tmp_path, reason, precision="fp8")


@pytest.mark.parametrize("role", ["fit", "select"])
def test_no_images(role: str, graph: Path, run_quantize: Run, tmp_path: Path) -> None:
    assert_refused(run_quantize, graph, tmp_path, f"{role} holds no images", **{role: 0})


def test_a_pattern_that_fits_no_node_is_told_with_what_names_look_like(
    graph: Path, run_quantize: Run, tmp_path: Path
) -> None:
    assert_refused(
        run_quantize,
        graph,
        tmp_path,
        r"keep_float 'block\.0\.\*' fits no node; nodes are named like patch_embed\.proj/Conv, blocks\.0\.attn\.qkv",
        keep_float=("head/*", "block.0.*"),
    )


def test_patterns_that_leave_nothing_to_quantize(graph: Path, run_quantize: Run, tmp_path: Path) -> None:
    assert_refused(
        run_quantize,
        graph,
        tmp_path,
        r"keep_float 'blocks\*', '\*/Conv', 'head/\*' keeps every matrix product in fp32",
        keep_float=("blocks*", "*/Conv", "head/*"),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"alphas": ()},
        {"alphas": (1.5,)},
        {"alphas": ("on",)},
        {"alphas": (0.5, 0.5)},
        {"images": 0},
        {"select_images": 0},
        {"precision": "fp32"},
        {"alpha": 0.5},
    ],
    ids=str,
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        QuantizeOptions(**options)
