"""The stage source_onnx: read an ONNX file of any vision model, check it, and give it the form that stages expect."""

from collections.abc import Mapping
from pathlib import Path

from stages.artifact import Format
from stages.source_onnx.options import OnnxSourceOptions
from stages.stage import Stage, StageContext, StageResult
from targets.errors import InputError


def read_source_onnx(options: OnnxSourceOptions, context: StageContext) -> StageResult:
    """Save the graph as `model.onnx` with its card and, where the classes have names, `labels.json`."""
    from stages.source_onnx.read import save_graph

    context.tell("reading the graph", None)
    card, facts = save_graph(options, context.output)
    return StageResult(
        facts={
            "summary": f"{card.architecture}, {facts['operators']} operators, opset {facts['opset']}",
            "architecture": card.architecture,
            "params": card.params,
            "macs": card.macs,
            "image_size": [card.preprocess.height, card.preprocess.width],
            "classes": card.classes,
            **facts,
        }
    )


def files_read(options: OnnxSourceOptions) -> Mapping[str, Path]:
    """Return the files that the options name; raises InputError where one is not there."""
    found = {"onnx": options.onnx, **({"labels": options.labels} if options.labels else {})}
    beside = options.onnx.with_name(options.onnx.name + ".data")
    for option, path in found.items():
        if not path.is_file():
            raise InputError(f"{option} {str(path)!r} is not there")
    return {**found, **({"weights": beside} if beside.is_file() else {})}


STAGE = Stage(
    name="source_onnx",
    summary="read an ONNX file of any vision model, to quantize, compile and validate it",
    consumes=Format.NOTHING,
    produces=Format.ONNX,
    options=OnnxSourceOptions,
    run=read_source_onnx,
    reads=files_read,
    tools=("onnx", "numpy"),
    code=("stages/graph", "stages/data/labels.py"),
)
"""no torch: what is only a graph needs none"""
