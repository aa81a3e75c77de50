"""Counting the matrix products that run in int8, and picking nodes by pattern."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stages.quantize.calibrate import save
from stages.quantize.graph import count_quantized, match_nodes

Q, DQ = "QuantizeLinear", "DequantizeLinear"


def graph_of(*nodes: tuple[str, list[str], str]) -> onnx.GraphProto:
    made = [helper.make_node(kind, inputs, [output], name=output) for kind, inputs, output in nodes]
    return helper.make_graph(made, "graph", [], [])


@pytest.mark.parametrize(
    ("nodes", "int8"),
    [
        ([("MatMul", ["x", "w"], "y")], 0),
        ([(DQ, ["x"], "a"), ("MatMul", ["a", "w"], "y")], 0),
        ([(DQ, ["x"], "a"), (DQ, ["w"], "b"), ("MatMul", ["a", "b"], "y")], 1),
        ([(DQ, ["x"], "a"), (DQ, ["w"], "b"), ("Gemm", ["a", "b", "bias"], "y")], 1),
        ([(DQ, ["x"], "a"), (DQ, ["w"], "b"), ("Transpose", ["b"], "t"), ("MatMul", ["a", "t"], "y")], 1),
        ([(DQ, ["x"], "a"), ("Softmax", ["a"], "s"), (DQ, ["w"], "b"), ("MatMul", ["s", "b"], "y")], 0),
    ],
    ids=["fp32", "one side only", "both sides", "fp32 bias", "moved in between", "computed in between"],
)
def test_a_product_is_int8_where_both_its_factors_are(nodes: list[tuple[str, list[str], str]], int8: int) -> None:
    assert count_quantized(graph_of(*nodes)) == (int8, 1)


def test_patterns_pick_whole_names_in_graph_order() -> None:
    graph = graph_of(*(("MatMul", ["x", "w"], name) for name in ("blocks.0.fc1", "blocks.1.fc1", "blocks.10.fc1")))

    assert match_nodes(graph, ["blocks.1.*"]) == ["blocks.1.fc1"]
    assert match_nodes(graph, ["*10*", "blocks.0*"]) == ["blocks.0.fc1", "blocks.10.fc1"]
    assert match_nodes(graph, []) == []


def test_weights_beside_a_graph_that_is_written_again_do_not_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As each layer's cost is measured: one file again and again, and what an interrupted run left of it."""
    monkeypatch.setattr("targets.runtimes.widen.INLINE_LIMIT", 1000)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in ("x", "y")]
    (tmp_path / "model.onnx.data").write_bytes(b"a part of the weights")
    for factor in (1, 2):
        weight = numpy_helper.from_array(factor * np.ones((64, 64), np.float32), "w")
        graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
        save(helper.make_model(graph), tmp_path / "model.onnx")

        assert (tmp_path / "model.onnx.data").stat().st_size == 4 * 64 * 64
        (read,) = onnx.load(tmp_path / "model.onnx").graph.initializer
        assert (numpy_helper.to_array(read) == factor).all()
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
