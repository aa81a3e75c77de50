"""The model repository: its configurations parse as Triton's do and keep to the rules of its documents.

Nothing of it ran in Triton; the model of the Python back end is run with a stand-in for the module that Triton brings.
"""

import importlib.util
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from targets.bundle.manifest import BundleManifest, Tensor
from targets.bundle.pixels import read_image
from targets.bundle.triton.config import Served, served_config
from targets.bundle.triton.export import Exported, export_triton
from targets.errors import InputError, StoreError
from targets.preprocess import normalise, resize_and_crop
from tests.targets.bundle.classifier import PREPROCESS
from tests.targets.bundle.triton_schema import parse_config

Make = Callable[..., Path]
NAMES = ("tiny", "tiny_pixels", "tiny_from_image")


def export(bundle: Path, output: Path, **options: Any) -> Exported:
    manifest = BundleManifest.model_validate_json((bundle / "manifest.json").read_bytes())
    return export_triton(bundle, output, manifest=manifest, **{"max_batch": None, **options})


def configs(repository: Path) -> list[Any]:
    return [parse_config((repository / name / "config.pbtxt").read_text()) for name in NAMES]


def test_a_repository_has_a_folder_a_version_and_a_configuration_for_each_model(make_bundle: Make, tmp_path) -> None:
    export(make_bundle(), tmp_path / "models")
    found = {
        one.relative_to(tmp_path / "models").as_posix() for one in (tmp_path / "models").rglob("*") if one.is_file()
    }

    assert found == {
        "README.md",
        "vitrim.json",
        "tiny/config.pbtxt",
        "tiny/labels.txt",
        "tiny/1/model.onnx",
        "tiny_pixels/config.pbtxt",
        "tiny_pixels/1/model.py",
        "tiny_pixels/1/pixels.py",
        "tiny_pixels/1/settings.json",
        "tiny_from_image/config.pbtxt",
    }
    assert (tmp_path / "models" / "tiny_from_image" / "1").is_dir(), "an ensemble has a version too, which is empty"
    assert (tmp_path / "models" / "tiny" / "labels.txt").read_text() == "red\ngreen\nblue\n"


def test_a_graph_of_any_batch_lets_triton_put_requests_together(make_bundle: Make, tmp_path) -> None:
    export(make_bundle(), tmp_path / "models")
    model, pixels, ensemble = configs(tmp_path / "models")

    assert [one.max_batch_size for one in (model, pixels, ensemble)] == [8, 8, 8]
    assert model.backend == "onnxruntime"
    assert (list(model.input[0].dims), list(model.output[0].dims)) == ([3, 8, 8], [3])
    assert model.HasField("dynamic_batching")
    assert model.output[0].label_filename == "labels.txt"
    assert (model.version_policy.latest.num_versions, model.instance_group[0].kind) == (1, 2)
    assert (list(pixels.input[0].dims), list(pixels.output[0].dims)) == ([1], [3, 8, 8])
    assert pixels.backend == "python"


def test_an_engine_of_a_fixed_batch_says_all_its_dimensions(make_bundle: Make, tmp_path) -> None:
    export(make_bundle(runtime="openvino", batch=2), tmp_path / "models")
    model, pixels, ensemble = configs(tmp_path / "models")

    assert [one.max_batch_size for one in (model, pixels, ensemble)] == [0, 0, 0]
    assert (list(model.input[0].dims), list(model.output[0].dims)) == ([2, 3, 8, 8], [2, 3])
    assert not model.HasField("dynamic_batching")
    assert (list(pixels.input[0].dims), list(ensemble.output[0].dims)) == ([2], [2, 3])


def test_the_ensemble_leads_from_image_to_answer(make_bundle: Make, tmp_path) -> None:
    export(make_bundle(), tmp_path / "models")
    model, pixels, ensemble = configs(tmp_path / "models")
    first, second = ensemble.ensemble_scheduling.step

    assert (ensemble.platform, ensemble.backend) == ("ensemble", "")
    assert (first.model_name, second.model_name) == (pixels.name, model.name)
    assert dict(first.input_map) == {pixels.input[0].name: ensemble.input[0].name}
    assert set(first.output_map) == {pixels.output[0].name} == {model.input[0].name}
    assert dict(second.input_map) == {model.input[0].name: first.output_map[pixels.output[0].name]}
    assert dict(second.output_map) == {model.output[0].name: ensemble.output[0].name}
    assert pixels.output[0].data_type == model.input[0].data_type
    assert not ensemble.instance_group, "an ensemble has no instances"


@pytest.mark.parametrize(
    ("runtime", "backend", "file", "kind"),
    [
        ("onnxruntime", "onnxruntime", "model.onnx", 2),
        ("onnxruntime_cuda", "onnxruntime", "model.onnx", 1),
        ("onnxruntime_tensorrt", "onnxruntime", "model.onnx", 1),
        ("tensorrt", "tensorrt", "model.plan", 1),
        ("tensorrt_rtx", "onnxruntime", "model.onnx", 2),
        ("openvino", "openvino", "model.xml", 2),
    ],
)
def test_each_runtime_has_its_back_end(make_bundle: Make, tmp_path, runtime, backend, file, kind) -> None:
    export(make_bundle(runtime=runtime), tmp_path / "models")
    model, *_ = configs(tmp_path / "models")

    assert (model.backend, model.instance_group[0].kind) == (backend, kind)
    assert (tmp_path / "models" / "tiny" / "1" / file).is_file()


