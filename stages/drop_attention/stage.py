"""The drop_attention stage: its options and how to run it. Light: torch loads when it runs."""

from stages.artifact import Format
from stages.drop_attention.options import DropAttentionOptions, reshaped
from stages.stage import Role, Stage, StageContext, StageResult


def drop_attention(options: DropAttentionOptions, context: StageContext) -> StageResult:
    """Take whole attentions, or whole blocks, out of the input model."""
    from stages.drop_attention.drop import drop_folder

    facts = drop_folder(
        options,
        model_folder=context.input,
        output=context.output,
        scratch=context.scratch,
        select=context.images[Role.SELECT] if options.chooses else None,
        fit=context.images[Role.FIT] if options.repairs else None,
        tell=context.tell,
    )
    return StageResult(facts=facts)


def roles_read(options: DropAttentionOptions) -> tuple[Role, ...]:
    """Return select where images choose, fit where they repair."""
    return (*((Role.SELECT,) if options.chooses else ()), *((Role.FIT,) if options.repairs else ()))


STAGE = Stage(
    name="drop_attention",
    summary="remove whole attentions or blocks, chosen together (NOSE)",
    consumes=Format.VIT,
    produces=Format.VIT,
    options=DropAttentionOptions,
    run=drop_attention,
    reshape=reshaped,
    reshapes_at_most=lambda options: options.chooses,
    roles=roles_read,
    tools=("torch", "numpy", "pillow"),
    code=("stages/vit", "stages/data", "targets/bundle/pixels.py"),
)
