"""Which attentions, or blocks, to remove where the MLPs behind are fitted again: judged by the answers after a fit.

How much the answers suffer from a removal says little of how much they suffer once an MLP has taken back what it can:
of ViT-Tiny, attentions that cost most untreated are among those that cost least repaired. So each candidate is judged
with the next MLP behind it fitted again, from which its answers follow. The set grows greedily, as NOSE's does; what is
chosen keeps its fit for the steps after it. The repair of the end fits every MLP behind, and starts anew.

A step takes about two passes of the fit images and half a pass of the select images for each candidate.

Shapes: chunks of B images, N tokens, D residual width, F features that enter the head.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor

from stages.drop_attention.options import DropAttentionOptions, without
from stages.drop_attention.repair import Constant, put_constant
from stages.drop_attention.search import Score, Step
from stages.vit.model import Block, ViT
from stages.vit.refit import refit_mlp
from stages.vit.spec import ViTSpec
from stages.vit.sweep import Part, Weigh, look, weigh_tokens
from stages.vit.writers import writer_before

Trial = dict[int, Block]
"""Blocks that take the place of a model's, by index."""


@torch.no_grad()
def grow_repaired(
    model: ViT,
    spec: ViTSpec,
    options: DropAttentionOptions,
    *,
    select: Sequence[Tensor],
    fit: Sequence[Tensor],
    score: Score,
    candidates: Collection[int],
    count: int,
    tell: Callable[[str, float | None], None] = lambda message, share: None,
) -> list[Step]:
    """Choose `count` of the candidates, one after another, each the one with the smallest score of the repaired model.

    select, fit: chunks [B, N, D] of what enters the first block. Of equal scores the first block's wins. Raises
    InputError where the fit images are too few for an MLP.
    """
    changed = deepcopy(model)
    steps: list[Step] = []
    for step in range(count):
        chosen = {one.block for one in steps}
        left = sorted(set(candidates) - chosen)
        trials = _trials(model, changed, spec, options, fit, chosen=chosen, candidates=left)
        features = features_of(changed, select, trials)
        scores = {block: score(features[block]) for block in left}
        best = min(left, key=lambda block: (scores[block], block))
        for index, block in trials[best].items():
            changed.blocks[index] = block
        steps.append(Step(best, scores[best], scores))
        tell(f"chose {options.unit} {best}, {step + 1} of {count}", (step + 1) / count)
    return steps


def features_of(model: ViT, embedded: Sequence[Tensor], trials: Mapping[int, Trial]) -> dict[int, Tensor]:
    """Return what enters the head, [n, F] on the CPU, with each trial's blocks in place; a trial starts at its key."""
    blocks = cast("list[Block]", list(model.blocks))
    device = next(model.parameters()).device
    found: dict[int, list[Tensor]] = {key: [] for key in trials}
    for chunk in embedded:
        x = chunk.to(device)
        for start, block in enumerate(blocks):
            if start in trials:
                branch = x
                for index in range(start, len(blocks)):
                    branch = trials[start].get(index, blocks[index])(branch)
                found[start].append(model.pool(model.norm(branch)).cpu())
            x = block(x)
    return {key: torch.cat(chunks) for key, chunks in found.items()}


def _trials(
    model: ViT,
    changed: ViT,
    spec: ViTSpec,
    options: DropAttentionOptions,
    fit: Sequence[Tensor],
    *,
    chosen: Collection[int],
    candidates: Sequence[int],
) -> dict[int, Trial]:
    """Each candidate's blocks: the one without, and that of the next MLP, fitted again."""
    device, weigh = next(model.parameters()).device, weigh_tokens(spec)
    wholes, blocks = cast("list[Block]", list(model.blocks)), cast("list[Block]", list(changed.blocks))
    source, streams = list(fit), list(fit)
    found: dict[int, Trial] = {}
    for index in range(max(candidates) + 1):
        if index in candidates:
            dropped = tuple(sorted({*chosen, index}))
            by_mean = writer_before(without(spec, dropped, options), index) is not None
            found[index] = _trial(wholes, blocks, source, streams, index, options, weigh, by_mean=by_mean)
        source = [wholes[index](chunk.to(device)).cpu() for chunk in source]
        streams = [blocks[index](chunk.to(device)).cpu() for chunk in streams]
    return found


def _trial(
    wholes: Sequence[Block],
    blocks: Sequence[Block],
    source: Sequence[Tensor],
    streams: Sequence[Tensor],
    index: int,
    options: DropAttentionOptions,
    weigh: Weigh,
    *,
    by_mean: bool,
) -> Trial:
    """Take one candidate out, and fit the next MLP behind it again. source, streams: both models' before this block."""
    trial = {index: deepcopy(blocks[index])}
    there = {Part.ATTENTION: blocks[index].attn, Part.MLP: blocks[index].mlp}
    for part in (Part.ATTENTION,) if options.unit == "attention" else tuple(Part):
        if there[part] is None:
            continue
        mean = None
        if by_mean:
            before = _before(wholes, {}, source, index, part), _before(blocks, trial, streams, index, part)
            visit = look(index, part, wholes[index], blocks[index], before[0], weigh, changed=before[1])
            mean = visit.moments()[0].mean_out.to(next(wholes[index].parameters()))
        put_constant(trial[index], part, mean)
    first = index if options.unit == "attention" else index + 1
    left = (one for one in range(first, len(blocks)) if not isinstance(blocks[one].mlp, Constant | None))
    behind = next(left, None)
    if behind is not None:
        trial.setdefault(behind, deepcopy(blocks[behind]))
        before = (
            _before(wholes, {}, source, index, Part.MLP, behind),
            _before(blocks, trial, streams, index, Part.MLP, behind),
        )
        visit = look(behind, Part.MLP, wholes[behind], trial[behind], before[0], weigh, changed=before[1])
        refit_mlp(visit, take_back=options.take_back)
    return trial


def _before(
    blocks: Sequence[Block],
    trial: Trial,
    stream: Sequence[Tensor],
    start: int,
    part: Part,
    end: int | None = None,
) -> list[Tensor]:
    """Return the stream before a sublayer of block `end` (of `start`), from that before block `start`: [B, N, D]."""
    end = start if end is None else end
    device = next(blocks[start].parameters()).device
    found = []
    for chunk in stream:
        x = chunk.to(device)
        for index in range(start, end):
            x = trial.get(index, blocks[index])(x)
        found.append((trial.get(end, blocks[end]).after_attention(x) if part is Part.MLP else x).cpu())
    return found
