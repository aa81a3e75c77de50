"""Queries and keys on calibration images, and fewer of their dimensions.

Everything is about one attention; the logits are q . k for all pairs of tokens of an image. What the softmax makes of
small errors of the logits is, to second order, their variance under its own probabilities: KL = 1/2 Var_p(error). So
keys count as much as they are attended to, on average over the image's queries, and are centred at that mean, because a
constant added to all keys cancels. Queries count as the tokens do in the repair, and so the one that the head reads
counts more.

Shapes: B images of a chunk, I images, H heads, N tokens, d width of a head (d_qk), r width kept.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.prune_attention.options import Method
from stages.prune_attention.rotate import best_axes, logit_error, refine_per_image
from stages.prune_attention.scores import best, pair_alignment, weight_pairs
from stages.prune_attention.weights import Projections, attention_of, narrow
from stages.vit.model import Block

PER_IMAGE = 256
"""At most so many images keep moments of their own; all of them count in the pooled ones."""
HELD_OUT = 5
"""One of so many of them judges whether the refinement on the others pays."""
SNP_IMAGES = 64
"""SNP scores pairs on so many images, as its authors do."""
CORP_RIDGE = 1e-3
"""CORP's lambda, as a share of the mean variance of the kept dimensions."""


@dataclass(frozen=True)
class LogitMoments:
    """Second moments of queries and of centred keys, weighted means over tokens."""

    queries: Tensor
    """[H, d, d], of all images, float64"""
    keys: Tensor
    """[H, d, d]"""
    image_queries: Tensor
    """[I, H, d, d], of the first PER_IMAGE images, each by itself"""
    image_keys: Tensor
    """[I, H, d, d]"""
    alignment: Tensor | None
    """[H, d], SNP's score of each pair, where asked for"""


def gather(block: Block, chunks: Iterable[tuple[Tensor, Tensor]], *, directions: int | None = None) -> LogitMoments:
    """Look at the queries and keys of a stream before the attention. directions: SNP's gamma.

    chunks: the stream [B, N, D], and weights of its tokens as queries [B, N].
    """
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    alignment: list[Tensor] = []
    pooled: tuple[Tensor, Tensor] | None = None
    images = 0
    for chunk, weights in chunks:
        q, k = queries_and_keys(block, chunk)
        share = (weights / weights.mean() / q.shape[2])[:, None, :, None]  # [B, 1, N, 1]
        # What a key's logit is off by counts as often as that key is looked at.
        seen = (q * attention_of(block).scale @ k.mT).softmax(dim=-1).mT @ (share / share.sum(dim=2, keepdim=True))
        centred = k - (seen * k).sum(dim=2, keepdim=True)
        own = (q * share).mT @ q, (centred * seen).mT @ centred  # [B, H, d, d] each
        sums = own[0].sum(dim=0, dtype=torch.float64), own[1].sum(dim=0, dtype=torch.float64)
        pooled = sums if pooled is None else (pooled[0] + sums[0], pooled[1] + sums[1])
        room = max(PER_IMAGE - images, 0)
        queries.append(own[0][:room])
        keys.append(own[1][:room])
        if directions is not None and images < SNP_IMAGES:
            few = slice(SNP_IMAGES - images)
            alignment.append(pair_alignment(q[few].double(), k[few].double(), directions=directions))
        images += len(chunk)
    if pooled is None:
        raise ValueError("no images to look at queries and keys on")
    return LogitMoments(
        pooled[0] / images,
        pooled[1] / images,
        torch.cat(queries),
        torch.cat(keys),
        torch.cat(alignment).mean(dim=0) if alignment else None,
    )


