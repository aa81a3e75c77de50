"""Refinement of a pruned MLP: fc1 follows what the repair did to fc2 (stages/vit/refine.py).

A pass over the images costs about three forward passes through the pruned MLPs and one through the source's.

Shapes: B images of a chunk, N tokens of each, T tokens together, D residual width.
"""

from collections.abc import Iterator

from stages.prune_mlp.neurons import mlp_of
from stages.vit.refine import Samples, aims, refine_alone
from stages.vit.sweep import Visit

TOKENS = 1024
"""of a step"""


def refine(visit: Visit, *, passes: int, lr: float, take_back: float) -> dict[str, float]:
    """Train the MLP of the visited block in place, or leave it as it is where training does not help.

    lr: peak, falling to 0 as a cosine. take_back: share of the error of the blocks before that this one is to take
    back. Returns the relative error before and after.
    """

    def tokens(every: int) -> Iterator[Samples]:
        for entering, wanted, weights in aims(visit, visit.source.after_mlp, take_back=take_back, every=every):
            yield entering.flatten(0, 1), wanted.flatten(0, 1), weights.flatten()

    return refine_alone(
        list(mlp_of(visit.block).parameters()),
        visit.block.mlp_branch,
        tokens,
        together=TOKENS,
        passes=passes,
        lr=lr,
        seed=visit.index,
    )
