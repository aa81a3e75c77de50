"""The resize_input stage: its options and how to run it. Light: torch loads when it runs."""

from stages.artifact import Format
from stages.resize_input.options import ResizeInputOptions, reshaped
from stages.stage import Stage, StageContext, StageResult


def resize_input(options: ResizeInputOptions, context: StageContext) -> StageResult:
    """Let the input model see pictures of another size."""
    from stages.resize_input.resize import resize_folder

    return StageResult(facts=resize_folder(options, model_folder=context.input, output=context.output))


STAGE = Stage(
    name="resize_input",
    summary="let the model see smaller (or larger) pictures, its position embedding resampled",
    consumes=Format.VIT,
    produces=Format.VIT,
    options=ResizeInputOptions,
    run=resize_input,
    reshape=reshaped,
    tools=("torch", "timm"),
    code=("stages/vit",),
)