def queries_and_keys(block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return q and k as they meet, after norms and rotary positions: [B, H, N, d] each.

    x: the stream before the attention.
    """
    attention = attention_of(block)
    entering = x if block.post_norm or block.norm1 is None else block.norm1(x)
    rows = attention.heads * attention.d_qk
    both = torch.nn.functional.linear(
        entering,
        attention.qkv.weight[: 2 * rows],
        None if attention.qkv.bias is None else attention.qkv.bias[: 2 * rows],
    )
    q, k = (half.reshape(*x.shape[:2], attention.heads, attention.d_qk) for half in both.chunk(2, dim=-1))
    q, k = attention.q_norm(q).transpose(1, 2), attention.k_norm(k).transpose(1, 2)
    return (q, k) if attention.rope is None else (attention.turned(q), attention.turned(k))


def narrowed(
    parts: Projections, rank: int, *, method: Method, moments: LogitMoments | None, per_image: bool, seed: int
) -> Projections:
    """Return the projections with `rank` dimensions in each query and key; values as they are."""
    if method == "rotate":
        assert moments is not None  # the options say that it reads images
        axes = best_axes(moments.queries, moments.keys)
        a, b = axes.query[:, :, :rank], axes.key[:, :, :rank]
        if per_image:
            a, b = _finer(moments, a, b)
        return replace(parts, query=a.mT @ parts.query, key=b.mT @ parts.key)
    kept = best(_pair_scores(parts, method=method, moments=moments, seed=seed), rank)
    query, key = narrow(parts.query, kept), narrow(parts.key, kept)
    if method == "corp":
        assert moments is not None
        a, b = compensation(moments.queries, moments.keys, kept)
        query, key = a.mT @ query, b.mT @ key
    return replace(parts, query=query, key=key)


def _finer(moments: LogitMoments, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Refine axes on most images, and keep what is better on the others, head by head."""
    others = torch.arange(len(moments.image_queries), device=a.device) % HELD_OUT == HELD_OUT - 1
    if not bool(others.any()):
        return a, b
    finer = refine_per_image(moments.image_queries[~others], moments.image_keys[~others], a, b)
    judged = moments.image_queries[others], moments.image_keys[others]
    better = (logit_error(*judged, *finer) < logit_error(*judged, a, b))[:, None, None]  # false, too, where not finite
    return torch.where(better, finer[0], a), torch.where(better, finer[1], b)


def compensation(queries: Tensor, keys: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return a and b [H, r, r]: (a' q_S) . (b' k_S) is as near as possible to q . k (CORP, arXiv 2602.05243).

    queries, keys: [H, d, d] second moments; kept: indices S [H, r]. The matrix X = a b' between the kept dimensions
    solves G_Q X G_K + ridge X = C_Q C_K, in the eigenvectors of G_Q and G_K.
    """
    rows_q, rows_k = (torch.gather(m, 1, kept[..., None].expand(-1, -1, m.shape[2])) for m in (queries, keys))
    gram_q, gram_k = (torch.gather(m, 2, kept[:, None].expand(-1, m.shape[1], -1)) for m in (rows_q, rows_k))
    (values_q, vectors_q), (values_k, vectors_k) = torch.linalg.eigh(gram_q), torch.linalg.eigh(gram_k)
    spread = values_q[:, :, None] * values_k[:, None, :]
    ridge = CORP_RIDGE * spread.mean(dim=(1, 2), keepdim=True) + torch.finfo(spread.dtype).tiny
    # Towards the identity, not towards zero: X = I + M, and the ridge is on M.
    goal = vectors_q.mT @ (rows_q @ rows_k.mT - gram_q @ gram_k) @ vectors_k
    between = vectors_q @ (goal / (spread + ridge)) @ vectors_k.mT
    between = between + torch.eye(between.shape[1], dtype=between.dtype, device=between.device)
    left, sigma, right = torch.linalg.svd(between)
    balance = sigma.sqrt()[:, None, :]
    return left * balance, right.mT * balance


def relative_logit_error(moments: LogitMoments, before: Projections, after: Projections) -> float:
    """Squared error of the logits over their energy, all heads together, on the images that `moments` keeps."""
    a, b = _map(before.query, after.query), _map(before.key, after.key)
    d = before.query.shape[1]
    nothing = a.new_zeros(len(a), d, 1)
    missed = logit_error(moments.image_queries, moments.image_keys, a, b).sum()
    energy = logit_error(moments.image_queries, moments.image_keys, nothing, nothing).sum()
    return float(missed / energy) if energy else 0.0


def _map(before: Tensor, after: Tensor) -> Tensor:
    """Return m [H, d, r] with after = m' before, rows of weights [H, d, D + 1] and [H, r, D + 1]."""
    found: Tensor = torch.linalg.lstsq(before.mT.cpu(), after.mT.cpu(), driver="gelsd").solution.to(before)
    return found


def _pair_scores(parts: Projections, *, method: Method, moments: LogitMoments | None, seed: int) -> Tensor:
    """Importance of each pair of dimensions: [H, d]."""
    if method == "random":
        shape = parts.query.shape[:2]
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(parts.query)
    if method == "magnitude":
        return weight_pairs(parts.query, parts.key)
    assert moments is not None
    if method == "snp":
        assert moments.alignment is not None
        return moments.alignment
    return moments.queries.diagonal(dim1=1, dim2=2) * moments.keys.diagonal(dim1=1, dim2=2)
