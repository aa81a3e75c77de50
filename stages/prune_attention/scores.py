"""Scores of dimensions as they are: which of them to keep when nothing is turned.

SNP: Shim, Yun and Choi, "SNP: Structured Neuron-level Pruning to Preserve Attention Scores", ECCV 2024,
https://arxiv.org/abs/2404.11630. Its number of leading directions and how images are put together are not published:
here it is an option, and the mean over images.

Shapes: B images, H heads, N tokens, d width of a head, r width kept, D residual width.
"""

import torch
from torch import Tensor

TINY = 1e-300


def best(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` highest scores of each head, in ascending order: [H, d] -> [H, count]."""
    # A stable sort: of equals the first stays, on every machine.
    chosen: Tensor = scores.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values
    return chosen


def pair_alignment(queries: Tensor, keys: Tensor, *, directions: int) -> Tensor:
    """SNP's score of each pair (q_i, k_i): its cosines with the leading directions of the logits, summed.

    queries, keys: [B, H, N, d]. Returns [B, H, d]: sum over j of |cos(sigma_j u_j v_j', q_i k_i')|, with the singular
    vectors of Q K'. sigma_j cancels in a cosine, which leaves |u_j . q_i| |v_j . k_i| of unit columns; and with thin
    QR of Q and K the d x d matrix R_q R_k' has all that is needed of the N x N logits.
    """
    triangle_q = torch.linalg.qr(queries, mode="r").R
    triangle_k = torch.linalg.qr(keys, mode="r").R
    left, _, right = torch.linalg.svd(triangle_q @ triangle_k.mT)
    # u_j . q_i = (Z_q a_j) . (Z_q R_q e_i) = (a_j' R_q)_i
    along_q = (left.mT @ triangle_q)[..., :directions, :] / _lengths(triangle_q)
    along_k = (right @ triangle_k)[..., :directions, :] / _lengths(triangle_k)
    alignment: Tensor = (along_q * along_k).abs().sum(dim=-2)
    return alignment


def value_diversity(values: Tensor) -> Tensor:
    """SNP's score of each value neuron: how unlike it is to those of all heads. values: weights [H, d, D] -> [H, d]."""
    rows = values.flatten(0, 1)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=TINY)
    scores: Tensor = (1 - (rows @ rows.T).abs()).sum(dim=1)
    return scores.reshape(values.shape[:2])


def weight_pairs(first: Tensor, second: Tensor) -> Tensor:
    """Product of the lengths of two rows that meet: [H, d, *] and [H, d, *] -> [H, d]."""
    product: Tensor = first.norm(dim=2) * second.norm(dim=2)
    return product


def _lengths(triangle: Tensor) -> Tensor:
    """Length of each column: [..., 1, d]."""
    lengths: Tensor = triangle.norm(dim=-2, keepdim=True)
    return lengths.clamp(min=TINY)
