"""The stage as the pipeline runs it: a model in, an int8 graph out that lost less than one that was not trained."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from stages.data.images import ImageSet
from stages.quantize.agreement import compare
from stages.quantize_aware import run as run_module
from stages.quantize_aware.insert import insert_roundings
from stages.quantize_aware.stage import QuantizeAwareOptions
from stages.stage import Role
from stages.training.loop import train
from stages.vit.files import load_model, load_spec, save_model
from stages.vit.spec import ViTSpec
from targets.errors import InputError
from targets.preprocess import Preprocess, normalise
from targets.runtimes.widen import tensor_types
from targets.worker import Worker

pytestmark = pytest.mark.slow

LINEAR = 10  # products with weights: patches, head, and four a block
HARD: dict[str, Any] = {"symmetric": True, "half_range": True, "select_images": None}
"""the fewest bits that a target asks for; without SmoothQuant much is lost"""
LONG = {"images_seen": 3200, "lr": 3e-3}


def zero_points(path: Path) -> list[np.ndarray]:
    graph = onnx.load(path).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return [tensors[node.input[2]] for node in graph.node if node.op_type.endswith("eLinear")]


@pytest.fixture(scope="session")
def trained(run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model trained for symmetric int8 with weights of seven bits, without SmoothQuant."""
    return run(tmp_path_factory.mktemp("trained"), alpha="off", **HARD, **LONG)


