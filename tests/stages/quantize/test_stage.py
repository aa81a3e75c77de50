"""The stage as the pipeline runs it: a graph in, the best of several int8 graphs out."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from stages.data.images import ImageSet
from stages.quantize.agreement import compare
from stages.quantize.calibrate import Job, make_signed
from stages.quantize.graph import count_quantized, read_graph
from stages.stage import Role
from stages.vit.spec import ViTSpec
from targets.preprocess import Preprocess, normalise
from targets.worker import Worker

pytestmark = pytest.mark.slow  # one calibration is 3 to 10 s, most of it imports

LINEAR = ["patch_embed.proj", "head"] + [
    f"blocks.{block}.{layer}" for block in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
]


def initializers(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def answers(path: Path, images: ImageSet, spec: ViTSpec, precision: str) -> dict[str, Any]:
    with Worker(threads=1) as worker:
        worker.load(path, runtime="onnxruntime", precision=precision)
        return worker.infer(images.uint8(spec.preprocess), batch=16, preprocess=spec.preprocess)


def test_alpha_is_chosen_by_agreement_with_fp32_on_select(quantized: Any, graph: Path, spec: ViTSpec) -> None:
    facts, scratch = quantized.result.facts, quantized.context.scratch
    select = quantized.context.images[Role.SELECT]
    told = {one["alpha"]: one for one in facts["candidates"]}

    chosen = compare(
        answers(graph / "model.onnx", select, spec, "fp32"),
        answers(scratch / f"alpha_{facts['alpha']}.onnx", select, spec, "int8"),
    )

    assert list(told) == ["off", 0.5, 0.95]
    assert facts["select_images"] == 256 < len(select) == 512
    assert facts["agreement"] == told[facts["alpha"]]["agreement"] == pytest.approx(chosen.share, abs=0.04)
    assert facts["alpha"] != "off"
    assert told["off"]["agreement"] < facts["agreement"] - 0.05
    assert (quantized.context.output / "model.onnx").read_bytes() == (
        scratch / f"alpha_{facts['alpha']}.onnx"
    ).read_bytes()


def test_on_images_it_never_saw_the_graph_is_better_than_one_by_naive_settings(
    quantized: Any, graph: Path, spec: ViTSpec, make_pictures: Callable[..., ImageSet]
) -> None:
    unseen = make_pictures(Role.EVALUATE, 400, seed=77)
    right = answers(graph / "model.onnx", unseen, spec, "fp32")

    chosen = compare(right, answers(quantized.context.output / "model.onnx", unseen, spec, "int8"))
    naive = compare(right, answers(quantized.context.scratch / "alpha_off.onnx", unseen, spec, "int8"))

    assert chosen.share > 0.9
    assert chosen.share > naive.share + 0.03
    assert chosen.divergence < naive.divergence / 2


def test_every_layer_with_weights_is_int8_per_channel_and_the_file_is_smaller(quantized: Any, graph: Path) -> None:
    found = read_graph(quantized.context.output / "model.onnx")
    tensors = initializers(found)

    for layer in LINEAR:
        weight = tensors[f"q_output_{layer}.weight_1"]
        scales = tensors[f"scale_{layer}.weight_1"]
        assert weight.dtype == np.int8, layer
        assert len(set(scales.tolist())) > len(scales) / 2 > 1, layer
    int8, products = count_quantized(found)
    assert (int8, products) == (len(LINEAR) + 2, len(LINEAR) + 4)  # query x key too, softmax x value not
    facts = quantized.result.facts
    assert facts["products"] == {"int8": int8, "all": products}
    assert facts["bytes"]["after"] < 0.65 * facts["bytes"]["before"]
    assert facts["bytes"]["after"] == (quantized.context.output / "model.onnx").stat().st_size


def test_ranges_hold_every_value_of_every_calibration_image(quantized: Any, spec: ViTSpec) -> None:
    job = Job.model_validate_json((quantized.context.scratch / "alpha_off.json").read_bytes())
    seen = normalise(np.load(job.pixels), spec.preprocess)
    tensors = initializers(read_graph(quantized.context.scratch / "alpha_off.onnx"))
    scale, zero = (float(tensors[f"{kind}_images_1"]) for kind in ("scale", "zero_point"))

    assert (-128 - zero) * scale <= seen.min() + scale
    assert (127 - zero) * scale >= seen.max() - scale
    assert seen.max(axis=(1, 2, 3)).mean() < seen.max() - 3 * scale  # a mean of ranges would not


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_runtimes_multiply_in_int8(quantized: Any, runtime: str, batch: int) -> None:
    with Worker(threads=1) as worker:
        worker.load(quantized.context.output / "model.onnx", runtime=runtime, precision="int8", batch=batch)
        products = worker.matrix_products()

    assert products["int8"] >= len(LINEAR) - 1  # the patch embedding may run in another form
    assert products.get("fp32", 0) <= 4


def test_spec_and_labels_go_with_the_graph_and_nothing_of_this_machine(quantized: Any, graph: Path, root: Path) -> None:
    output = quantized.context.output
    content = (output / "model.onnx").read_bytes()

    assert {file.name for file in output.iterdir()} == {"model.onnx", "vit.json", "labels.json"}
    for name in ("vit.json", "labels.json"):
        assert (output / name).read_bytes() == (graph / name).read_bytes()
    for leak in (str(root), str(output), str(Path.home()), "site-packages"):
        assert leak.encode() not in content
    onnx.checker.check_model(str(output / "model.onnx"), full_check=True)
    assert onnx.load(output / "model.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_progress_is_told_and_never_goes_back(quantized: Any) -> None:
    shares = [share for _, share in quantized.told if share is not None]
    messages = [message for message, _ in quantized.told]

    assert shares == sorted(shares)
    assert len(set(shares)) > 3
    assert 0 <= shares[0] <= shares[-1] < 1
    assert messages[0] == "reading images"
    assert messages[-4:] == [
        *("comparing alpha off", "comparing alpha 0.5", "comparing alpha 0.95", "signal and noise"),
    ]
    assert quantized.result.facts["images"] == 48


def test_the_same_images_give_the_same_bytes(
    quantized: Any, graph: Path, run_quantize: Callable[..., Any], tmp_path: Path
) -> None:
    again = run_quantize(graph, tmp_path, alphas=(0.5,), images=48)

    assert (again.context.output / "model.onnx").read_bytes() == (
        quantized.context.scratch / "alpha_0.5.onnx"
    ).read_bytes()


def test_what_an_interrupted_run_had_finished_is_taken_over(
    quantized: Any, graph: Path, run_quantize: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    finished = (quantized.context.scratch / "alpha_0.5.onnx").read_bytes()
    (tmp_path / "scratch" / "alpha_0.5.onnx").write_bytes(finished)

    found = run_quantize(graph, tmp_path, alphas=(0.5,), images=48)

    assert found.result.facts["candidates"][0]["seconds"] == 0
    assert not (tmp_path / "scratch" / "alpha_0.5.json").exists()  # no calibration was started
    assert (found.context.output / "model.onnx").read_bytes() == finished


def test_what_is_quantized_without_a_sign_gets_one_for_tensorrt() -> None:
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 4])
    answer = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["logits"], name="dq"),
    ]
    weights = [
        numpy_helper.from_array(np.asarray(one), name) for one, name in ((np.float32(0.01), "s"), (np.uint8(0), "z"))
    ]
    graph = helper.make_graph(nodes, "unsigned", [image], [answer], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    make_signed(model)

    onnx.checker.check_model(model, full_check=True)
    tensors = initializers(model.graph)
    assert (tensors["z"].dtype, int(tensors["z"])) == (np.int8, 0)
    images = np.array([[0.0, 0.5, 1.0, 2.55]], np.float32)  # the whole range that 0 to 255 had
    assert ReferenceEvaluator(model).run(None, {"images": images})[0] == pytest.approx(images, abs=0.0101)


def exact_agreement(one: Path, other: Path, spec: ViTSpec) -> float:
    """How often two graphs give the same class by ONNX's own arithmetic in numpy, whatever this processor does."""
    pixels = np.random.default_rng(3).uniform(0, 255, (64, 1, 1, 3)) + np.zeros((64, 16, 16, 3))
    images = normalise(pixels.astype(np.uint8), spec.preprocess)
    found = [
        ReferenceEvaluator(str(path)).run(["logits"], {"images": images})[0].argmax(axis=1) for path in (one, other)
    ]
    return float((found[0] == found[1]).mean())


