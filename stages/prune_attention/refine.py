"""Refinement of a pruned attention: q, k and v follow what the repair did to proj (stages/vit/refine.py)."""

from collections.abc import Iterator

from stages.prune_attention.weights import attention_of
from stages.vit.refine import Samples, refine_alone
from stages.vit.sweep import Visit

IMAGES = 8
"""of a step"""


def refine(visit: Visit, *, passes: int, lr: float, take_back: float) -> dict[str, float]:
    """Train the attention of the visited block in place, or leave it as it is where training does not help.

    lr: peak, falling to 0 as a cosine. take_back: share of the error of the blocks before that this one is to take
    back. Returns the relative error before and after.
    """

    def images(every: int) -> Iterator[Samples]:
        for chunk in visit.pairs():
            entering, leaving, weights = (part[::every] for part in chunk)
            given = visit.source.after_attention(entering)
            yield entering, take_back * leaving + (1 - take_back) * given - entering, weights

    return refine_alone(
        list(attention_of(visit.block).parameters()),
        visit.block.attention_branch,
        images,
        together=IMAGES,
        passes=passes,
        lr=lr,
        seed=visit.index,
    )
