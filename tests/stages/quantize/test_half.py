"""Graphs of 16 bits that no CPU runs: bf16, its rounding, its emulation, and what the stage makes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from stages.quantize.graph import WEIGHTED, attention_products, read_graph
from stages.quantize.half import HALVES, Half, convert, emulate, nodes_without
from stages.quantize.stage import STAGE, QuantizeOptions
from stages.stage import Role
from targets.errors import InputError
from targets.runtimes.widen import tensor_types, widen
from targets.worker import Worker

Run = Callable[..., Any]
Array = NDArray[np.float32]
BF16 = HALVES["bf16"]
LINEARS = 9  # four a block, and the head; the patch embedding is a convolution
WHOLE_NUMBERS = st.integers(-999, 999)  # more than the 8 bits of bf16, and their products add up exactly in fp32


def planted(weight: Array, bias: Array) -> onnx.ModelProto:
    """images [B, 3] x w + b, Relu, a fraction of it: logits."""
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3])
    answer = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    nodes = [
        helper.make_node("MatMul", ["images", "w"], ["a"], name="product"),
        helper.make_node("Add", ["a", "b"], ["c"], name="adds"),
        helper.make_node("Relu", ["c"], ["d"], name="cuts"),
        helper.make_node("Mul", ["d", "third"], ["logits"], name="scales"),
    ]
    values = {"w": weight, "b": bias, "third": np.float32(1 / 3)}
    weights = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "planted", [image], [answer], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def rounded(values: Array) -> Array:
    """To the nearest bf16, ties to even, by the bits."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def by_hand(images: Array, weight: Array, bias: Array, *, first: bool = True) -> Array:
    """What the planted graph answers in bf16; first: the product is in bf16 too."""
    product = rounded(rounded(images) @ rounded(weight)) if first else rounded(images @ weight)
    return rounded(np.maximum(rounded(product + rounded(bias)), 0) * rounded(np.float32([1 / 3])))


def in_onnxruntime(model: onnx.ModelProto, images: Array) -> Array:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images})[0])


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


@st.composite
def arrays(draw: st.DrawFn, *shape: int) -> Array:
    """Whole numbers as fp32."""
    count = int(np.prod(shape))
    return np.float32(draw(st.lists(WHOLE_NUMBERS, min_size=count, max_size=count))).reshape(shape)


@given(st.lists(st.floats(width=32, allow_nan=False, min_value=-(2.0**126), max_value=2.0**126), min_size=1))
def test_weights_are_rounded_to_the_nearest_bf16_and_ties_to_even(values: list[float]) -> None:
    exact = np.float32(values)
    ties = (exact.view(np.uint32) & np.uint32(0xFFFF0000) | np.uint32(0x8000)).view(np.float32)

    for one in (exact, ties):
        assert np.array_equal(BF16.rounded(one).astype(np.float32), rounded(one))


@settings(max_examples=30)
@given(images=arrays(2, 3), weight=arrays(3, 3), bias=arrays(3))
def test_the_emulation_answers_what_rounding_by_hand_gives(images: Array, weight: Array, bias: Array) -> None:
    emulated, kept = planted(weight, bias), planted(weight, bias)

    emulate(emulated, set(), BF16)
    emulate(kept, {"product"}, BF16)

    onnx.checker.check_model(emulated, full_check=True)
    assert np.array_equal(in_onnxruntime(emulated, images), by_hand(images, weight, bias))
    assert np.array_equal(in_onnxruntime(kept, images), by_hand(images, weight, bias, first=False))


@settings(max_examples=30)
@given(images=arrays(2, 3), weight=arrays(3, 3), bias=arrays(3), keep_io=st.booleans())
def test_the_graph_itself_answers_like_its_emulation(images: Array, weight: Array, bias: Array, keep_io: bool) -> None:
    from onnx.reference import ReferenceEvaluator

    made = planted(weight, bias)
    convert(made, set(), BF16, keep_io=keep_io)
    onnx.checker.check_model(made, full_check=True)
    widened = copy_of(made)
    widen(widened, TensorProto.BFLOAT16)

    onnx.checker.check_model(widened, full_check=True)
    given_images = BF16.rounded(images) if keep_io else images
    answer = np.asarray(ReferenceEvaluator(made).run(None, {"images": given_images})[0]).astype(np.float32)
    assert np.array_equal(answer, by_hand(images, weight, bias))
    assert np.array_equal(in_onnxruntime(widened, images), by_hand(images, weight, bias))
    ends = {one.type.tensor_type.elem_type for one in (*made.graph.input, *made.graph.output)}
    assert ends == {TensorProto.BFLOAT16 if keep_io else TensorProto.FLOAT}


