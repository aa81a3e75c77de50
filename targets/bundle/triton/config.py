"""config.pbtxt of each model: what Triton's documents say of batches, shapes and back ends, and of nothing else.

`max_batch_size` above 0 is for models whose tensors all leave their first dimension open; `dims` then begin after it,
and Triton may put requests together. A model of a fixed batch has 0, and `dims` say all: each request brings that
batch. Fields and rules: model_config.proto and docs/user_guide/model_configuration.md of Triton, and the pages of its
back ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from targets.bundle.manifest import Tensor
from targets.bundle.triton.text import Word, entries, to_text
from targets.errors import InputError

TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float64": "TYPE_FP64",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}
LABELS = "labels.txt"
IMAGE = "image"
"""the input of encoded image files"""
_PIXELS = "pixels"
"""the tensor between the steps of the ensemble"""
_NOTE = "# Written by vitrim from a bundle. Not yet run in Triton.\n"


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model that one of Triton's back ends runs."""

    name: str
    backend: str
    """onnxruntime, tensorrt, openvino"""
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    answer: str
    """name of the output that answers"""
    labelled: bool
    """whether labels.txt names its classes"""
    max_batch: int
    """images that Triton may put together; 0: the batch is fixed, or Triton is to leave it alone"""
    on_gpu: bool
    file: str = ""
    """name of the model's file, where it is not the back end's own"""
    parameters: Mapping[str, str] = field(default_factory=dict)
    optimization: Mapping[str, Any] = field(default_factory=dict)

    @property
    def batched(self) -> bool:
        """Whether `dims` begin after the batch."""
        return self.max_batch > 0


def leaves_batch_open(tensors: Sequence[Tensor]) -> bool:
    """Whether the first dimension of all tensors is open, as Triton's own batches need it."""
    return all(one.shape and one.shape[0] is None for one in tensors)


def served_config(model: Served) -> str:
    """The model's own config.pbtxt."""
    message: dict[str, Any] = {"name": model.name, "backend": model.backend}
    if model.file:
        message["default_model_filename"] = model.file
    message["max_batch_size"] = model.max_batch
    message["input"] = [_tensor(one, model) for one in model.inputs]
    message["output"] = [
        {**_tensor(one, model), **({"label_filename": LABELS} if model.labelled and one.name == model.answer else {})}
        for one in model.outputs
    ]
    message["version_policy"] = {"latest": {"num_versions": 1}}
    message["instance_group"] = [{"count": 1, "kind": Word("KIND_GPU" if model.on_gpu else "KIND_CPU")}]
    if model.max_batch > 1:
        message["dynamic_batching"] = {}
    if model.optimization:
        message["optimization"] = model.optimization
    if model.parameters:
        message["parameters"] = entries({key: {"string_value": value} for key, value in model.parameters.items()})
    return _NOTE + to_text(message)


def pixels_config(model: Served, name: str) -> str:
    """Of the Python back end's model that turns encoded images into the input of `model`."""
    (entry,) = model.inputs
    message = {
        "name": name,
        "backend": "python",
        "max_batch_size": model.max_batch,
        "input": [_image(model)],
        "output": [_tensor(entry, model)],
        "version_policy": {"latest": {"num_versions": 1}},
        "instance_group": [{"count": 1, "kind": Word("KIND_CPU")}],
    }
    return _NOTE + to_text(message)


def ensemble_config(model: Served, name: str, pixels: str) -> str:
    """Of the ensemble: encoded image, pixels, answer."""
    (entry,) = model.inputs
    (answer,) = (one for one in model.outputs if one.name == model.answer)
    message = {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": model.max_batch,
        "input": [_image(model)],
        "output": [_tensor(answer, model)],
        "version_policy": {"latest": {"num_versions": 1}},
        "ensemble_scheduling": {
            "step": [
                _step(pixels, {IMAGE: IMAGE}, {entry.name: _PIXELS}),
                _step(model.name, {entry.name: _PIXELS}, {answer.name: answer.name}),
            ]
        },
    }
    return _NOTE + to_text(message)


def _tensor(one: Tensor, model: Served) -> dict[str, Any]:
    if one.dtype not in TYPES:
        raise InputError(f"tensor {one.name!r} is {one.dtype}, for which Triton has no type; export the model in fp32")
    shape = one.shape[1:] if model.batched else one.shape
    return {
        "name": one.name,
        "data_type": Word(TYPES[one.dtype]),
        "dims": [-1 if size is None else size for size in shape],
    }


def _image(model: Served) -> dict[str, Any]:
    """Encoded image files, one for each image of the batch."""
    batch = model.inputs[0].shape[0]
    dims = 1 if model.batched else -1 if batch is None else batch
    return {"name": IMAGE, "data_type": Word("TYPE_STRING"), "dims": [dims]}


def _step(name: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, Any]:
    return {"model_name": name, "model_version": -1, "input_map": entries(inputs), "output_map": entries(outputs)}