def test_a_runtime_without_a_back_end_says_what_runs_in_its_place(make_bundle: Make, tmp_path) -> None:
    made = export(make_bundle(runtime="tensorrt_rtx"), tmp_path / "models")

    assert made.notes == (
        "It holds model.onnx for ONNX Runtime in the place of tensorrt_rtx: Triton has no back end for it.",
    )


def test_a_plan_records_cuda_graphs_and_keeps_to_the_batches_it_was_built_for(make_bundle: Make, tmp_path) -> None:
    bundle = make_bundle(runtime="tensorrt", batch=4, dynamic=True)
    made = export(bundle, tmp_path / "models")
    model, *_ = configs(tmp_path / "models")

    assert (made.max_batch_size, model.optimization.cuda.graphs) == (4, True)
    with pytest.raises(InputError, match=r"--max-batch 5 is more than the 4 that the engine was built for"):
        export(bundle, tmp_path / "more", max_batch=5)
    assert export(bundle, tmp_path / "fewer", max_batch=2).max_batch_size == 2


def test_onnx_runtime_s_tensorrt_is_asked_for_the_precision_of_the_graph(make_bundle: Make, tmp_path) -> None:
    export(
        make_bundle(without_engine=True, planned={"runtime": "onnxruntime_tensorrt", "precision": "int8", "batch": 1}),
        tmp_path / "models",
    )
    (accelerator,) = configs(tmp_path / "models")[0].optimization.execution_accelerators.gpu_execution_accelerator

    assert (accelerator.name, dict(accelerator.parameters)) == ("tensorrt", {"precision_mode": "INT8"})


def test_openvino_is_told_what_the_engine_was_measured_with(make_bundle: Make, tmp_path) -> None:
    made = export(make_bundle(runtime="openvino"), tmp_path / "models")
    model, *_ = configs(tmp_path / "models")

    assert {key: value.string_value for key, value in model.parameters.items()} == {
        "TARGET_DEVICE": "CPU",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": "1",
    }
    assert any("bf16" in note for note in made.notes)


def test_openvino_s_graph_of_any_batch_is_padded(make_bundle: Make, tmp_path) -> None:
    export(make_bundle(runtime="openvino"), tmp_path / "models", engine=False, max_batch=4)
    model, *_ = configs(tmp_path / "models")

    assert (model.default_model_filename, model.max_batch_size) == ("model.onnx", 4)
    assert model.parameters["ENABLE_BATCH_PADDING"].string_value == "YES"


def test_a_batch_of_one_is_not_put_together(make_bundle: Make, tmp_path) -> None:
    export(make_bundle(), tmp_path / "models", max_batch=1)
    model, *_ = configs(tmp_path / "models")

    assert (model.max_batch_size, model.HasField("dynamic_batching")) == (1, False)


@pytest.mark.parametrize("most", [0, -1, 65_537])
def test_a_batch_that_no_model_has_is_refused(make_bundle: Make, tmp_path, most) -> None:
    with pytest.raises(InputError, match=rf"--max-batch is a whole number from 1 to 65,536, got {most}"):
        export(make_bundle(), tmp_path / "models", max_batch=most)
    assert not (tmp_path / "models").exists()


def test_a_fixed_batch_cannot_be_made_larger(make_bundle: Make, tmp_path) -> None:
    with pytest.raises(InputError, match=r"needs a model of any batch, this one is of 2; try --without-engine"):
        export(make_bundle(runtime="openvino", batch=2), tmp_path / "models", max_batch=8)


def test_a_model_without_head_has_no_labels(make_bundle: Make, tmp_path) -> None:
    export(make_bundle(classes=0, labels=None, output="features"), tmp_path / "models")

    assert not (tmp_path / "models" / "tiny" / "labels.txt").exists()
    assert configs(tmp_path / "models")[0].output[0].label_filename == ""


def test_a_label_of_several_lines_stays_one_label(make_bundle: Make, tmp_path) -> None:
    export(make_bundle(labels=["a\nb", "größe", " c "]), tmp_path / "models")

    assert (tmp_path / "models" / "tiny" / "labels.txt").read_text(encoding="utf-8") == "a b\ngröße\nc\n"