def reads(model: onnx.ModelProto, *operators: str) -> list[set[int]]:
    """Types that go into each node of these operators."""
    types = tensor_types(model)
    return [{types[name] for name in node.input} for node in model.graph.node if node.op_type in operators]


@pytest.mark.parametrize(("opset", "without"), [(20, ["patch_embed.proj/Conv"]), (22, [])])
def test_every_product_that_onnx_has_in_bf16_reads_bf16_and_converting_again_changes_none(
    write_graph: Run, tmp_path: Path, opset: int, without: list[str]
) -> None:
    model = onnx.load(write_graph(tmp_path, opset=opset) / "model.onnx")
    lacking = nodes_without(model, BF16)

    convert(model, set(), BF16)
    once = copy_of(model)
    convert(model, set(), BF16)

    assert [name for name in lacking if "Conv" in name] == without
    assert reads(once, "MatMul", "Gemm", "LayerNormalization", "Softmax") == [{TensorProto.BFLOAT16}] * (13 + 5 + 2)
    assert reads(once, "Conv") == [{TensorProto.FLOAT if without else TensorProto.BFLOAT16}]
    onnx.checker.check_model(model, full_check=True)
    everything = (*WEIGHTED, "LayerNormalization", "Softmax", "Add", "Mul")
    assert reads(model, *everything) == reads(once, *everything)


@pytest.fixture(scope="module")
def made(graph: Path, run_quantize: Run, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_quantize(graph, tmp_path_factory.mktemp("bf16"), precision="bf16", fit=0)


def test_the_stage_makes_a_bf16_graph_without_images_of_fit_and_says_what_stayed_fp32(made: Any, graph: Path) -> None:
    facts = made.result.facts
    found = onnx.load(made.context.output / "model.onnx")

    products = LINEARS + len(attention_products(read_graph(graph / "model.onnx"))) - 1
    assert STAGE.roles(QuantizeOptions(precision="bf16")) == (Role.SELECT,)
    assert facts["products"] == {"bf16": products, "all": products + 1}
    assert facts["without"] == ["patch_embed.proj/Conv"]
    assert facts["kept_float"] == []
    assert facts["agreement"] > 0.95
    assert facts["judged"] == "emulation in fp32 that rounds weights and every tensor to bf16"
    assert set(facts["snr_db"]) >= {"patch_embed", "blocks.0", "blocks.1", "head"}
    assert min(facts["snr_db"].values()) > 20
    assert facts["bytes"]["after"] < 0.8 * facts["bytes"]["before"]
    assert {one.type.tensor_type.elem_type for one in (*found.graph.input, *found.graph.output)} == {TensorProto.FLOAT}
    source = {one.name: numpy_helper.to_array(one) for one in onnx.load(graph / "model.onnx").graph.initializer}
    weights = {one.name: one for one in found.graph.initializer}
    stored = numpy_helper.to_array(weights["blocks.0.attn.qkv.weight/bf16"]).astype(np.float32)
    assert np.array_equal(stored, rounded(source["blocks.0.attn.qkv.weight"]))


def test_onnxruntime_has_no_bf16_on_cpus_so_that_the_graph_is_emulated_when_loaded_and_never_built(
    made: Any, tmp_path: Path
) -> None:
    from targets.preprocess import Preprocess

    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    preprocess = Preprocess(height=16, width=16, interpolation="bilinear")
    path, answers = made.context.output / "model.onnx", []

    with Worker(threads=1) as worker:
        for model, precision in ((path, "bf16"), (made.context.scratch / "bf16_emulated" / "model.onnx", "fp32")):
            loaded = worker.load(model, runtime="onnxruntime", precision=precision, batch=4)
            assert loaded.facts.get("emulated") == ("bf16" if precision == "bf16" else None)
            answers.append(worker.infer(pixels, preprocess=preprocess, batch=4)["logits"])
        with pytest.raises(InputError, match="'onnxruntime' does not run 'bf16'"):
            worker.build(path, tmp_path, runtime="onnxruntime", precision="bf16", batch=1)
    assert np.array_equal(*answers)


def test_what_is_named_stays_fp32_and_the_ends_stay_bf16_where_that_is_asked(
    graph: Path, run_quantize: Run, tmp_path: Path
) -> None:
    ran = run_quantize(graph, tmp_path, precision="bf16", keep_float=("*norm*", "head/*"), io="keep", select=32)

    found = onnx.load(ran.context.output / "model.onnx")
    types = tensor_types(found)
    assert reads(found, "LayerNormalization") == [{TensorProto.FLOAT}] * 5
    assert reads(found, "Gemm") == [{TensorProto.FLOAT}]
    assert {types[one.name] for one in (*found.graph.input, *found.graph.output)} == {TensorProto.BFLOAT16}
    assert ran.result.facts["io"] == "keep"


@pytest.mark.parametrize("option", [{"largest_share": 0.3}, {"symmetric": True}, {"budget_agreement": 0.9}], ids=str)
def test_an_option_that_says_nothing_to_bf16_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="says nothing to precision bf16"):
        QuantizeOptions(precision="bf16", **option)


