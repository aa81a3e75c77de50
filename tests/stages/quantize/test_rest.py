"""Quantized graphs whose rest has 16 bits: a strongly typed engine runs in fp32 whatever it finds in fp32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from pydantic import ValidationError

from stages.graph.described import read_described
from stages.quantize.attention import attention_pairs
from stages.quantize.graph import WEIGHTED, count_quantized, read_graph
from stages.quantize.half import HALVES
from stages.quantize.rest import narrow_rest
from stages.quantize.sinking import sink_quantizers
from stages.quantize.stage import QuantizeOptions
from stages.stage import Role
from targets.errors import InputError
from targets.runtimes.widen import tensor_types, widen
from targets.worker import Worker

Run = Callable[..., Any]
FP16 = HALVES["fp16"]
LINEARS = 9  # four a block, and the head


def products(model: onnx.ModelProto) -> dict[str, set[int]]:
    """Types of both inputs of every matrix product and convolution."""
    types = tensor_types(model)
    return {
        node.name: {types[name] for name in node.input[:2]} for node in model.graph.node if node.op_type in WEIGHTED
    }


@pytest.fixture(scope="module")
def fp8(graph: Path, run_quantize: Run, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_quantize(graph, tmp_path_factory.mktemp("rest"), precision="fp8", rest="float16", images=16, select=64)


@pytest.fixture(scope="module")
def int8(graph: Path, run_quantize: Run, tmp_path_factory: pytest.TempPathFactory) -> Any:
    options = {"symmetric": True, "scope": "attention", "rest": "float16", "alphas": (0.95,), "images": 16}
    return run_quantize(graph, tmp_path_factory.mktemp("rest"), select=64, **options)


def test_no_tensor_but_the_ends_is_fp32_and_every_product_multiplies_halves_or_codes(fp8: Any) -> None:
    made = onnx.load(fp8.context.output / "model.onnx")
    onnx.checker.check_model(made, full_check=True)

    assert all(kinds == {TensorProto.FLOAT16} for kinds in products(made).values())
    assert count_quantized(made.graph) == (LINEARS, LINEARS + 4 + 1)
    assert {one.type.tensor_type.elem_type for one in (*made.graph.input, *made.graph.output)} == {TensorProto.FLOAT}
    wide = {name for name, kind in tensor_types(made).items() if kind == TensorProto.FLOAT}
    assert wide == {"images", "logits"}
    assert fp8.result.facts["rest"] == "float16"
    assert fp8.result.facts["rest_kept_float"] == []
    assert fp8.result.facts["agreement"] > 0.8
    assert abs(fp8.result.facts["agreement"] - fp8.result.facts["agreement_float32_rest"]) < 0.1
    assert "emulation that rounds to float16" in fp8.result.facts["judged"]


def test_unless_told_otherwise_the_rest_is_fp32(graph: Path, run_quantize: Run, tmp_path: Path) -> None:
    ran = run_quantize(graph, tmp_path, precision="fp8", images=4, select=16)

    assert all(
        kinds == {TensorProto.FLOAT} for kinds in products(onnx.load(ran.context.output / "model.onnx")).values()
    )
    assert "rest" not in ran.result.facts


def test_what_would_overflow_stays_fp32_is_named_and_its_product_stays_quantized(
    graph: Path, run_quantize: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ran = run_quantize(
        graph,
        tmp_path,
        precision="fp8",
        rest="float16",
        images=8,
        select=32,
        largest_share=0.002,  # the limit is 131
    )

    facts, made = ran.result.facts, onnx.load(ran.context.output / "model.onnx")
    kept = {one["node"] for one in facts["rest_kept_float"]}
    found = products(made)
    assert kept
    assert next(iter(facts["rest_kept_float"]))["node"] in caplog.text
    assert {kinds.pop() for kinds in (set(found[name]) for name in kept & set(found))} == {TensorProto.FLOAT}
    assert kept & set(found), "the graph's outliers go into a product"
    assert {TensorProto.FLOAT16} in found.values()
    assert count_quantized(made.graph)[0] == LINEARS
    assert facts["agreement"] > 0.8


def quantized(scale: float, weight: float) -> onnx.ModelProto:
    """images -> Q/DQ -> MatMul with an int8 weight of these scales -> logits."""
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 4])
    answer = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"], name="x"),
        helper.make_node("DequantizeLinear", ["codes", "ws", "wz"], ["w"], name="w", axis=1),
        helper.make_node("MatMul", ["x", "w"], ["logits"], name="product"),
    ]
    codes = np.array([[127, -127, 60, 3], [-5, 100, 127, 0], [1, 2, 3, 127], [0, -64, 32, 16]], np.int8)
    values = {
        "s": np.float32(scale),
        "z": np.int8(0),
        "codes": codes,
        "ws": np.full(4, weight, np.float32),
        "wz": np.zeros(4, np.int8),
    }
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "quantized", [image], [answer], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("weight", [0.0123456, 3.3e-6, 2e-7])
def test_scales_are_rounded_up_to_halves_and_the_codes_go_with_them(weight: float) -> None:
    exact = quantized(0.0543211, weight)
    narrow = narrow_rest(quantized(0.0543211, weight), set(), FP16)

    before = {one.name: numpy_helper.to_array(one) for one in exact.graph.initializer}
    after = {one.name: numpy_helper.to_array(one).astype(np.float64) for one in narrow.graph.initializer}
    assert before["s"] <= after["s/fp16"] < before["s"] * 1.001
    step = after["ws/fp16"]
    assert (step >= before["ws"]).all()
    assert np.abs(after["codes"] * step - before["codes"] * before["ws"].astype(np.float64)).max() <= step.max() * 0.51
    assert np.abs(after["codes"]).max() <= 127


def test_a_scale_of_activations_is_never_so_small_that_its_reciprocal_overflows() -> None:
    narrow = narrow_rest(quantized(1e-7, 0.01), set(), FP16)

    scale = next(numpy_helper.to_array(one) for one in narrow.graph.initializer if one.name == "s/fp16")
    assert np.isfinite(np.float16(1) / scale)


def test_a_dequantizer_that_a_kept_product_shares_is_not_cast_between() -> None:
    model = quantized(0.05, 0.01)
    model.graph.node[-1].output[0] = "inner"
    model.graph.node.append(helper.make_node("Add", ["inner", "x"], ["logits"], name="reads the same"))

    narrow = narrow_rest(model, {"product"}, FP16)

    onnx.checker.check_model(narrow, full_check=True)
    made_by = {output: node for node in narrow.graph.node for output in node.output}
    product = next(node for node in narrow.graph.node if node.name == "product")
    assert [made_by[name].op_type for name in product.input] == ["DequantizeLinear"] * 2
    assert products(narrow)["product"] == {TensorProto.FLOAT}
    other = next(node for node in narrow.graph.node if node.name == "reads the same")
    assert {tensor_types(narrow)[name] for name in other.input} == {TensorProto.FLOAT16}


@pytest.mark.parametrize("rest", ["float16", "bfloat16"])
def test_the_emulation_answers_as_the_graph_does(rest: str) -> None:
    half = HALVES["fp16" if rest == "float16" else "bf16"]
    images = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    narrow, emulated = (narrow_rest(quantized(0.05, 0.01), set(), half) for _ in range(2))

    widen(emulated, half.tensor)

    assert {one.data_type for one in emulated.graph.initializer} == {TensorProto.FLOAT, TensorProto.INT8}
    right, got = (ReferenceEvaluator(one).run(None, {"images": images})[0] for one in (narrow, emulated))
    near = 2**-8 if rest == "float16" else 2**-5  # the graph rounds what goes into the product too
    assert np.abs(right.astype(np.float64) - got).max() < near * np.abs(right).max()


def test_an_operator_set_without_scales_of_16_bits_is_raised(
    write_graph: Run, run_quantize: Run, tmp_path: Path
) -> None:
    model = quantized(0.05, 0.01)
    model.opset_import[0].version = 18

    narrow = narrow_rest(model, set(), FP16)

    assert narrow.opset_import[0].version == 19
    onnx.checker.check_model(narrow, full_check=True)
    assert products(narrow)["product"] == {TensorProto.FLOAT16}
    model = quantized(0.05, 0.01)
    model.opset_import[0].version = 18
    model.graph.node.append(helper.make_node("NoSuchOperator", ["x"], ["y"], name="unknown"))
    with pytest.raises(InputError, match="scales of 16 bits need opset 19, the graph has 18 and cannot be raised"):
        narrow_rest(model, set(), FP16)


def test_a_rest_says_nothing_to_precisions_that_quantize_no_activations() -> None:
    with pytest.raises(ValidationError, match="rest says nothing to precision int8_weights, only to int8, fp8"):
        QuantizeOptions(precision="int8_weights", rest="float16")


def test_a_quantizer_before_what_picks_a_token_moves_behind_it_and_the_answers_stay() -> None:
    model = quantized(0.05, 0.01)
    picked = helper.make_node("Gather", ["x", "rows"], ["picked"], name="picks", axis=0)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "rows"))
    model.graph.node[-1].input[0] = "picked"
    model.graph.node.insert(2, picked)
    before = onnx.ModelProto.FromString(model.SerializeToString())
    assert count_quantized(model.graph)[0] == 0

    sink_quantizers(model)

    onnx.checker.check_model(model, full_check=True)
    assert count_quantized(model.graph)[0] == 1
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == 1
    images = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    right, got = (ReferenceEvaluator(one).run(None, {"images": images})[0] for one in (before, model))
    assert np.array_equal(right, got)


@pytest.mark.slow
def test_both_products_of_attention_are_quantized_or_none_and_the_patch_embedding_is_not(
    int8: Any, graph: Path
) -> None:
    made = onnx.load(int8.context.output / "model.onnx")
    tensors = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    by_name = {node.name: node for node in made.graph.node}
    made_by = {output: node for node in made.graph.node for output in node.output}

    assert int8.result.facts["products"] == {"int8": LINEARS + 4, "all": LINEARS + 4 + 1}
    for pair in attention_pairs(read_graph(graph / "model.onnx")):
        for name in (pair.scores, pair.values):
            assert [made_by[one].op_type for one in by_name[name].input] == ["DequantizeLinear"] * 2
        softmax = made_by[by_name[pair.values].input[0]]
        assert tensors[softmax.input[1]] == pytest.approx(1 / 127, rel=1e-3)
    assert not [name for name in by_name["patch_embed.proj/Conv"].input if "equantize" in name]
    assert int8.result.facts["agreement"] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_no_product_of_the_engine_that_tensorrt_rtx_builds_is_fp32(
    kind: str, int8: Any, fp8: Any, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'vitrim[rtx]'")
    ran = {"int8": int8, "fp8": fp8}[kind]

    with Worker(threads=1) as worker:
        engine, _ = worker.build(
            ran.context.output / "model.onnx",
            tmp_path,
            runtime="tensorrt_rtx",
            precision=kind,
            batch=1,
            more={"compute_capability": "8.9"},
        )

    found = list(engine["built"]["products"].values())
    assert set(found) == {kind, "fp16"}
    assert found.count(kind) == ran.result.facts["products"][kind]


@pytest.mark.parametrize("rest", ["float16", "bfloat16"])
def test_the_graph_itself_answers_on_a_cpu_as_its_emulation_did(
    rest: str, graph: Path, run_quantize: Run, tmp_path: Path
) -> None:
    ran = run_quantize(graph, tmp_path, precision="fp8", rest=rest, images=4, select=32)
    images, spec = ran.context.images[Role.SELECT], read_described(graph)

    answers = []
    for path in (ran.context.output / "model.onnx", ran.context.scratch / "rest_emulated" / "model.onnx"):
        with Worker(threads=1) as worker:
            worker.load(path, runtime="onnxruntime", precision="fp8")
            answers.append(worker.infer(images.uint8(spec.preprocess), batch=16, preprocess=spec.preprocess)["logits"])

    assert np.array_equal(*answers)
