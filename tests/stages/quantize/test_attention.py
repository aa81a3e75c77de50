"""Both products of attention quantized, or none, and which of them TensorRT fuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stages.quantize.attention import Pair, attention_pairs, outside_limits, quantize_attention
from stages.quantize.graph import attention_products, count_quantized, join_pairs, read_graph
from stages.quantize.stage import QuantizeOptions

Run = Callable[..., Any]
LINEARS, BLOCKS = 9, 2


def attention(tokens: int, head: int) -> onnx.ModelProto:
    """q k^T, a mask added, softmax, times v; q, k and v are the images themselves."""
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", tokens, head])
    answer = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", tokens, head])
    nodes = [
        helper.make_node("Mul", ["images", "scale"], ["q"], name="q"),
        helper.make_node("Transpose", ["images"], ["k"], name="k", perm=[0, 2, 1]),
        helper.make_node("Identity", ["images"], ["v"], name="v"),
        helper.make_node("MatMul", ["q", "k"], ["scores"], name="qk"),
        helper.make_node("Add", ["scores", "mask"], ["masked"], name="masks"),
        helper.make_node("Softmax", ["masked"], ["weights"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["features"], name="av"),
    ]
    values = {"scale": np.float32(0.25), "mask": np.zeros((tokens, tokens), np.float32)}
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "attention", [image], [answer], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_the_products_of_an_attention_are_found_through_what_stands_between() -> None:
    graph = attention(4, 8).graph

    assert attention_pairs(graph) == [Pair("qk", "av")]
    assert attention_pairs(graph, keep={"qk"}) == []
    assert attention_pairs(graph, keep={"av"}) == [], "both or none"


@pytest.mark.parametrize(
    ("precision", "tokens", "head", "why"),
    [
        ("int8", 512, 64, None),
        ("int8", 513, 64, "513 tokens, int8 attention is fused up to 512"),
        ("fp8", 513, 256, None),
        ("fp8", 4, 8, "heads of 8, fp8 attention is fused for 9 to 256"),
        ("fp8", 4, 257, "heads of 257"),
        ("int8", 4, 8, None),
    ],
)
def test_what_tensorrt_does_not_fuse_is_left_in_float_with_the_reason(
    precision: str, tokens: int, head: int, why: str | None
) -> None:
    model = attention(tokens, head)

    found = outside_limits(model, attention_pairs(model.graph), precision)

    assert (set(found) == {"qk"}) is (why is not None)
    assert why is None or found["qk"].startswith(why)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_scale_of_what_a_softmax_makes_is_fixed_and_the_others_come_of_the_ranges(symmetric: bool) -> None:
    model = attention(4, 8)
    ranges = {"tensors": {name: {"percentile": size} for name, size in (("q", 2.54), ("k", 1.27), ("v", 0.0))}}

    quantize_attention(model, [Pair("qk", "av")], ranges, "int8", symmetric=symmetric)

    onnx.checker.check_model(model, full_check=True)
    tensors = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    scales = {node.input[0]: node.input[1:] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    told = {name: (float(tensors[step]), int(tensors[zero])) for name, (step, zero) in scales.items()}
    assert told["q"] == (pytest.approx(0.02), 0)
    assert told["k"] == (pytest.approx(0.01), 0)
    assert told["v"] == (1.0, 0), "nothing but zeros has some scale"
    assert told["weights"] == ((pytest.approx(1 / 127), 0) if symmetric else (pytest.approx(1 / 255), -128))
    assert count_quantized(model.graph) == (2, 2)


def test_both_products_go_back_to_float_together_whatever_they_are_called() -> None:
    groups = {"MatMul_3": ["MatMul_3"], "fc": ["fc/MatMul"], "MatMul_5": ["MatMul_5"]}

    assert join_pairs(groups, [("MatMul_3", "MatMul_5")]) == {"MatMul_3": ["MatMul_3", "MatMul_5"], "fc": ["fc/MatMul"]}
    assert join_pairs(groups, []) == groups
    assert join_pairs({"fc": ["fc/MatMul"]}, [("a", "b")]) == {"fc": ["fc/MatMul"]}


def test_fp8_attention_has_a_softmax_scale_of_one_448th(graph: Path, run_quantize: Run, tmp_path: Path) -> None:
    ran = run_quantize(graph, tmp_path, precision="fp8", scope="attention", images=8, select=64, sensitivity=True)

    made = onnx.load(ran.context.output / "model.onnx")
    tensors = {one.name: one for one in made.graph.initializer}
    by_name = {node.name: node for node in made.graph.node}
    made_by = {output: node for node in made.graph.node for output in node.output}
    pairs = attention_pairs(read_graph(graph / "model.onnx"))
    assert len(pairs) == BLOCKS
    for pair in pairs:
        weights = made_by[by_name[pair.values].input[0]]
        assert float(numpy_helper.to_array(tensors[weights.input[1]])) == pytest.approx(1 / 448)
        assert tensors[weights.input[2]].data_type == TensorProto.FLOAT8E4M3FN
    assert ran.result.facts["products"] == {"fp8": LINEARS + 2 * BLOCKS, "all": LINEARS + 2 * BLOCKS + 1}
    assert ran.result.facts["scope"] == "attention"
    assert ran.result.facts["agreement"] > 0.8
    assert {"blocks.0", "blocks.1"} <= {one["layer"] for one in ran.result.facts["sensitivity"]}


@pytest.mark.slow
def test_symmetric_graphs_quantize_linears_alone_unless_told_otherwise(
    graph: Path, run_quantize: Run, tmp_path: Path
) -> None:
    ran = run_quantize(graph, tmp_path, symmetric=True, alphas=(0.95,), images=8, select=64)

    made = read_graph(ran.context.output / "model.onnx")
    by_name = {node.name: node for node in made.node}
    makers = {output: node.op_type for node in made.node for output in node.output}
    assert ran.result.facts["scope"] == "linears"
    assert ran.result.facts["products"]["int8"] == LINEARS
    for name in attention_products(read_graph(graph / "model.onnx")):
        assert "DequantizeLinear" not in {makers.get(one) for one in by_name[name].input}


@pytest.mark.parametrize(
    ("options", "transformer", "scope"),
    [
        ({}, True, "all"),
        ({"symmetric": True}, True, "linears"),
        ({"symmetric": True, "scope": "all"}, True, "attention"),
        ({"symmetric": True, "scope": "attention"}, True, "attention"),
        ({"scope": "attention"}, True, "attention"),
        ({"symmetric": True}, False, "all"),
        ({"symmetric": True, "scope": "attention"}, False, "all"),
        ({"symmetric": True, "scope": "linears"}, False, "linears"),
        ({"precision": "fp8"}, True, "linears"),
        ({"precision": "fp8", "scope": "all"}, True, "attention"),
        ({"precision": "int8_dynamic"}, True, "linears"),
        ({"precision": "int8_dynamic", "scope": "all"}, True, "all"),
    ],
    ids=str,
)
def test_what_is_quantized_follows_from_what_the_graph_is_for(
    options: dict[str, Any], transformer: bool, scope: str
) -> None:
    assert QuantizeOptions(**options).scope_of(transformer=transformer) == scope


def test_precision_auto_has_rungs_that_quantize_more_or_less() -> None:
    auto = QuantizeOptions(precision="auto")

    assert auto.variants("int8", symmetric=True) == ("linears", "attention", "mixed")
    assert auto.variants("int8", symmetric=False) == ("linears", "all", "mixed")
    assert auto.variants("fp8", symmetric=False) == ("linears", "attention")
    assert auto.variants("fp16", symmetric=True) == ("",)
    assert auto.of("int8").as_variant("attention").scope == "attention"
    mixed = auto.of("int8").as_variant("mixed")
    assert (mixed.scope, mixed.within(0.97).least_agreement) == (None, 0.97)
    assert auto.of("int8").within(0.97).least_agreement is None


def test_all_strengths_are_tried_where_they_are_asked_for_or_affordable() -> None:
    full = ("off", 0.15, 0.5, 0.6, 0.8, 0.95, "auto")

    assert QuantizeOptions(alphas="full").strengths(10**9) == full
    assert QuantizeOptions(alphas="affordable").strengths(23_000_000) == full
    assert QuantizeOptions(alphas="affordable").strengths(10**9) == ("off", 0.5, 0.95)
    assert QuantizeOptions().strengths(1) == ("off", 0.5, 0.95)
    assert QuantizeOptions(precision="auto").of("int8").alphas == "affordable"
    assert QuantizeOptions(precision="auto", alphas=(0.5,)).of("int8").alphas == (0.5,)
