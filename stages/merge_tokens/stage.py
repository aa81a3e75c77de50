"""The merge_tokens stage: its options and how to run it. Light: torch loads when it runs."""

from stages.artifact import Format
from stages.merge_tokens.options import MergeTokensOptions, reshaped
from stages.stage import Stage, StageContext, StageResult


def merge_tokens(options: MergeTokensOptions, context: StageContext) -> StageResult:
    """Write the schedule of merging into the input model; its weights stay."""
    from stages.merge_tokens.folder import merge_folder

    return StageResult(facts=merge_folder(options, model_folder=context.input, output=context.output))


STAGE = Stage(
    name="merge_tokens",
    summary="merge patch tokens that are alike, block by block",
    consumes=Format.VIT,
    produces=Format.VIT,
    options=MergeTokensOptions,
    run=merge_tokens,
    reshape=reshaped,
    tools=("torch",),
    code=("stages/vit",),
)
