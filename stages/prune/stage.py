"""The prune stage: its options and how to run it. Light: torch loads when it runs."""

from stages.artifact import Format
from stages.prune.options import PruneOptions, reshaped
from stages.stage import Role, Stage, StageContext, StageResult


def prune(options: PruneOptions, context: StageContext) -> StageResult:
    """Cut every block of the input model to its shape and fit again what was cut."""
    from stages.prune.prune import prune_folder

    return StageResult(
        facts=prune_folder(
            options,
            model_folder=context.input,
            output=context.output,
            scratch=context.scratch,
            images=context.images[Role.FIT],
            seed=context.seed,
            tell=context.tell,
        )
    )


STAGE = Stage(
    name="prune",
    summary="cut attention and MLPs in one sweep, to shapes given or chosen for the target's budget",
    consumes=Format.VIT,
    produces=Format.VIT,
    options=PruneOptions,
    run=prune,
    roles=lambda options: (Role.FIT, Role.SELECT) if options.blocks == "auto" else (Role.FIT,),
    reshape=reshaped,
    reshapes_at_most=lambda options: options.blocks == "auto",
    tools=("torch", "numpy", "scipy", "pillow"),
    code=("stages/vit", "stages/data", "stages/prune_mlp", "stages/prune_attention", "targets/bundle/pixels.py"),
)
