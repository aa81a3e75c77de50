"""One attention being cut: q and k first, then heads and values by what the cut logits let through, then proj.

Shapes: H heads, d width of a head (d_v), M = H * d inputs of proj, r width kept.
"""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stages.prune_attention import logits
from stages.prune_attention.options import AttentionShape, PruneAttentionOptions
from stages.prune_attention.refine import refine
from stages.prune_attention.scores import TINY, best, value_diversity, weight_pairs
from stages.prune_attention.values import block_diagonal, head_moments, order_heads, own_axes, through, value_axes
from stages.prune_attention.weights import (
    attention_of,
    head_columns,
    keep_heads,
    narrow,
    put_proj,
    read,
    write,
)
from stages.vit.enough import refuse_few_tokens
from stages.vit.last_layer import last_layer, put_last_layer
from stages.vit.model import Block
from stages.vit.moments import Moments
from stages.vit.repair import best_ridge, fit, relative_error
from stages.vit.sweep import Part, Visit

CORP_RIDGE = 1e-3
"""CORP's lambda for values, as a share of the inputs' mean variance."""


class AttentionCut:
    """Cuts the attention of one block in place; `facts` tells what was found."""

    def __init__(self, block: Block, options: PruneAttentionOptions, visit: Visit | None, *, index: int = 0) -> None:
        self.block, self.options, self.visit, self.index = block, options, visit, index
        self.facts: dict[str, Any] = {}
        # Scores of whole heads by weights or logits (snp, magnitude, random) are of the attention as it was.
        self._as_it_was = read(attention_of(block))
        self._logits: logits.LogitMoments | None = None

    @property
    def shape(self) -> AttentionShape:
        """Shape of the attention as it is now."""
        attention = attention_of(self.block)
        return AttentionShape(heads=attention.heads, d_qk=attention.d_qk, d_v=attention.d_v)

    def to(self, shape: AttentionShape) -> None:
        """Cut to a shape."""
        self._look_at_logits(shape)
        self._queries_and_keys(shape.d_qk)
        self._heads_and_values(shape.heads, shape.d_v)

    def _look_at_logits(self, shape: AttentionShape) -> None:
        """Look at queries and keys where the cut needs to know them. Before `_moments`, which moves the visit."""
        snp = self.options.method == "snp"
        needed = shape.d_qk < self.shape.d_qk or (snp and shape.heads < self.shape.heads)
        if needed and self.visit is not None and self.options.reads_images:
            visit, directions = self.visit, self.options.snp_directions if snp else None
            chunks = ((chunk, visit.weights(chunk)) for chunk in visit.inputs())
            self._logits = logits.gather(self.block, chunks, directions=directions)

    def _queries_and_keys(self, rank: int) -> None:
        """Cut q and k to so many dimensions."""
        if rank == self.shape.d_qk:
            return
        moments = self._logits
        parts = logits.narrowed(
            self._as_it_was,
            rank,
            method=self.options.method,
            moments=moments,
            per_image=self.options.per_image,
            seed=self.index,
        )
        if moments is not None:
            self.facts["logit_error"] = logits.relative_logit_error(moments, self._as_it_was, parts)
        write(attention_of(self.block), parts)

    def _heads_and_values(self, heads: int, rank: int) -> None:
        """Cut to so many heads with so many value dimensions, and fit proj if the options say so."""
        if self.options.repair == "none":
            if (heads, rank) != (self.shape.heads, self.shape.d_v):
                self._without_repair(heads, rank)
            return
        hold_out = self.options.ridge == "auto"
        fitted, held_out = self._moments(hold_out)
        columns = self._keep_heads(heads, joined(fitted, held_out))
        fitted, held_out = only(fitted, columns), held_out and only(held_out, columns)
        axes = self._value_axes(rank, joined(fitted, held_out))
        self._turn_values(axes)
        if not isinstance(attention_of(self.block).norm, nn.Identity):
            # Fewer heads changed its statistics, so look again at what leaves it. d_v is as it was.
            fitted, held_out = self._moments(hold_out)
        self._fit(fitted, held_out, block_diagonal(axes))
        if self.options.refine:
            assert self.visit is not None
            self.facts["refined"] = refine(
                self.visit, passes=self.options.refine, lr=self.options.refine_lr, take_back=self.options.take_back
            )

    def _moments(self, hold_out: bool) -> tuple[Moments, Moments | None]:
        assert self.visit is not None
        fitted, held_out = self.visit.moments(hold_out=hold_out, take_back=self.options.take_back, through_block=True)
        self.facts["tokens"] = fitted.tokens + (held_out.tokens if held_out else 0)
        refuse_few_tokens(self.facts["tokens"], len(fitted.gram), "inputs of proj")
        return fitted, held_out

    def _fit(self, fitted: Moments, held_out: Moments | None, axes: Tensor) -> None:
        """Fit proj on the inputs along `axes` [M, K]."""
        every = torch.arange(axes.shape[1], device=axes.device)
        seen = through(joined(fitted, held_out), axes)
        ridge = self.options.ridge
        if ridge == "auto":
            ridge = best_ridge(through(fitted, axes), through(held_out or fitted, axes), every)
        layer = fit(seen, every, ridge=ridge)
        self.facts |= {"relative_error": relative_error(seen, every, layer), "ridge": ridge}
        put_last_layer(self.block, Part.ATTENTION, layer)

    def _keep_heads(self, count: int, moments: Moments | None) -> Tensor:
        """Take heads out and return the columns of proj, as it was, that stay: [K]."""
        heads, width = self.shape.heads, self.shape.d_v
        kept = torch.arange(heads, device=attention_of(self.block).proj.weight.device)
        if count < heads:
            if self.options.method == "rotate":
                assert moments is not None
                kept = order_heads(moments, heads).picks[:count].sort().values
            else:
                kept = best(self._head_scores(moments)[None], count)[0]
            keep_heads(self.block, kept)
            self.facts["heads_kept"] = kept.tolist()
        return head_columns(kept, width)

    def _head_scores(self, moments: Moments | None) -> Tensor:
        """Importance of each head, [H], for the methods that leave dimensions as they are."""
        parts, method = self._as_it_was, self.options.method
        if method in ("energy", "corp"):
            assert moments is not None
            return _given_energy(moments, last_layer(self.block, Part.ATTENTION).weight, self.shape.heads).sum(dim=1)
        if method == "random":
            return self._random(1)[:, 0]
        diversity = self._value_scores(None)
        pairs = weight_pairs(parts.query, parts.key)
        if method == "snp":
            assert self._logits is not None
            assert self._logits.alignment is not None
            pairs = self._logits.alignment
        # Two kinds of scores: each by its own sum, as SNP puts layers together ("total sum of scores").
        shares = [kind.sum(dim=1) / kind.sum().clamp(min=TINY) for kind in (pairs, diversity)]
        return shares[0] + shares[1]

    def _value_scores(self, moments: Moments | None) -> Tensor:
        """Importance of each value dimension, [H, d]."""
        parts, method = read(attention_of(self.block)), self.options.method
        if method == "random":
            return self._random(self.shape.d_v)
        if method == "snp":
            return value_diversity(parts.value[:, :, :-1])
        columns = last_layer(self.block, Part.ATTENTION).weight.T.reshape(
            self.shape.heads, self.shape.d_v, -1
        )  # [H, d, D]
        if method == "magnitude" or moments is None:
            return weight_pairs(parts.value, columns)
        return _given_energy(moments, last_layer(self.block, Part.ATTENTION).weight, self.shape.heads)

    def _value_axes(self, rank: int, moments: Moments) -> Tensor:
        """Directions to keep of each head's output: [H, d, r]."""
        heads, width = self.shape.heads, self.shape.d_v
        if rank == width:
            return torch.eye(width, dtype=torch.float64, device=moments.gram.device).repeat(heads, 1, 1)
        if self.options.method == "rotate":
            return value_axes(moments, heads, rank)
        return _selection(best(self._value_scores(moments), rank), width)

    def _turn_values(self, axes: Tensor) -> None:
        attention = attention_of(self.block)
        parts = read(attention)
        write(attention, replace(parts, value=axes.mT @ parts.value))

    def _select_values(self, rank: int, moments: Moments | None) -> None:
        """Keep value dimensions as they are, with their columns of proj."""
        width = self.shape.d_v
        if rank == width:
            return
        kept = best(self._value_scores(moments), rank)
        attention = attention_of(self.block)
        parts = read(attention)
        columns = (torch.arange(len(kept), device=kept.device)[:, None] * width + kept).flatten()
        write(attention, replace(parts, value=narrow(parts.value, kept)))
        put_proj(attention, attention.proj.weight[:, columns], attention.proj.bias)

    def _without_repair(self, heads: int, rank: int) -> None:
        """Cut so that each head by itself stays as near as possible to what it gave."""
        moments = None
        if self.visit is not None and self.options.method not in ("magnitude", "random", "snp"):
            moments, _ = self._moments(hold_out=False)
        columns = self._keep_heads(heads, moments)
        if rank == self.shape.d_v:
            return
        if moments is not None and self.options.method in ("rotate", "corp"):
            self._compensate(rank, only(moments, columns))
        else:
            self._select_values(rank, None if moments is None else only(moments, columns))

    def _compensate(self, rank: int, moments: Moments) -> None:
        """Cut values and let proj make up for what is cut, head by head (rotate) or with a bias (corp)."""
        attention, as_it_is = attention_of(self.block), last_layer(self.block, Part.ATTENTION)
        count, every = self.shape.heads, torch.arange(self.shape.heads * rank, device=moments.gram.device)
        if self.options.method == "corp":
            axes = self._value_axes(rank, moments)
            given = replace(
                moments,
                cross=as_it_is.weight @ moments.gram,
                mean_out=as_it_is.weight @ moments.mean_in + as_it_is.bias,
            )
            self._turn_values(axes)
            put_last_layer(
                self.block, Part.ATTENTION, fit(through(given, block_diagonal(axes)), every, ridge=CORP_RIDGE)
            )
            return
        axes = own_axes(moments, as_it_is.weight, count, rank)
        seen = head_moments(moments, count)
        columns = attention.proj.weight.detach().double().T.reshape(count, self.shape.d_v, -1)  # [H, d, D]
        turned = torch.linalg.solve(axes.mT @ seen @ axes, axes.mT @ seen @ columns)  # [H, r, D]
        self._turn_values(axes)
        put_proj(attention, turned.flatten(0, 1).T, attention.proj.bias)

    def _random(self, width: int) -> Tensor:
        generator = torch.Generator().manual_seed(2**20 + self.index)
        return torch.rand(self.shape.heads, width, generator=generator).to(self._as_it_was.query)


def joined(fitted: Moments, held_out: Moments | None) -> Moments:
    """Return the moments of all tokens."""
    return fitted if held_out is None else deepcopy(fitted).absorb(held_out)


def only(moments: Moments, columns: Tensor) -> Moments:
    """Return the moments of some of the inputs, indices [K]."""
    return replace(
        moments,
        mean_in=moments.mean_in[columns],
        gram=moments.gram[columns][:, columns],
        cross=moments.cross[:, columns],
    )


def _given_energy(moments: Moments, weight: Tensor, heads: int) -> Tensor:
    """Energy that each value dimension gives to the stream, around its mean: [H, d]. weight: [D, M]."""
    return (moments.gram.diagonal() * weight.square().sum(dim=0)).reshape(heads, -1)


def _selection(kept: Tensor, width: int) -> Tensor:
    """Axes that leave the dimensions `kept` [H, r] as they are: [H, d, r]."""
    axes: Tensor = nn.functional.one_hot(kept, width).mT.double()
    return axes