def test_an_older_export_is_replaced_and_nothing_else(make_bundle: Make, tmp_path) -> None:
    bundle = make_bundle()
    export(bundle, tmp_path / "models")
    (tmp_path / "models" / "stale").mkdir()
    export(bundle, tmp_path / "models")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"x")

    assert not (tmp_path / "models" / "stale").exists()
    with pytest.raises(InputError, match=r"holds something that is not a model repository"):
        export(bundle, tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["photo.jpg"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"cannot write the model repository"):
        export(bundle, tmp_path / "file" / "models")


def test_the_same_bundle_gives_the_same_repository(make_bundle: Make, tmp_path) -> None:
    bundle = make_bundle()
    for name in ("a", "b"):
        export(bundle, tmp_path / name)
    first, second = (
        {one.relative_to(tmp_path / name): one.read_bytes() for one in (tmp_path / name).rglob("*") if one.is_file()}
        for name in ("a", "b")
    )

    assert first == second


def test_what_the_documents_of_the_repository_claim_is_only_what_was_done(make_bundle: Make, tmp_path) -> None:
    export(make_bundle(), tmp_path / "models")

    assert "*Not yet run in Triton.*" in (tmp_path / "models" / "README.md").read_text()
    for name in NAMES:
        assert "Not yet run in Triton." in (tmp_path / "models" / name / "config.pbtxt").read_text()


def test_a_type_that_triton_lacks_is_refused() -> None:
    odd = Tensor(name="x", shape=(1, 2), dtype="complex64")
    model = Served(
        name="m", backend="onnxruntime", inputs=[odd], outputs=[odd], answer="x", labelled=False, max_batch=0,
        on_gpu=False,
    )  # fmt: skip

    with pytest.raises(InputError, match=r"'x' is complex64, for which Triton has no type"):
        served_config(model)


@given(name=st.text(min_size=1, max_size=30), value=st.text(max_size=30))
def test_any_name_is_one_text(name: str, value: str) -> None:
    tensor = Tensor(name=name.encode("utf-8", "replace").decode(), shape=(1, 2), dtype="float32")
    value = value.encode("utf-8", "replace").decode()
    model = Served(
        name="m", backend="openvino", inputs=[tensor], outputs=[tensor], answer="", labelled=False, max_batch=0,
        on_gpu=False, parameters={"K": value},
    )  # fmt: skip

    parsed = parse_config(served_config(model))
    assert parsed.input[0].name == tensor.name
    assert parsed.parameters["K"].string_value == value


def test_the_schema_of_these_tests_knows_a_wrong_field() -> None:
    for text in ("max_batchsize: 1", "max_batch_size: one", "instance_group [ { kind: CPU } ]"):
        with pytest.raises(text_format.ParseError):
            parse_config(text)


# The model of the Python back end.


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Triton's Python back end offers its models, as its documents describe it."""
    module = ModuleType("triton_python_backend_utils")

    class TritonError:
        def __init__(self, message: str) -> None:
            self.message = message

    class NamedTensor:
        def __init__(self, name: str, array: np.ndarray) -> None:
            self.name, self.array = name, array

        def as_numpy(self) -> np.ndarray:
            return self.array

    class InferenceResponse:
        def __init__(self, output_tensors: list[Any], error: Any = None) -> None:
            self.output_tensors, self.error = output_tensors, error

    def by_name(request: Any, name: str) -> Any:
        return next(one for one in request.inputs if one.name == name)

    for made in (TritonError, InferenceResponse):
        setattr(module, made.__name__, made)
    module.Tensor = NamedTensor  # type: ignore[attr-defined]
    module.get_input_tensor_by_name = by_name  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


def test_the_python_model_gives_the_pixels_that_vitrim_itself_reads(make_bundle: Make, tmp_path, backend) -> None:
    export(make_bundle(), tmp_path / "models")
    folder = tmp_path / "models" / "tiny_pixels"
    spec = importlib.util.spec_from_file_location("the_model", folder / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.initialize({"model_repository": str(folder), "model_version": "1"})
    files = []
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (11 + 7 * index, 30, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        (tmp_path / f"{index}.png").write_bytes(file.getvalue())
        files.append(file.getvalue())

    def request(*contents: bytes) -> Any:
        array = np.array(contents, dtype=np.object_).reshape(-1, 1)
        return SimpleNamespace(inputs=[sys.modules["triton_python_backend_utils"].Tensor("image", array)])

    good, bad, single = model.execute([request(*files), request(files[0], b"no image"), request(files[1])])

    expected = normalise(
        np.stack([resize_and_crop(read_image(tmp_path / f"{index}.png"), PREPROCESS) for index in range(3)]), PREPROCESS
    )
    assert good.output_tensors[0].name == "pixels"
    assert np.array_equal(good.output_tensors[0].as_numpy(), expected)
    assert good.output_tensors[0].as_numpy().dtype == np.float32
    assert np.array_equal(single.output_tensors[0].as_numpy(), expected[1:2])
    assert bad.output_tensors == []
    assert bad.error.message.startswith("image 1 cannot be read: not one of JPEG")


def test_the_settings_name_the_input_of_the_model(make_bundle: Make, tmp_path) -> None:
    export(make_bundle(), tmp_path / "models")
    settings = json.loads((tmp_path / "models" / "tiny_pixels" / "1" / "settings.json").read_text())
    model, *_ = configs(tmp_path / "models")

    assert (settings["output"], settings["dtype"]) == (model.input[0].name, "float32")
    assert settings["preprocess"] == PREPROCESS.model_dump(mode="json")
