"""The rungs besides int8 with calibrated ranges."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from stages.quantize.graph import attention_products, read_graph
from stages.quantize.half import HALVES, convert, emulate, nodes_at_risk
from stages.quantize.linears import FP8_LARGEST, best_alpha
from stages.quantize.stage import QuantizeOptions, strength_of
from stages.stage import Role
from stages.vit.spec import ViTSpec
from targets.errors import InputError
from targets.worker import Worker

Run = Callable[..., Any]
FP16 = HALVES["fp16"]
LINEARS = 9  # four a block, and the head; the patch embedding is a convolution


def planted(scale: float) -> onnx.ModelProto:
    """images -> x w (large, by `scale`) -> + 0 -> / scale -> logits: only the middle overflows fp16."""
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 4])
    answer = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    nodes = [
        helper.make_node("MatMul", ["images", "small"], ["a"], name="before"),
        helper.make_node("Mul", ["a", "up"], ["b"], name="raises"),
        helper.make_node("Add", ["b", "zero"], ["c"], name="passes"),
        helper.make_node("Mul", ["c", "down"], ["d"], name="lowers"),
        helper.make_node("MatMul", ["d", "small"], ["logits"], name="after"),
    ]
    values = {"small": np.eye(4) * 0.5, "up": np.array(scale), "down": np.array(1 / scale), "zero": np.array(0.0)}
    weights = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "planted", [image], [answer], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def answer(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    from onnx.reference import ReferenceEvaluator  # rounds where the graph says so; ONNX Runtime does not

    return np.asarray(ReferenceEvaluator(model).run(None, {"images": images})[0])


def ranges_of(model: onnx.ModelProto, images: np.ndarray) -> dict[str, Any]:
    values = {"images": images}
    for node in model.graph.node:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        copy.graph.ClearField("output")
        copy.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))
        values[node.output[0]] = answer(copy, images)
    return {"tensors": {name: {"largest": float(np.abs(one).max())} for name, one in values.items()}, "inside": {}}


def test_what_overflows_fp16_is_found_named_and_repaired() -> None:
    images = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)
    model, broken, repaired, emulated = planted(5e5), planted(5e5), planted(5e5), planted(5e5)

    risks = nodes_at_risk(model, ranges_of(model, images), share=0.5)
    keep = {one.node for one in risks}
    with np.errstate(over="ignore"):
        convert(broken, set(), FP16)
    convert(repaired, keep, FP16)
    emulate(emulated, keep, FP16)

    assert [one.node for one in risks] == ["raises", "passes", "lowers"]
    assert all(one.largest == pytest.approx(5e5) for one in risks)
    with np.errstate(all="ignore"):
        assert not np.isfinite(answer(broken, images)).all()
    onnx.checker.check_model(repaired, full_check=True)
    assert answer(repaired, images) == pytest.approx(answer(model, images), rel=2e-3)
    assert np.array_equal(answer(repaired, images), answer(emulated, images))
    kinds = {one.name: one.data_type for one in repaired.graph.initializer}
    assert kinds == {
        "up": TensorProto.FLOAT,
        "zero": TensorProto.FLOAT,
        "down": TensorProto.FLOAT,
        "small/fp16": TensorProto.FLOAT16,
    }


def test_inputs_and_outputs_stay_float32_unless_told_otherwise() -> None:
    for keep_io, expected in ((False, TensorProto.FLOAT), (True, TensorProto.FLOAT16)):
        model = planted(2.0)
        convert(model, set(), FP16, keep_io=keep_io)
        onnx.checker.check_model(model, full_check=True)
        ends = [*model.graph.input, *model.graph.output]
        assert {one.type.tensor_type.elem_type for one in ends} == {expected}


def test_an_fp16_graph_is_half_as_large_runs_and_names_norms_that_overflow_inside(
    graph: Path, run_quantize: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ran = run_quantize(graph, tmp_path, precision="fp16", images=8, largest_share=0.002)  # the limit is 131

    facts = ran.result.facts
    kept = {one["node"]: one for one in facts["kept_float"]}
    made = onnx.load(ran.context.output / "model.onnx")
    assert kept
    assert any(one["largest"] > 131 for one in kept.values())
    assert next(iter(kept)) in caplog.text
    assert facts["agreement"] > 0.98
    assert set(facts["snr_db"]) >= {"patch_embed", "blocks.0", "blocks.1", "head"}
    assert min(facts["snr_db"].values()) > 20
    assert facts["bytes"]["after"] < 0.8 * facts["bytes"]["before"]
    assert facts["products"]["fp16"] > 0
    assert {one.type.tensor_type.elem_type for one in (*made.graph.input, *made.graph.output)} == {TensorProto.FLOAT}
    with Worker(threads=1) as worker:
        worker.load(ran.context.output / "model.onnx", runtime="onnxruntime", precision="fp16", batch=2)
        assert worker.matrix_products()


def test_weights_alone_in_int8_have_a_scale_per_output(graph: Path, run_quantize: Run, tmp_path: Path) -> None:
    ran = run_quantize(graph, tmp_path, precision="int8_weights")
    again = run_quantize(graph, tmp_path / "again", precision="int8_weights")

    found = onnx.load(ran.context.output / "model.onnx")
    tensors = {one.name: numpy_helper.to_array(one) for one in found.graph.initializer}
    source = {one.name: numpy_helper.to_array(one) for one in onnx.load(graph / "model.onnx").graph.initializer}
    weight, scale = (tensors[f"blocks.1.mlp.fc1.weight/{one}"] for one in ("int8", "scale"))
    exact = source["blocks.1.mlp.fc1.weight"]
    assert weight.dtype == np.int8
    assert scale == pytest.approx(np.abs(exact).max(axis=0) / 127)
    assert np.abs(weight * scale - exact).max() <= scale.max() / 2 * 1.001
    assert ran.result.facts["products"]["int8_weights"] == LINEARS
    assert ran.result.facts["agreement"] > 0.85
    assert (ran.context.output / "model.onnx").read_bytes() == (again.context.output / "model.onnx").read_bytes()


def test_blocks_of_inputs_share_a_scale_where_the_opset_has_it(
    write_graph: Run, graph: Path, run_quantize: Run, tmp_path: Path
) -> None:
    newer = write_graph(tmp_path, opset=21)

    ran = run_quantize(newer, tmp_path / "ran", precision="int8_weights", block=16)

    tensors = {one.name: one for one in onnx.load(ran.context.output / "model.onnx").graph.initializer}
    assert tuple(tensors["blocks.0.mlp.fc2.weight/scale"].dims) == (64 // 16, 32)
    assert ran.result.facts["agreement"] > 0.9
    with pytest.raises(InputError, match="block 16 needs opset 21, the graph has 20"):
        run_quantize(graph, tmp_path / "old", precision="int8_weights", block=16)
    with pytest.raises(InputError, match=r"block 24 does not divide the 32 inputs of 'blocks.0.attn.qkv/MatMul'"):
        run_quantize(newer, tmp_path / "odd", precision="int8_weights", block=24)


def test_dynamic_int8_multiplies_integers_and_leaves_attention_alone(
    graph: Path, run_quantize: Run, tmp_path: Path
) -> None:
    ran = run_quantize(graph, tmp_path, precision="int8_dynamic", keep_float=("head/*",))
    again = run_quantize(graph, tmp_path / "again", precision="int8_dynamic", keep_float=("head/*",))

    made = read_graph(ran.context.output / "model.onnx")
    plain = [node.name for node in made.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert ran.result.facts["products"]["int8_dynamic"] == LINEARS - 1
    assert set(attention_products(read_graph(graph / "model.onnx"))) <= set(plain)
    assert ran.result.facts["agreement"] > 0.5
    assert (ran.context.output / "model.onnx").read_bytes() == (again.context.output / "model.onnx").read_bytes()
    with Worker(threads=1) as worker:
        worker.load(ran.context.output / "model.onnx", runtime="onnxruntime", precision="int8_dynamic", batch=2)
        assert worker.matrix_products()["int8"] == LINEARS - 1


def test_fp8_scales_map_the_largest_value_to_448(fp8: Any, graph: Path) -> None:
    found = onnx.load(fp8.context.output / "model.onnx")
    tensors = {one.name: one for one in found.graph.initializer}
    ranges = json.loads((fp8.context.scratch / "scan.ranges").read_bytes())["tensors"]
    source = {one.name: numpy_helper.to_array(one) for one in onnx.load(graph / "model.onnx").graph.initializer}
    scales = [name.removesuffix("/fp8/scale") for name in tensors if name.endswith("/fp8/scale")]

    assert scales
    for name in scales:
        scale = float(numpy_helper.to_array(tensors[f"{name}/fp8/scale"]))
        assert scale == pytest.approx(ranges[name]["largest"] / FP8_LARGEST)
    weight = "blocks.0.attn.qkv.weight"
    values = np.frombuffer(tensors[f"{weight}/fp8"].raw_data, ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.abs(values).max() == FP8_LARGEST
    scale = numpy_helper.to_array(tensors[f"{weight}/scale"])
    assert scale == pytest.approx(np.abs(source[weight]).max(axis=0) / FP8_LARGEST)
    exact = source[weight]
    assert (np.abs(values.reshape(exact.shape) * scale - exact) <= np.maximum(np.abs(exact) / 16, scale / 512)).all()
    assert fp8.result.facts["products"]["fp8"] == LINEARS
    assert fp8.result.facts["agreement"] > 0.8


@pytest.mark.slow
def test_linears_only_leaves_attention_and_residual_additions_float_and_auto_names_its_strength(
    graph: Path, run_quantize: Run, tmp_path: Path
) -> None:
    ran = run_quantize(graph, tmp_path, scope="linears", alphas=("auto",), images=8)

    facts = ran.result.facts
    made = read_graph(ran.context.output / "model.onnx")
    by_name = {node.name: node for node in made.node}
    for node in attention_products(read_graph(graph / "model.onnx")):
        assert not [name for name in by_name[node].input if "Dequantize" in name or "DequantizeLinear" in name]
    quantizers = {name for node in made.node if node.op_type == "DequantizeLinear" for name in node.output}
    assert not [node.name for node in made.node if node.op_type == "Add" and quantizers.intersection(node.input)]
    assert facts["products"]["int8"] == LINEARS
    assert facts["scope"] == "linears"
    assert facts["candidates"][0]["alpha"] == "auto"
    assert 0 < facts["candidates"][0]["strength"] <= 1


def test_auto_shares_outliers_of_the_inputs_between_both_sides() -> None:
    draw = np.random.default_rng(0)
    weight = draw.normal(size=(32, 16)).astype(np.float32)
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 32])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 16])
    node = helper.make_node("MatMul", ["images", "w"], ["logits"], name="layer")
    model = helper.make_model(helper.make_graph([node], "one", [image], [out], [numpy_helper.from_array(weight, "w")]))

    def strength(outlier: float) -> float:
        largest = np.ones(32)
        largest[:2] = outlier
        seen = {"largest": largest.tolist(), "mean_square": (largest**2 / 9).tolist()}
        return best_alpha(model, {"channels": {"images": seen}}, ())

    assert strength(100) != strength(1)
    assert 0.3 < strength(100) < 1


def test_a_collapse_names_the_layer_where_the_signal_is_lost(
    quantized: Any, graph: Path, run_quantize: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = onnx.load(quantized.context.scratch / "alpha_0.5.onnx")
    for one in model.graph.initializer:
        if one.name in ("q_output_head.weight_1", "scale_head.weight_1", "head.bias"):  # classes change places
            one.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(one), 1, axis=0), one.name))
    (tmp_path / "scratch").mkdir()
    onnx.save(model, tmp_path / "scratch" / "alpha_0.5.onnx")

    found = run_quantize(graph, tmp_path, alphas=(0.5,), images=48)

    assert found.result.facts["collapsed"] is True
    assert found.result.facts["breaks_at"]["node"] == "head/Gemm"
    assert "the signal is lost first in head/Gemm" in caplog.text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"precision": "fp16", "symmetric": True}, "symmetric says nothing to precision fp16, only to int8; remove it"),
        ({"precision": "fp8", "alphas": (0.5,)}, "alphas says nothing to precision fp8"),
        ({"precision": "int8", "block": 32}, "block says nothing to precision int8, only to int8_weights"),
        ({"precision": "fp16", "budget_agreement": 0.9}, "budget_agreement says nothing to precision fp16"),
        ({"precision": "int8_weights", "scope": "all"}, "scope says nothing to precision int8_weights"),
    ],
    ids=str,
)
def test_an_option_of_another_precision_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        QuantizeOptions(**options)


@pytest.mark.parametrize("precision", ["int8", "int8_dynamic", "int8_weights", "fp8", "fp16", "bf16"])
def test_every_precision_has_options_for_graphs_whose_speed_alone_counts(precision: str) -> None:
    assert QuantizeOptions(precision=precision).quickly().images == 2


@pytest.mark.parametrize("alpha", ["off", 0.0, 0.5])
def test_a_graph_whose_speed_alone_counts_has_the_operators_of_the_one_it_stands_for(
    graph: Path, run_quantize: Run, tmp_path: Path, alpha: Any
) -> None:
    options = QuantizeOptions(alphas=(alpha,), images=16)
    whole = run_quantize(graph, tmp_path / "whole", **options.model_dump(exclude_unset=True))
    chosen = strength_of(whole.result.facts)
    quick = run_quantize(graph, tmp_path / "quick", **options.quickly(chosen).model_dump(exclude_unset=True))

    assert chosen == alpha
    kinds = [
        Counter(node.op_type for node in read_graph(one.context.output / "model.onnx").node) for one in (whole, quick)
    ]
    assert kinds[0] == kinds[1]


def test_a_graph_whose_speed_alone_counts_keeps_what_it_has_of_the_float_layers(
    graph: Path, run_quantize: Run, tmp_path: Path
) -> None:
    options = QuantizeOptions(alphas=("off",), images=16, keep_float=("no.such.layer/*",))

    quick = options.quickly("off", ["blocks.0.mlp.fc1", "blocks.99.mlp.fc1"])
    found = run_quantize(graph, tmp_path / "quick", **quick.model_dump(exclude_unset=True))

    made = read_graph(found.context.output / "model.onnx").node
    by = {output: node.op_type for node in made for output in node.output}
    inputs = {node.name: {by.get(name) for name in node.input} for node in made if node.op_type in ("MatMul", "Gemm")}

    def is_float(layer: str) -> bool:
        (found,) = [kinds for name, kinds in inputs.items() if name.startswith(f"{layer}/")]
        return "DequantizeLinear" not in found

    assert is_float("blocks.0.mlp.fc1")
    assert not is_float("blocks.1.mlp.fc1")


def test_the_strength_of_auto_is_the_number_that_it_found() -> None:
    facts = {"alpha": "auto", "candidates": [{"alpha": 0.5}, {"alpha": "auto", "strength": 0.85}]}

    assert strength_of(facts) == 0.85
    assert strength_of({"precision": "fp8"}) is None


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8"])
def test_pruned_shapes_and_merged_tokens_pass_every_rung(
    precision: str, write_graph: Run, run_quantize: Run, tmp_path: Path, spec: ViTSpec
) -> None:
    from targets.preprocess import Preprocess

    first, second = spec.blocks
    pruned = spec.replace(
        preprocess=Preprocess(height=32, width=32, interpolation="bilinear"),
        blocks=(first.replace(d_qk=8, d_v=12), second.replace(mlp_width=40)),
        merge=(5, 3),
    )
    graph = write_graph(tmp_path, spec=pruned)

    ran = run_quantize(graph, tmp_path, precision=precision, select=64, **({"images": 4} if "p" in precision else {}))

    assert ran.result.facts["agreement"] > 0.7
    assert ran.context.images[Role.SELECT]
    made = read_graph(ran.context.output / "model.onnx")
    assert made.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
