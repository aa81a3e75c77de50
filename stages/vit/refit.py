"""MLPs that keep their width are fitted again, to take back what a change before them cost.

Shapes: M inputs of fc2.
"""

from typing import Any

import torch

from stages.vit.last_layer import last_layer, put_last_layer
from stages.vit.repair import best_ridge, fit, lean, relative_error
from stages.vit.sweep import Part, Visit
from targets.errors import InputError

TOKENS_PER_NEURON = 10
"""With fewer calibration tokens for each neuron, the fit begins to follow them instead of what they stand for."""


def refit_mlp(visit: Visit, *, take_back: float, least: int = 1) -> dict[str, Any] | None:
    """Fit the visited fc2 again to what should be in the stream behind it, in place, and return facts.

    take_back: share of the error of everything before that it is to take back. least: None, and nothing changed, where
    there are fewer tokens for a neuron. Raises InputError where there are fewer tokens than neurons and `least` is 1.
    """
    block = visit.block
    layer = last_layer(block, Part.MLP)
    fitted, held_out = visit.moments(hold_out=True)
    tokens, neurons = fitted.tokens + (held_out.tokens if held_out else 0), layer.weight.shape[1]
    if tokens < least * neurons and least > 1:
        return None
    if tokens < neurons:
        raise InputError(
            f"{tokens} tokens of calibration images cannot describe {neurons} neurons; give more images of fit: "
            f"{TOKENS_PER_NEURON} tokens per neuron are a good measure"
        )
    fitted = lean(fitted, layer, share=take_back)
    held_out = None if held_out is None else lean(held_out, layer, share=take_back)
    kept = torch.arange(neurons, device=fitted.gram.device)
    ridge = best_ridge(fitted, held_out or fitted, kept)
    moments = fitted if held_out is None else fitted.absorb(held_out)
    before = relative_error(moments, kept, layer)
    layer = fit(moments, kept, ridge=ridge)
    put_last_layer(block, Part.MLP, layer)
    error = relative_error(moments, kept, layer)
    facts = {"tokens": tokens, "neurons": neurons, "ridge": ridge}
    return {**facts, "relative_error_before": before, "relative_error": error}