def test_a_symmetric_graph_has_only_signed_zero_points_at_zero_and_layers_can_stay_in_float(
    write_graph: Callable[..., Path],
    run_quantize: Callable[..., Any],
    tmp_path: Path,
    spec: ViTSpec,
    int8_saturates: bool,
) -> None:
    positive = spec.replace(preprocess=Preprocess(height=16, width=16, mean=(0, 0, 0), std=(1, 1, 1)))
    graph = write_graph(tmp_path, spec=positive)

    ran = run_quantize(graph, tmp_path, alphas=(0.95,), symmetric=True, keep_float=("head/*",))

    found = read_graph(ran.context.output / "model.onnx")
    tensors = initializers(found)
    zeros = [tensors[node.input[2]] for node in found.node if node.op_type.endswith("eLinear")]
    assert zeros
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    assert count_quantized(found)[0] == len(LINEAR) - 2  # neither the patch embedding
    assert "head.weight" in tensors
    assert ran.result.facts["symmetric"] is True
    assert exact_agreement(graph / "model.onnx", ran.context.output / "model.onnx", positive) > 0.8
    if not int8_saturates:
        assert ran.result.facts["agreement"] > 0.8
    with Worker(threads=1) as worker:
        worker.load(ran.context.output / "model.onnx", runtime="onnxruntime", precision="int8", batch=1)
        assert worker.matrix_products()["int8"] >= len(LINEAR) - 2


