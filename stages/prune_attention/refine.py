"""Refinement of a pruned attention: q, k and v follow what the repair did to proj (stages/vit/refine.py)."""

from stages.prune_attention.weights import attention_of
from stages.vit.refine import aims, refine_alone
from stages.vit.sweep import Visit

IMAGES = 8
"""of a step"""


def refine(visit: Visit, *, passes: int, lr: float, take_back: float) -> dict[str, float]:
    """Train the attention of the visited block in place, or leave it as it is where training does not help.

    lr: peak, falling to 0 as a cosine. take_back: share of the error of the blocks before that this one is to take
    back. Returns the relative error before and after.
    """
    return refine_alone(
        list(attention_of(visit.block).parameters()),
        visit.block.attention_branch,
        lambda every: aims(visit, visit.source.after_attention, take_back=take_back, every=every),
        together=IMAGES,
        passes=passes,
        lr=lr,
        seed=visit.index,
    )
