"""The prune_attention stage: its options and how to run it. Light: torch loads when it runs."""

from stages.artifact import Format
from stages.prune_attention.options import PruneAttentionOptions, reshaped
from stages.stage import Role, Stage, StageContext, StageResult


def prune_attention(options: PruneAttentionOptions, context: StageContext) -> StageResult:
    """Narrow the heads of the input model, or take some out, and fit the layers behind them again."""
    from stages.prune_attention.prune import prune_folder

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
    name="prune_attention",
    summary="narrow or remove attention heads and repair them in closed form",
    consumes=Format.VIT,
    produces=Format.VIT,
    options=PruneAttentionOptions,
    run=prune_attention,
    roles=lambda options: (Role.FIT,) if options.reads_images else (),
    reshape=reshaped,
    tools=("torch", "numpy", "pillow"),
    code=("stages/vit", "stages/data", "targets/bundle/pixels.py"),
)
