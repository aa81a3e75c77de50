"""The source stage: read the user's model, prove that it was understood, save it as a model folder."""

from collections.abc import Mapping
from pathlib import Path

from stages.artifact import Format
from stages.source.folders import Kind, kind_of, refuse_changes
from stages.source.options import SourceOptions
from stages.stage import Stage, StageContext, StageResult
from targets.errors import InputError


def read_source(options: SourceOptions, context: StageContext) -> StageResult:
    """Save the model that the options name as a model folder."""
    from stages.source.load import save_source
    from stages.vit.counts import count_macs, count_params

    context.tell("reading the model", None)
    source, tensors = save_source(options, context.output, seed=context.seed)
    spec = source.spec
    return StageResult(
        facts={
            "summary": f"{spec.architecture}, weights: {source.weights}",
            "architecture": spec.architecture,
            "params": count_params(spec),
            "macs": count_macs(spec),
            "image_size": [spec.preprocess.height, spec.preprocess.width],
            "classes": spec.classes,
            "tensors": tensors,
            "weights": source.weights,
            "labels": source.labels is not None,
        }
    )


def files_read(options: SourceOptions) -> Mapping[str, Path]:
    """Return the files that the options name; raises InputError where one is not there."""
    files = options.files()
    for option, path in files.items():
        if not (path.is_dir() if option == "folder" else path.is_file()):
            raise InputError(f"{option} {str(path)!r} is not there")
    if options.folder is not None and kind_of(options.folder) == Kind.VITRIM:
        refuse_changes(options)
    return files


STAGE = Stage(
    name="source",
    summary="read a trained model of timm, transformers or open_clip, a checkpoint or a saved model folder",
    consumes=Format.NOTHING,
    produces=Format.VIT,
    options=SourceOptions,
    run=read_source,
    reads=files_read,
    tools=("timm", "torch"),
    code=("stages/vit", "stages/data/labels.py"),
)
