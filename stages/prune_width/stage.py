"""The prune_width stage: its options and how to run it. Light: torch loads when it runs."""

from stages.artifact import Format
from stages.prune_width.options import PruneWidthOptions, reshaped
from stages.stage import Role, Stage, StageContext, StageResult


def prune_width(options: PruneWidthOptions, context: StageContext) -> StageResult:
    """Narrow the residual stream of the input model and fit the layers around it again."""
    from stages.prune_width.prune import prune_folder

    facts = prune_folder(
        options,
        model_folder=context.input,
        output=context.output,
        scratch=context.scratch,
        images=context.images[Role.FIT] if options.reads_images else None,
        tell=context.tell,
    )
    return StageResult(facts=facts)


STAGE = Stage(
    name="prune_width",
    summary="narrow the residual stream and repair the layers around it in closed form",
    consumes=Format.VIT,
    produces=Format.VIT,
    options=PruneWidthOptions,
    run=prune_width,
    roles=lambda options: (Role.FIT,) if options.reads_images else (),
    reshape=reshaped,
    tools=("torch", "numpy", "pillow"),
    code=("stages/vit", "stages/data", "targets/bundle/pixels.py"),
)