@pytest.mark.parametrize("symmetric", [False, True])
def test_what_merges_tokens_stays_fp32_and_the_answers_those_of_the_runtime(
    symmetric: bool, write_graph: Callable[..., Path], run_quantize: Callable[..., Any], tmp_path: Path, spec: ViTSpec
) -> None:
    small = spec.replace(preprocess=Preprocess(height=32, width=32, interpolation="bilinear"), merge=(5, 3))
    graph = write_graph(tmp_path, spec=small)

    ran = run_quantize(graph, tmp_path, alphas=(0.95,), symmetric=symmetric)

    found = read_graph(ran.context.output / "model.onnx")
    made_by = {output: node for node in found.node for output in node.output}
    merging = [node for node in found.node if "/merge/" in node.name or ".merge/" in node.name]
    products = [node for node in merging if node.op_type == "MatMul"]
    assert len(products) == 2 * 4  # likeness, ranks, tokens, sizes
    assert not [node for node in merging if node.op_type.endswith("eLinear")]
    assert not [
        name for node in products for name in node.input if name in made_by and "Linear" in made_by[name].op_type
    ]
    assert ran.result.facts["agreement"] > 0.8
    assert ran.result.facts["products"]["int8"] >= len(LINEAR) - symmetric  # then without the patch embedding
    images, found_answers = ran.context.images[Role.SELECT], {}
    for runtime in ("onnxruntime", "openvino"):
        with Worker(threads=1) as worker:
            worker.load(ran.context.output / "model.onnx", runtime=runtime, precision="int8", batch=4)
            answered = worker.infer(images.uint8(small.preprocess), batch=4, preprocess=small.preprocess)
            found_answers[runtime] = answered["logits"].argmax(axis=1)
    same = (found_answers["onnxruntime"] == found_answers["openvino"]).mean()
    assert same > 0.9


def test_a_graph_whose_answers_are_lost_is_kept_with_a_warning(
    quantized: Any, graph: Path, run_quantize: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = onnx.load(quantized.context.scratch / "alpha_0.5.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(1000 * np.arange(bias.dims[0], dtype=np.float32), bias.name))
    (tmp_path / "scratch").mkdir()
    onnx.save(model, tmp_path / "scratch" / "alpha_0.5.onnx")

    found = run_quantize(graph, tmp_path, alphas=(0.5,))

    assert found.result.facts["collapsed"] is True
    assert "int8 collapsed: the best of 1 candidates agrees" in caplog.text


@pytest.mark.parametrize("absent", ["onnxruntime", "openvino", "nncf"])
def test_no_runtime_is_loaded_into_the_process_of_torch(
    absent: str,
    quantized: Any,
    graph: Path,
    run_quantize: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)  # importing it here fails; processes it starts have their own
    (tmp_path / "scratch").mkdir()
    finished = quantized.context.scratch / "alpha_0.5.onnx"
    (tmp_path / "scratch" / "alpha_0.5.onnx").write_bytes(finished.read_bytes())

    assert run_quantize(graph, tmp_path, alphas=(0.5,)).result.facts["agreement"] > 0.5
