"""Every stage, one line each. Modules are imported only when a stage is asked for."""

from functools import cache
from importlib import import_module
from typing import Any

from stages.stage import Stage
from targets.errors import UnknownNameError

CATALOG: dict[str, str] = {
    "source": "stages.source.stage",
    "source_onnx": "stages.source_onnx.stage",
    "finetune": "stages.finetune.stage",
    "resize_input": "stages.resize_input.stage",
    "drop_attention": "stages.drop_attention.stage",
    "prune_width": "stages.prune_width.stage",
    "prune_attention": "stages.prune_attention.stage",
    "prune_mlp": "stages.prune_mlp.stage",
    "prune": "stages.prune.stage",
    "merge_tokens": "stages.merge_tokens.stage",
    "distill": "stages.distill.stage",
    "export": "stages.export.stage",
    "quantize": "stages.quantize.stage",
    "quantize_aware": "stages.quantize_aware.stage",
    "compile": "stages.compile.stage",
    "offers": "stages.offers.stage",
    "random_weights": "stages.random_weights.stage",
}
"""name -> module that holds STAGE, in the order in which stages usually run"""


@cache
def get_stage(name: str) -> Stage[Any]:
    """Return the stage with this name; raises UnknownNameError with the nearest known names."""
    if name not in CATALOG:
        raise UnknownNameError("stage", name, CATALOG, hint="`vitrim stages` lists them")
    stage: Stage[Any] = import_module(CATALOG[name]).STAGE
    return stage
