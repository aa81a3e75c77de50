"""The random_weights stage: a model of given shapes whose weights are drawn. It takes as long as a trained one."""

from stages.artifact import Format
from stages.stage import Stage, StageContext, StageResult
from stages.vit.spec import ViTSpec
from targets.record import Record


class RandomWeightsOptions(Record):
    """What the model looks like."""

    spec: ViTSpec


def random_weights(options: RandomWeightsOptions, context: StageContext) -> StageResult:
    """Save a model folder of these shapes with weights drawn from the seed."""
    import torch

    from stages.vit.counts import count_params
    from stages.vit.files import save_model
    from stages.vit.model import ViT

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        model = ViT(options.spec.model_dump(mode="json"))
    save_model(context.output, options.spec, model.state_dict())
    params = count_params(options.spec)
    return StageResult(facts={"summary": f"{params:,} parameters drawn", "params": params})


STAGE = Stage(
    name="random_weights",
    summary="draw the weights of a model of given shapes, to time engines of it",
    consumes=Format.NOTHING,
    produces=Format.VIT,
    options=RandomWeightsOptions,
    run=random_weights,
    tools=("torch",),
    code=("stages/vit",),
)
