"""Counting the matrix products that run in int8, and picking nodes by pattern."""

import onnx
import pytest
from onnx import helper

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
