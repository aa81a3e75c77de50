"""What every shape of one attention would cost, from one visit: for whoever shares a budget out over the blocks.

Costs are squared errors of what the attention adds to the residual stream, as shares of that branch's energy (around
its mean, tokens weighted as in the repair). They are those of `method: rotate` with a repaired proj.

- Heads and value directions: closed form, from the moments of proj (see values.py).
- Queries and keys: the closed-form error of the logits (see rotate.py), turned into an error of the branch by a factor
  that is measured at a few ranks on a few images, head by head.

Costs of q and k, of values, and of heads are added up, as if they did not meet: an estimate that puts shapes in order.

Shapes: H heads, d_qk and d_v their widths, B images, N tokens, D residual width.
"""

from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from stages.prune_attention.logits import gather, queries_and_keys
from stages.prune_attention.options import AttentionShape
from stages.prune_attention.rotate import Axes, best_axes
from stages.prune_attention.values import order_heads, value_errors
from stages.prune_attention.weights import attention_of
from stages.vit.last_layer import last_layer
from stages.vit.model import Block
from stages.vit.sweep import Part, Visit

MEASURED_SHARES = (0.125, 0.25, 0.5, 0.75)
"""Ranks, as shares of d_qk, at which the effect of a logit error is measured."""
MEASURED_CHUNKS = 2
"""of images"""


@dataclass(frozen=True)
class AttentionOffer:
    """Costs of all shapes of one attention, as shares of its energy; float64, on the CPU."""

    qk_error: Tensor
    """[H, d_qk + 1], of cutting one head's q and k to so many directions; the last is 0; infinite where it cannot be"""
    v_error: Tensor
    """[H, d_v + 1], of cutting one head's values, all others whole; the last is 0; infinite where it cannot be"""
    head_order: Tensor
    """[H], most important first"""
    head_error: Tensor
    """[H + 1], of keeping the first heads of that order; the last is 0"""

    def error(self, shape: AttentionShape) -> float:
        """Return what a shape costs; no heads: 1, all that the attention adds around its mean is lost."""
        kept = self.head_order[: shape.heads]
        if not shape.heads:
            return float(self.head_error[0])
        widths = self.qk_error[kept, shape.d_qk].sum() + self.v_error[kept, shape.d_v].sum()
        return float(self.head_error[shape.heads] + widths)

    def table(self, heads: int) -> Tensor:
        """Return the costs of all widths with so many heads at once: [d_qk + 1, d_v + 1]."""
        kept = self.head_order[:heads]
        return self.head_error[heads] + self.qk_error[kept].sum(dim=0)[:, None] + self.v_error[kept].sum(dim=0)


def offers(visit: Visit) -> AttentionOffer:
    """Price every shape of the visited attention, which stays as it is. Calls `visit.moments()`."""
    attention = attention_of(visit.block)
    seen = gather(visit.block, ((chunk, visit.weights(chunk)) for chunk in visit.inputs()))
    axes = best_axes(seen.queries, seen.keys)
    factors = _factors(visit, axes)
    moments, _ = visit.moments()
    energy = moments.energy or 1.0
    order = order_heads(moments, attention.heads)
    heads = (order.errors - order.errors[-1]) / energy
    # More directions never cost more; a factor that was measured between them must not say so.
    qk = (factors * axes.errors * (moments.weight / energy)).flip(1).cummax(dim=1).values.flip(1)
    values = value_errors(moments, attention.heads) / energy
    if attention.rope is not None or not isinstance(attention.q_norm, torch.nn.Identity):
        qk[:, :-1] = torch.inf
    if not isinstance(attention.norm, torch.nn.Identity):
        values[:, :-1] = torch.inf
    return AttentionOffer(qk.cpu(), values.cpu(), order.picks.cpu(), heads.cpu())


def _factors(visit: Visit, axes: Axes) -> Tensor:
    """Return squared error of the branch, weighted mean over tokens, per error of logits, by rank: [H, d + 1]."""
    width = axes.query.shape[1]
    ranks = sorted({max(round(share * width), 1) for share in MEASURED_SHARES})
    sums = torch.zeros(len(ranks), len(axes.query), dtype=torch.float64, device=axes.query.device)
    total = 0.0
    for chunk in islice(visit.inputs(), MEASURED_CHUNKS):
        weights = visit.weights(visit.block.after_attention(chunk))
        total += float(weights.sum())
        sums += _effects(visit.block, chunk, weights, axes, ranks)
    measured = torch.where(axes.errors[:, ranks] > 0, (sums / total).T / axes.errors[:, ranks], 0.0)  # [H, ranks]
    every = torch.arange(width + 1, dtype=torch.float64, device=measured.device)
    at = torch.tensor(ranks, device=every.device)
    above = torch.searchsorted(at, every.long()).clamp(1, max(len(ranks) - 1, 1))
    if len(ranks) == 1:
        return measured.expand(-1, width + 1)
    part = ((every - at[above - 1]) / (at[above] - at[above - 1])).clamp(0, 1)
    return measured[:, above - 1] * (1 - part) + measured[:, above] * part


def _effects(block: Block, x: Tensor, weights: Tensor, axes: Axes, ranks: list[int]) -> Tensor:
    """Return the squared error of what each head adds when only its q and k are cut, over all tokens: [ranks, H].

    x: [B, N, D], the stream before the attention; weights: [B, N].
    """
    attention = attention_of(block)
    heads, width = attention.heads, attention.d_v
    q, k = queries_and_keys(block, x)
    entering = x if block.post_norm or block.norm1 is None else block.norm1(x)
    values = (
        attention.qkv(entering)[..., 2 * heads * attention.d_qk :].reshape(*x.shape[:2], heads, width).transpose(1, 2)
    )
    columns = last_layer(block, Part.ATTENTION).weight.reshape(-1, heads, width).permute(1, 2, 0).to(x)  # [H, d_v, D]
    gram = columns @ columns.mT
    whole = (q * attention.scale @ k.mT).softmax(dim=-1)
    found = []
    for rank in ranks:
        cut_q, cut_k = q @ axes.query[:, :, :rank].to(q), k @ axes.key[:, :, :rank].to(k)
        missed = ((cut_q * attention.scale @ cut_k.mT).softmax(dim=-1) - whole) @ values  # [B, H, N, d_v]
        found.append(((missed @ gram * missed).sum(dim=-1) * weights[:, None]).sum(dim=(0, 2)))
    return torch.stack(found).double()
