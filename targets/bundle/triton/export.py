"""Write the model repository: the bundle's engine or graph, a model that reads images, and an ensemble of the two."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import targets.bundle
from targets.bundle.archive import slug
from targets.bundle.manifest import BundleManifest, Tensor
from targets.bundle.package import refuse_inside
from targets.bundle.triton.config import (
    LABELS,
    Served,
    ensemble_config,
    leaves_batch_open,
    pixels_config,
    served_config,
)
from targets.bundle.triton.text import entries
from targets.bundle.write import external_data, in_place_of, json_text, onnx_facts
from targets.errors import InputError
from targets.record import Record
from targets.runtimes.engine import read_engine
from targets.runtimes.intel.options import CPU, DEVICES
from targets.runtimes.nvidia.options import ORT_CUDA, ORT_TENSORRT, TENSORRT

FORMAT = "vitrim.triton/1"
MARK = "vitrim.json"
"""says that a folder is such an export; Triton looks at folders only"""
DEFAULT_MAX_BATCH = 8
_VERSION = "1"
_MOST_BATCH = 65_536
_PRECISION_MODES = {"fp16": "FP16", "bf16": "BF16", "int8": "INT8"}
_README = """\
# {name} for Triton

A model repository of NVIDIA's Triton Inference Server, written by vitrim from a bundle. *Not yet run in Triton.*

| model | takes | answers |
|---|---|---|
| `{name}` | `{input}`: {shape}, {dtype}, preprocessed | `{answer}` |
| `{pixels}` | `image`: encoded files (JPEG, PNG, ...) | `{input}` |
| `{ensemble}` | `image`: encoded files | `{answer}` |

Batch: {batch}.

{notes}

```sh
tritonserver --model-repository={here}      # inside Triton's container, with this folder mounted there
```

`{pixels}` needs `pip install numpy pillow` in that container; it runs `pixels.py` of the bundle, bit for bit what the
model was calibrated and evaluated with. Without the Python back end, remove `{pixels}` and `{ensemble}`, and
preprocess as `{pixels}/1/settings.json` says.