def test_a_graph_whose_products_onnx_does_not_have_in_bf16_is_refused_with_the_operator_set_that_has_them(
    run_quantize: Run, tmp_path: Path, graph: Path
) -> None:
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 16, 16])
    answer = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 6])
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["a"], name="conv"),
        helper.make_node("ReduceMean", ["a", "axes"], ["logits"], name="mean", keepdims=0),
    ]
    values = {"w": np.ones((6, 3, 1, 1), np.float32), "axes": np.array([2, 3])}
    weights = [numpy_helper.from_array(value, name) for name, value in values.items()]
    model = helper.make_graph(nodes, "net", [image], [answer], weights)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "vit.json").write_bytes((graph / "vit.json").read_bytes())
    for opset in (20, 22):
        made = helper.make_model(model, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        onnx.save(made, tmp_path / "net" / "model.onnx")
        if opset == 22:
            ran = run_quantize(tmp_path / "net", tmp_path / "ran", precision="bf16", select=8)
            assert ran.result.facts["products"] == {"bf16": 1, "all": 1}
            continue
        with pytest.raises(InputError, match="export it with opset 22 or later, which has convolutions in bf16"):
            run_quantize(tmp_path / "net", tmp_path, precision="bf16", select=8)


@pytest.mark.parametrize("keep", [set(), {"after"}, {"before"}], ids=str)
@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_what_needs_fp32_gets_it_and_what_follows_knows_its_type(half: Half, keep: set[str]) -> None:
    """Resize: its scales are a weight, by which alone the types behind it are known."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, size, size])
        for name, size in (("x", 2), ("y", 4))
    ]
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="before"),
        helper.make_node("Resize", ["a", "", "scales"], ["b"], name="resizes", mode="nearest"),
        helper.make_node("Abs", ["b"], ["c"], name="after"),
        helper.make_node("Neg", ["c"], ["y"], name="last"),
    ]
    graph = helper.make_graph(
        nodes, "resizing", ends[:1], ends[1:], [numpy_helper.from_array(np.float32([1, 1, 2, 2]), "scales")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    convert(model, keep, half)

    onnx.checker.check_model(model, full_check=True)
    types = tensor_types(model)
    by_name = {node.name: node for node in model.graph.node}
    assert types[by_name["resizes"].input[0]] == types[by_name["resizes"].output[0]] == TensorProto.FLOAT
    for name in ("before", "after", "last"):
        expected = TensorProto.FLOAT if name in keep else half.tensor
        assert types[by_name[name].input[0]] == types[by_name[name].output[0]] == expected, name


def test_types_are_known_without_touching_the_weights() -> None:
    model = planted(np.ones((3, 3), np.float32), np.zeros(3, np.float32))
    large = numpy_helper.from_array(np.ones((64, 64), np.float32), "large")
    model.graph.initializer.append(large)
    before = model.SerializeToString()

    assert tensor_types(model)["large"] == tensor_types(model)["d"] == TensorProto.FLOAT
    assert model.SerializeToString() == before
