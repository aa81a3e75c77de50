"""Which attentions, or whole blocks, to remove: the set grows by the one whose removal costs least, given those before.

After NOSE (Lin et al., CVPR 2024, https://arxiv.org/abs/2404.05657). Interactions count: each candidate is judged
together with all that were chosen before it, by running the images through the model without them. A chunk of images
goes through the model once, and branches off before every candidate: a step of the search costs about half as many
passes as there are candidates.

Shapes: n images together, B of a chunk, N tokens, D residual width, F features that enter the head, C classes.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.vit.model import Block, ViT

Unit = Literal["attention", "block"]
Score = Callable[[Tensor], float]
"""how much worse a model is that gives these features [n, F] of the images; smaller is better"""
FLOOR = 1e-12
"""of a channel's standard deviation: a channel that says nothing must not weigh infinitely"""


@dataclass(frozen=True)
class Step:
    """One step of the search."""

    block: int
    """whose attention, or which itself, was chosen"""
    score: float
    scores: dict[int, float]
    """of every candidate of this step, by block"""


def grow(
    model: ViT,
    embedded: Sequence[Tensor],
    score: Score,
    *,
    candidates: Collection[int],
    count: int,
    unit: Unit,
    doubled: bool,
    tell: Callable[[str, float | None], None] = lambda message, share: None,
) -> list[Step]:
    """Choose `count` of the candidates, one after another, each the one with the smallest score of the grown set.

    embedded: chunks [B, N, D] of what enters the first block. doubled: x <- 2 x in the place of an attention, else x.
    Of equal scores the first block's wins.
    """
    steps: list[Step] = []
    for step in range(count):
        chosen = {one.block for one in steps}
        left = sorted(set(candidates) - chosen)
        features = features_without(model, embedded, chosen=chosen, candidates=left, unit=unit, doubled=doubled)
        scores = {block: score(features[block]) for block in left}
        best = min(left, key=lambda block: (scores[block], block))
        steps.append(Step(best, scores[best], scores))
        tell(f"chose {unit} {best}, {step + 1} of {count}", (step + 1) / count)
    return steps


@torch.no_grad()
def features_without(
    model: ViT,
    embedded: Sequence[Tensor],
    *,
    chosen: Collection[int],
    candidates: Collection[int],
    unit: Unit,
    doubled: bool,
) -> dict[int | None, Tensor]:
    """Return what enters the head, [n, F] on the CPU, without the chosen and each one of the candidates.

    Under None: without the chosen alone.
    """
    blocks = cast("list[Block]", list(model.blocks))
    device = next(model.parameters()).device
    found: dict[int | None, list[Tensor]] = {key: [] for key in (*candidates, None)}

    def through(x: Tensor, start: int) -> Tensor:
        for index in range(start, len(blocks)):
            x = without(blocks[index], x, unit=unit, doubled=doubled) if index in chosen else blocks[index](x)
        return model.pool(model.norm(x)).cpu()

    for chunk in embedded:
        x = chunk.to(device)
        for index, block in enumerate(blocks):
            if index in candidates:
                found[index].append(through(without(block, x, unit=unit, doubled=doubled), index + 1))
            x = without(block, x, unit=unit, doubled=doubled) if index in chosen else block(x)
        found[None].append(model.pool(model.norm(x)).cpu())
    return {key: torch.cat(chunks) for key, chunks in found.items()}


def without(block: Block, x: Tensor, *, unit: Unit, doubled: bool) -> Tensor:
    """Return the stream behind a block without its attention, or without the block. x: [B, N, D]."""
    if unit == "block":
        return x
    return block.after_mlp(2.0 * x if doubled else x)


def entropy(features: Tensor) -> float:
    """Sum over the channels of ln of the standard deviation over images, float64. features: [n, F].

    The entropy of independent Gaussian channels, but for a constant.
    """
    deviations = features.double().std(dim=0, correction=0).clamp(min=FLOOR)
    return float(deviations.log().sum())


def transfer_entropy(whole: Tensor) -> Score:
    """Return |H(model) - H(model without a set)|, NOSE's measure. whole: features of the model, [n, F]."""
    reference = entropy(whole)
    return lambda features: abs(reference - entropy(features))


def divergence(model: ViT, whole: Tensor) -> Score:
    """Return the mean Kullback-Leibler divergence of the answers from the whole model's, in nats.

    Of a model without a head: the squared error of the features over their variance. whole: [n, F].
    """
    if not model.spec["classes"]:
        energy = float((whole - whole.mean(dim=0)).double().square().mean()) or 1.0
        return lambda features: float((features - whole).double().square().mean()) / energy

    def answers(features: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model.head(features.to(next(model.parameters()).device))
        return F.log_softmax(logits.double(), dim=-1)

    wanted = answers(whole)
    return lambda features: float(F.kl_div(answers(features), wanted, reduction="batchmean", log_target=True))
