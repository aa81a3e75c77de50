"""What layers cost when they are quantized, those that go back to float, and the noise of each part."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from stages.quantize.agreement import Agreement
from stages.quantize.graph import attention_products, read_graph
from stages.quantize.mixed import layers, return_to_float
from stages.quantize.run import Chosen, _judge_budget_again, find_break, noise_by_group
from stages.quantize.stage import QuantizeOptions

Run = Callable[..., Any]
LINEARS = 9  # four a block, and the head; the patch embedding is a convolution


def test_the_cost_of_every_layer_is_told_the_costliest_first(fp8: Any, graph: Path) -> None:
    costs = fp8.result.facts["sensitivity"]
    names = set(layers(read_graph(graph / "model.onnx"), attention_products(read_graph(graph / "model.onnx"))))

    assert {one["layer"] for one in costs} == names
    assert [one["divergence"] for one in costs] == sorted((one["divergence"] for one in costs), reverse=True)
    assert all(one["divergence"] <= fp8.result.facts["divergence"] * 3 for one in costs)


def plant(path: Path, layer: str) -> bytes:
    """The graph with weights of one layer whose every output has one input, hardly used, that spoils its scale."""
    model = onnx.load(path)
    tensors = {one.name: one for one in model.graph.initializer}
    weight = numpy_helper.to_array(tensors[f"{layer}.weight"]).copy()
    weight[:2] *= 1e5  # the two inputs come from channels of a norm, whose gain is lowered by as much
    tensors[f"{layer}.weight"].CopyFrom(numpy_helper.from_array(weight, f"{layer}.weight"))
    norm = layer.replace("mlp.fc1", "norm2")
    for kind in ("weight", "bias"):
        gain = numpy_helper.to_array(tensors[f"{norm}.{kind}"]).copy()
        gain[:2] /= 1e5
        tensors[f"{norm}.{kind}"].CopyFrom(numpy_helper.from_array(gain, f"{norm}.{kind}"))
    return model.SerializeToString()


@pytest.fixture(scope="module")
def spoilt(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spoilt")
    (folder / "model.onnx").write_bytes(plant(graph / "model.onnx", "blocks.1.mlp.fc1"))
    (folder / "vit.json").write_bytes((graph / "vit.json").read_bytes())
    return folder


def test_the_loop_returns_the_planted_layer_first_and_the_agreement_holds(
    spoilt: Path, run_quantize: Run, tmp_path: Path
) -> None:
    before = run_quantize(spoilt, tmp_path / "before", precision="int8_weights").result.facts["agreement"]
    assert before < 1  # how far below, differs between processors

    ran = run_quantize(spoilt, tmp_path, precision="int8_weights", budget_agreement=before + 1e-6, rounds=3)

    facts = ran.result.facts
    assert facts["sensitivity"][0]["layer"] == "blocks.1.mlp.fc1"
    assert [one["layer"] for one in facts["returned"]] == ["blocks.1.mlp.fc1"]
    assert facts["budget"]["before"] == before < facts["agreement"]
    assert facts["budget"]["met"] is True
    assert facts["products"]["int8_weights"] == LINEARS - 1
    kept = {one.name for one in read_graph(ran.context.output / "model.onnx").initializer}
    assert "blocks.1.mlp.fc1.weight" in kept


def test_a_budget_out_of_reach_is_told_after_its_rounds(
    spoilt: Path, run_quantize: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ran = run_quantize(spoilt, tmp_path, precision="int8_weights", budget_agreement=1.0, rounds=1)

    facts = ran.result.facts
    assert facts["budget"]["before"] < facts["agreement"] < 1
    assert facts["budget"]["met"] is False
    assert [one["layer"] for one in facts["returned"]] == ["blocks.1.mlp.fc1"]
    assert "after 1 rounds, budget_agreement asks for 100.0 %" in caplog.text


def test_layers_return_exactly_and_with_all_of_them_back_the_graph_is_the_source(quantized: Any, graph: Path) -> None:
    source = onnx.load(graph / "model.onnx")
    model = onnx.load(quantized.context.output / "model.onnx")
    nodes = [name for group in layers(source.graph, ()).values() for name in group]

    return_to_float(model, source, nodes)

    onnx.checker.check_model(model, full_check=True)
    left = [node for node in model.graph.node if "uantizeLinear" in node.op_type]
    readers = {node.name: node.op_type for node in model.graph.node for one in left if one.output[0] in node.input}
    assert not left, readers
    images = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)
    found, expected = (ReferenceEvaluator(one).run(None, {"images": images})[0] for one in (model, source))
    assert found == pytest.approx(expected, abs=1e-5)


def test_noise_is_told_at_the_end_of_every_part_in_order() -> None:
    noise = [
        {"node": "patch_embed/Conv", "tensor": "a", "snr_db": 40.04},
        {"node": "blocks.0.attn.qkv/MatMul", "tensor": "b", "snr_db": 20.0},
        {"node": "blocks.0/Add_1", "tensor": "c", "snr_db": 31.0},
        {"node": "blocks.10.mlp.fc1/MatMul", "tensor": "d", "snr_db": 25.0},
        {"node": "Gather_0", "tensor": "e", "snr_db": 25.0},
        {"node": "head/Gemm", "tensor": "logits", "snr_db": 22.0},
    ]

    assert list(noise_by_group(noise).items()) == [
        *(("patch_embed", 40.0), ("blocks.0", 31.0), ("blocks.10", 25.0), ("head", 22.0)),
    ]


def test_where_no_tensor_is_lost_the_noisiest_is_named() -> None:
    noise = [{"node": "a", "tensor": "a", "snr_db": 30.0}, {"node": "b", "tensor": "b", "snr_db": 12.0}]

    assert find_break(noise) == noise[1]
    assert find_break([]) is None


@pytest.mark.parametrize(("share", "met"), [(0.97, True), (0.965, True), (0.95, False)])
def test_a_budget_is_judged_again_with_the_rest_of_16_bits(
    share: float, met: bool, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = Chosen(Path("graph.onnx"), Agreement(np.full(100, share), divergence=0.01))
    chosen.facts = {"budget": {"agreement": 0.96, "before": 0.9, "met": True}, "agreement_float32_rest": 0.97}

    _judge_budget_again(QuantizeOptions(precision="int8", rest="float16"), chosen)

    assert chosen.facts["budget"]["met"] is met
    assert ("95.0 % of the select images with its rest in float16 (97.0 %" in caplog.text) is not met
