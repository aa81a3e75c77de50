"""The offers stage: what every smaller shape of every sublayer would cost. Light: torch loads when it runs."""

from stages.artifact import Format
from stages.offers.options import OffersOptions
from stages.stage import Role, Stage, StageContext, StageResult


def make_offers(options: OffersOptions, context: StageContext) -> StageResult:
    """Write offers.json for the input model."""
    from stages.offers.run import offers_of_folder

    return StageResult(
        facts=offers_of_folder(
            options,
            model_folder=context.input,
            source_folder=context.source,
            output=context.output,
            fit=context.images[Role.FIT],
            select=context.images[Role.SELECT],
            tell=context.tell,
        )
    )


STAGE = Stage(
    name="offers",
    summary="price every smaller shape of every sublayer by what it does to the answers",
    consumes=Format.VIT,
    produces=Format.OFFERS,
    options=OffersOptions,
    run=make_offers,
    roles=lambda options: (Role.FIT, Role.SELECT),
    tools=("torch", "numpy", "scipy", "pillow"),
    code=(
        "stages/vit",
        "stages/data",
        "stages/prune_mlp",
        "stages/prune_attention",
        "stages/merge_tokens",
        "targets/bundle/pixels.py",
    ),
)