@pytest.fixture(scope="session")
def smoothed(run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model hardly trained, by the defaults."""
    return run(tmp_path_factory.mktemp("smoothed"))


def test_training_recovers_part_of_what_quantization_of_the_same_bits_lost(
    trained: Any, run_untrained: Callable[..., Any], tmp_path: Path
) -> None:
    untrained = run_untrained(tmp_path, alphas=("off",), **HARD)
    lost = 1 - untrained.result.facts["agreement"]
    left = 1 - trained.result.facts["agreement"]

    assert lost > 0.03
    assert left < 0.8 * lost
    assert trained.result.facts["divergence"] < untrained.result.facts["divergence"]
    assert trained.result.facts["kept"] == "trained"
    assert trained.result.facts["untrained"]["agreement"] < trained.result.facts["agreement"]


def test_the_agreement_told_is_that_of_the_graph_in_the_runtime(
    trained: Any, model: Path, digits: dict[Role, ImageSet], spec: ViTSpec
) -> None:
    pixels = digits[Role.SELECT].uint8(spec.preprocess)
    with torch.no_grad():
        right = load_model(model)(torch.from_numpy(normalise(pixels, spec.preprocess))).numpy()
    with Worker(threads=1) as worker:
        worker.load(trained.graph, runtime="onnxruntime", precision="int8")
        got = worker.infer(pixels, batch=16, preprocess=spec.preprocess)

    assert trained.result.facts["select_images"] == len(pixels)
    assert trained.result.facts["agreement"] == pytest.approx(compare({"logits": right}, got).share, abs=0.005)


@pytest.mark.parametrize("name", ["trained", "smoothed"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_runtimes_multiply_in_int8(name: str, runtime: str, request: pytest.FixtureRequest) -> None:
    with Worker(threads=1) as worker:
        worker.load(request.getfixturevalue(name).graph, runtime=runtime, precision="int8", batch=4)
        products = worker.matrix_products()

    # The patch embedding may run in another form; for TensorRT it stays in float, and so does attention.
    least, most_in_float = (LINEAR - 2, 6) if name == "trained" else (LINEAR - 1, 4)
    assert products["int8"] >= least
    assert products.get("fp32", 0) <= most_in_float


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_graph_computes_what_the_model_computed_while_it_was_trained(
    symmetric: bool, model: Path, digits: dict[Role, ImageSet], spec: ViTSpec, tmp_path: Path
) -> None:
    # Pixels that are never negative are what NNCF quantizes without a sign, which TensorRT does not read.
    positive = Preprocess(height=16, width=16, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    images = torch.from_numpy(normalise(digits[Role.SELECT].uint8(spec.preprocess)[:32], positive))
    vit, options = load_model(model), QuantizeAwareOptions(symmetric=symmetric)
    run_module.fold_layer_scale(vit)
    rounded = insert_roundings(vit, list(images[:16].split(1)), options, outputs=("logits",))
    with torch.no_grad():
        expected = rounded.outputs(images, ["logits"])["logits"].numpy()
    run_module._write(rounded, tmp_path, images[:1], ("logits",), options)

    (found,) = ReferenceEvaluator(str(tmp_path / "model.onnx")).run(["logits"], {"images": images.numpy()})
    error = np.abs(found - expected)
    assert np.median(error) < 1e-4 * np.abs(expected).max()  # a sum in another order turns a code here and there
    assert error.max() < 0.2 * np.abs(expected).max()
    zeros = zero_points(tmp_path / "model.onnx")
    assert {zero.dtype for zero in zeros} == {np.dtype(np.int8)}
    assert any(zero.any() for zero in zeros) is not symmetric


def test_a_symmetric_graph_has_zero_points_at_zero_and_half_range_weights_of_seven_bits(trained: Any) -> None:
    graph = onnx.load(trained.graph).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantizers = [node for node in graph.node if node.op_type.endswith("eLinear")]
    weights = [tensors[node.input[0]] for node in quantizers if node.input[0] in tensors]

    assert all(zero.dtype == np.int8 and not zero.any() for zero in zero_points(trained.graph))
    assert len(weights) == LINEAR - 1  # the patch embedding stays in float, as in a graph that was not trained
    assert all(weight.dtype == np.int8 and 32 < np.abs(weight.astype(int)).max() <= 63 for weight in weights)
    assert trained.result.facts["symmetric"] is trained.result.facts["half_range"] is True


def test_trained_for_tensorrt_the_same_products_are_quantized_as_in_a_graph_that_was_not(
    trained: Any, run_untrained: Callable[..., Any], tmp_path: Path
) -> None:
    untrained = run_untrained(tmp_path, alphas=("off",), **HARD)

    assert trained.result.facts["products"] == untrained.result.facts["products"]
    assert trained.result.facts["products"] == {"int8": LINEAR - 1, "all": LINEAR + 4}


def test_the_graph_is_named_like_others_and_holds_nothing_of_this_machine(smoothed: Any, root: Path) -> None:
    content = smoothed.graph.read_bytes()
    names = {node.name for node in onnx.load(smoothed.graph).graph.node}
    tensors = {tensor.name for tensor in onnx.load(smoothed.graph).graph.initializer}

    assert {"blocks.1.mlp.fc2/MatMul", "blocks.0.attn.qkv/QuantizeLinear"} <= names
    assert {"blocks.1.mlp.fc2.weight", "blocks.1.mlp.fc2.weight_scale", "blocks.0.attn.qkv.input_scale"} <= tensors
    for leak in (str(root), str(smoothed.context.output), "site-packages", "nncf", "pkg.torch"):
        assert leak.encode() not in content
    assert {file.name for file in smoothed.context.output.iterdir()} == {"model.onnx", "vit.json", "labels.json"}
    assert onnx.load(smoothed.graph).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert smoothed.result.facts["bytes"]["after"] < 0.7 * smoothed.result.facts["bytes"]["before"]
    assert smoothed.result.facts["products"] == {"int8": LINEAR + 2, "all": LINEAR + 4}


def test_the_same_images_give_the_same_bytes_also_after_an_interruption(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(run_module, "train", partial(train, checkpoint_seconds=0.0))

    def interrupt(message: str, share: float | None) -> None:
        if message.startswith("training") and (share or 0) > 0.5:
            raise KeyboardInterrupt

    options = {"images_seen": 640, "lr": 1e-3}
    expected = run(tmp_path / "undisturbed", **options)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", tell=interrupt, **options)
    assert not list((tmp_path / "killed" / "output").iterdir())
    assert list((tmp_path / "killed" / "scratch").glob("step-*.json"))
    resumed = run(tmp_path / "killed", **options)
    torch.set_num_threads(threads)

    made = [one.context.scratch / "trained" / "model.onnx" for one in (resumed, expected)]
    assert (
        made[0].read_bytes() == made[1].read_bytes() != (made[1].parents[1] / "untrained" / "model.onnx").read_bytes()
    )
    assert resumed.graph.read_bytes() == expected.graph.read_bytes()
    curves = [one.result.facts["loss_curve"] for one in (resumed, expected)]
    assert curves[0] == curves[1]


def test_a_training_that_only_harms_is_given_back_untrained_with_a_warning(
    run: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ran = run(tmp_path, lr=3.0, images_seen=320)

    assert ran.result.facts["kept"] == "untrained"
    assert ran.result.facts["agreement"] == ran.result.facts["untrained"]["agreement"]
    assert ran.graph.read_bytes() == (ran.context.scratch / "untrained" / "model.onnx").read_bytes()
    assert "the untrained graph is kept" in caplog.text


def test_no_runtime_and_no_telemetry_is_loaded_into_the_process_of_torch(
    smoothed: Any, root: Path, tmp_path: Path
) -> None:
    """In a process of its own: other tests load runtimes into this one."""
    code = f"""
import subprocess
import sys
from pathlib import Path
from stages.data.images import open_images
from stages.data.source import DataSource
from stages.quantize_aware.stage import QuantizeAwareOptions, quantize_aware
from stages.stage import Role, StageContext
model, place = Path({str(smoothed.context.input)!r}), Path({str(tmp_path)!r})
shares = {{Role.FIT: (0, 0.1), Role.TRAIN: (0.1, 0.2), Role.SELECT: (0.5, 0.6)}}
images = {{
    role: open_images(DataSource.model_validate(dict(dataset="digits", share=share)), role, index_cache=None)
    for role, share in shares.items()
}}
for name in ("output", "scratch"):
    (place / name).mkdir()
context = StageContext(
    input=model, source=model, output=place / "output", scratch=place / "scratch", images=images
)
quantize_aware(QuantizeAwareOptions(images_seen=32, batch_size=16, alpha="off", images=16), context)
print([name for name in ("onnxruntime", "openvino", "openvino_telemetry") if sys.modules.get(name) is not None])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)

    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_what_is_not_quantized_is_fp16_where_it_is_asked_for(run: Callable[..., Any], tmp_path: Path) -> None:
    ran = run(tmp_path, symmetric=True, rest="float16", images_seen=32)

    made = onnx.load(ran.graph)
    onnx.checker.check_model(made, full_check=True)
    types = tensor_types(made)
    products = [node for node in made.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert {types[name] for node in products for name in node.input[:2]} == {onnx.TensorProto.FLOAT16}
    assert {one.type.tensor_type.elem_type for one in (*made.graph.input, *made.graph.output)} == {
        onnx.TensorProto.FLOAT
    }
    facts = ran.result.facts
    assert (facts["rest"], facts["rest_kept_float"]) == ("float16", [])
    assert facts["judged"].startswith("emulation that rounds to float16")
    assert facts["products"]["int8"] > 0
    assert facts["agreement"] > facts[facts["kept"]]["agreement"] - 0.1


def test_models_that_merge_tokens_are_refused(run: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "merging", load_spec(model).replace(merge=(2, 2)), load_model(model).state_dict())

    with pytest.raises(InputError, match=r"does not train models that merge tokens.*use quantize instead"):
        run(tmp_path, model=tmp_path / "merging")


def test_roles_without_images_are_refused(
    run: Callable[..., Any], digits: dict[Role, ImageSet], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="reads images of train, which holds none"):
        run(tmp_path, images={**digits, Role.TRAIN: digits[Role.TRAIN].subset([])})