```python
# pip install tritonclient[http]
import numpy as np
import tritonclient.http as triton

image = triton.InferInput("image", {image_shape}, "BYTES")
files = np.array([open("image.jpg", "rb").read()] * {images}, dtype=np.object_)
image.set_data_from_numpy(files.reshape({image_shape}))
answer = triton.InferRequestedOutput("{answer}"{classes})
client = triton.InferenceServerClient("localhost:8000")
print(client.infer("{ensemble}", [image], outputs=[answer]).as_numpy("{answer}"))
```
"""


class Exported(Record):
    """What was written."""

    path: str
    model: str
    ensemble: str
    backend: str
    max_batch_size: int
    notes: tuple[str, ...]
    """what the user should know, one line each"""


def export_triton(
    bundle: Path, output: Path, *, manifest: BundleManifest, engine: bool = True, max_batch: int | None
) -> Exported:
    """Write the repository of a checked bundle's folder; an older export is replaced, anything else never.

    engine: False for the portable graph. max_batch: images that Triton may put together; None: what the engine was
    built for, or 8. Raises InputError for what cannot be served, StoreError where the folder cannot be written.
    """
    refuse_inside(bundle, output)
    name = slug(manifest.name)
    pixels, ensemble = f"{name}_pixels", f"{name}_from_image"
    labels = json.loads((bundle / "labels.json").read_bytes())
    labelled = labels is not None and manifest.output.kind == "logits"
    served, files, notes = _served(bundle, name, manifest, labelled=labelled, engine=engine)
    if len(served.inputs) != 1:
        raise InputError(f"the model has {len(served.inputs)} inputs; exactly one is supported")
    served = _batched(served, bundle, manifest, max_batch)
    with in_place_of(output, "the model repository", is_ours=_is_export) as new:
        version = new / name / _VERSION
        version.mkdir(parents=True)
        for target, source in files.items():
            shutil.copyfile(source, version / target)
        _write(new / name / "config.pbtxt", served_config(served))
        if labelled:
            _write(new / name / LABELS, "".join(f"{' '.join(label.split())}\n" for label in labels))
        _write_pixels(new / pixels, bundle, served, pixels)
        (new / ensemble / _VERSION).mkdir(parents=True)
        _write(new / ensemble / "config.pbtxt", ensemble_config(served, ensemble, pixels))
        _write(new / "README.md", _readme(served, pixels, ensemble, notes, labelled=labelled))
        _write(new / MARK, json_text({"format": FORMAT, "bundle": manifest.model_dump(mode="json")}))
    return Exported(
        path=str(output),
        model=name,
        ensemble=ensemble,
        backend=served.backend,
        max_batch_size=served.max_batch,
        notes=tuple(notes),
    )


def _served(
    bundle: Path, name: str, manifest: BundleManifest, *, labelled: bool, engine: bool
) -> tuple[Served, dict[str, Path], list[str]]:
    """The model, its files by the name that Triton's back end looks for, and notes."""
    runtime = manifest.runtime
    built = engine and manifest.engine_sha256 is not None
    facts = read_engine(bundle / "engine") if manifest.engine_sha256 is not None else {}
    model = Served(
        name=name,
        backend="onnxruntime",
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        answer=manifest.output.name,
        labelled=labelled,
        max_batch=0,
        on_gpu=runtime in (ORT_CUDA, ORT_TENSORRT, TENSORRT),
    )
    if runtime == TENSORRT and built:
        note = (
            f"The plan needs the kind of GPU and the TensorRT {manifest.version} that built it: take Triton's with it."
        )
        graphs = {"cuda": {"graphs": bool(facts.get("at_load", {}).get("cuda_graph", True))}}
        plan = {"model.plan": bundle / "engine" / facts["load"]}
        return replace(model, backend="tensorrt", optimization=graphs), plan, [note]
    if runtime in DEVICES:
        model = replace(model, backend="openvino", parameters=_openvino(runtime, manifest.precision, facts))
        notes = []
        if runtime == CPU and manifest.precision != "bf16":
            notes.append(
                "The back end has no parameter for fp32: on processors with bf16, OpenVINO computes in bf16 what the "
                "graph has in fp32."
            )
        if built:
            return model, {path.name: path for path in (bundle / "engine" / one for one in facts["files"])}, notes
        return replace(_of_graph(model, bundle), file="model.onnx"), _graph(bundle), notes
    model = _of_graph(model, bundle)
    if runtime == ORT_TENSORRT:
        mode = {"precision_mode": _PRECISION_MODES.get(manifest.precision, "FP32")}
        accelerator = {"name": "tensorrt", "parameters": entries(mode)}
        model = replace(model, optimization={"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}})
    threads = facts.get("options", {}).get("threads")
    if runtime == "onnxruntime" and threads:
        model = replace(model, parameters={"intra_op_thread_count": str(threads)})
    return model, _graph(bundle), [_why_graph(runtime, built=built)]


def _why_graph(runtime: str, *, built: bool) -> str:
    if runtime.startswith("onnxruntime"):
        return (
            "It holds model.onnx, which Triton's ONNX Runtime optimises when it starts: the bundle's engine is for one "
            "version and processor."
        )
    why = "Triton has no back end for it" if built or runtime != TENSORRT else "the bundle has no plan"
    return f"It holds model.onnx for ONNX Runtime in the place of {runtime}: {why}."


def _openvino(runtime: str, precision: str, facts: Mapping[str, Any]) -> dict[str, str]:
    kept, options = facts.get("at_load", {}), facts.get("options", {})
    hint = kept.get("hint") or "latency"
    found = {"TARGET_DEVICE": DEVICES[runtime], "PERFORMANCE_HINT": hint.upper()}
    if kept.get("streams"):
        found["NUM_STREAMS"] = str(kept["streams"])
    elif hint == "latency" and runtime == CPU:
        found["NUM_STREAMS"] = "1"
    if runtime == CPU and options.get("threads"):
        found["INFERENCE_NUM_THREADS"] = str(options["threads"])
    if precision == "bf16":
        found["HINT_BF16"] = "YES"
    return found


def _of_graph(model: Served, bundle: Path) -> Served:
    """With the shapes of the portable graph."""
    facts = onnx_facts(bundle / "model.onnx")
    inputs, outputs = (tuple(Tensor(**one) for one in facts[key]) for key in ("inputs", "outputs"))
    return replace(model, inputs=inputs, outputs=outputs)


def _graph(bundle: Path) -> dict[str, Path]:
    graph = bundle / "model.onnx"
    return {one.name: one for one in (graph, *external_data(graph))}


def _batched(model: Served, bundle: Path, manifest: BundleManifest, asked: int | None) -> Served:
    """Let Triton put requests together where the model leaves its batch open."""
    if asked is not None and not 1 <= asked <= _MOST_BATCH:
        raise InputError(f"--max-batch is a whole number from 1 to {_MOST_BATCH:,}, got {asked}")
    if not leaves_batch_open((*model.inputs, *model.outputs)):
        if asked is not None:
            raise InputError(
                f"--max-batch {asked} needs a model of any batch, this one is of {model.inputs[0].shape[0]}; "
                "try --without-engine, which takes model.onnx, or leave the option out"
            )
        return model
    most = DEFAULT_MAX_BATCH if manifest.batch == 1 else manifest.batch
    if model.backend == "tensorrt":
        most = int(read_engine(bundle / "engine")["options"].get("batch_max") or manifest.batch)
        if asked is not None and asked > most:
            raise InputError(f"--max-batch {asked} is more than the {most} that the engine was built for")
    parameters = dict(model.parameters)
    if model.backend == "openvino":
        parameters["ENABLE_BATCH_PADDING"] = "YES"  # it fixes the batch to the largest, and refuses smaller ones else
    return replace(model, max_batch=asked or most, parameters=parameters)


def _write_pixels(folder: Path, bundle: Path, model: Served, name: str) -> None:
    version = folder / _VERSION
    version.mkdir(parents=True)
    (entry,) = model.inputs
    settings = {
        "preprocess": json.loads((bundle / "preprocessing.json").read_bytes()),
        "output": entry.name,
        "dtype": entry.dtype,
    }
    shutil.copyfile(Path(__file__).parent / "model.py", version / "model.py")
    shutil.copyfile(Path(targets.bundle.__file__).parent / "pixels.py", version / "pixels.py")
    _write(version / "settings.json", json_text(settings))
    _write(folder / "config.pbtxt", pixels_config(model, name))


def _readme(model: Served, pixels: str, ensemble: str, notes: list[str], *, labelled: bool) -> str:
    (entry,) = model.inputs
    images = 1 if model.batched else entry.shape[0] or 1
    batch = (
        f"up to {model.max_batch} images; Triton puts requests together"
        if model.max_batch > 1
        else f"fixed at {images}: each request brings {images} image{'s' if images > 1 else ''}"
    )
    return _README.format(
        name=model.name,
        pixels=pixels,
        ensemble=ensemble,
        input=entry.name,
        shape=" x ".join("any" if size is None else str(size) for size in entry.shape),
        dtype=entry.dtype,
        answer=model.answer,
        batch=batch,
        notes="\n".join(f"- {note}" for note in notes),
        here="/models",
        image_shape=[1, 1] if model.batched else [images],
        images=images,
        classes=", class_count=5" if labelled and images == 1 else "",  # it counts over all of an answer
    )


def _is_export(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / MARK).read_bytes())["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
