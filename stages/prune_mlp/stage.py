"""The prune_mlp stage: its options and how to run it. Light: torch loads when it runs."""

from stages.artifact import Format
from stages.prune_mlp.options import PruneMlpOptions, reshaped
from stages.stage import Role, Stage, StageContext, StageResult


def prune_mlp(options: PruneMlpOptions, context: StageContext) -> StageResult:
    """Take neurons out of the input model's MLPs and fit the layers behind them again."""
    from stages.prune_mlp.prune import prune_folder

    facts = prune_folder(
        options,
        model_folder=context.input,
        output=context.output,
        scratch=context.scratch,
        images=context.images[Role.FIT] if options.reads_images else None,
        seed=context.seed,
        tell=context.tell,
    )
    return StageResult(facts=facts)


STAGE = Stage(
    name="prune_mlp",
    summary="narrow the MLPs and repair them in closed form",
    consumes=Format.VIT,
    produces=Format.VIT,
    options=PruneMlpOptions,
    run=prune_mlp,
    reshape=reshaped,
    reshapes_at_most=lambda options: options.threshold is not None,
    roles=lambda options: (Role.FIT,) if options.reads_images else (),
    tools=("torch", "numpy", "scipy", "pillow"),
    code=("stages/vit", "stages/data", "targets/bundle/pixels.py"),
)
