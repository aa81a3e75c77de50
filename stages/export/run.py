"""The export stage from folder to folder: trace, tidy, save, check the file, compare with torch."""

import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from stages.export.graph import check_operators, fold_layer_scale, save_graph, tidy, trace
from stages.export.parity import check_parity, clear_images, reference_outputs
from stages.stage import StageContext, StageResult
from stages.vit.files import LABELS_FILE, load_model, load_spec
from stages.vit.spec import SPEC_FILE, ViTSpec
from targets.errors import InputError, StageError, UnknownNameError

if TYPE_CHECKING:
    from stages.export.stage import ExportOptions
    from stages.vit.model import ViT


def export_model(options: "ExportOptions", context: StageContext) -> StageResult:
    """Write model.onnx, vit.json and, where there are any, labels.json.

    Raises InputError for outputs that the model does not have, StageError where graph and torch differ.
    """
    spec, model = load_spec(context.input), load_model(context.input)
    outputs = outputs_of(options.outputs, spec, model)
    images, margin = clear_images(model, spec, seed=context.seed)
    expected = reference_outputs(model, images, outputs)

    context.tell("tracing the model", 0.1)
    fold_layer_scale(model)
    graph = trace(model, outputs=outputs, batch=options.batch, opset=options.opset)
    tidy(graph)
    check_operators(graph)
    files = save_graph(graph, context.output)
    check_file(files[0])
    for name in (SPEC_FILE, LABELS_FILE):
        if (context.input / name).exists():
            shutil.copyfile(context.input / name, context.output / name)

    context.tell("comparing with torch", 0.8)
    parity = check_parity(files[0], images, expected, batch=options.batch, precision="fp32")
    if margin is not None:
        parity["merge_margin"] = margin
    facts: dict[str, Any] = {
        "summary": f"opset {options.opset}, answers as torch does up to {parity['max_relative_error']:.0e}",
        "opset": options.opset,
        "batch": options.batch,
        "outputs": list(outputs),
        "operators": dict(sorted(Counter(node.op_type for node in graph.graph).items())),
        "bytes": sum(file.stat().st_size for file in files),
        "parity": parity,
    }
    return StageResult(facts=facts)


def outputs_of(wanted: tuple[str, ...], spec: ViTSpec, model: "ViT") -> tuple[str, ...]:
    """The outputs asked for, or the one that answers. Raises InputError."""
    for index, block in enumerate(spec.blocks):
        if block.attention == "diluting":
            raise InputError(f"attention of block {index} is still 'diluting'; distil the model, which folds it")
    outputs = wanted or model.output_names[:1]
    for name in outputs:
        if name not in model.output_names:
            raise UnknownNameError("output", name, model.output_names)
    if len(set(outputs)) < len(outputs):
        raise InputError(f"outputs {list(outputs)!r} name one twice; name each once")
    return tuple(outputs)


def check_file(path: Path) -> None:
    """Let ONNX check the file as written, with shape inference; by path, so that size does not matter."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StageError(f"export: the graph is not valid ONNX: {str(error).splitlines()[0]}") from error
