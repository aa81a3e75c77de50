"""Neurons that say nearly the same: how alike they are, groups of them, and one of each group in place of all.

Alike is what the layer behind cannot tell apart: the absolute correlation of two neurons over the calibration tokens
(Pearson), or the absolute cosine of their activations. A neuron that is minus another is as redundant as its copy,
because the fitted factor may be negative. Groups come from agglomerative clustering with complete linkage (scipy), so
that in a group cut at 0.98 every pair is at least 0.98 alike.

Of each group its medoid stays, and its columns of fc2 are fitted, not summed: h_j is replaced by the line a + b h_rep
that fits it best, with b = cov(h_j, h_rep) / var(h_rep) <= 1 for neurons of equal variance. A sum, which takes b = 1,
overshoots. Where fc2 is repaired anyhow, the repair takes the place of these lines: it may use all neurons for each.

Shapes: M neurons (what enters fc2), K groups, D residual width.
"""

from typing import Literal

import numpy as np
import torch
from scipy.cluster.hierarchy import linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from torch import Tensor

from stages.vit.moments import Moments
from stages.vit.repair import Fit

Measure = Literal["pearson", "cosine"]
ALIKE = 0.98
"""Two neurons above this are reported as saying the same."""
DEAD = 1e-12
"""Share of the mean variance below which a neuron is a constant, which the bias of fc2 can say instead."""


def similarity(moments: Moments, *, measure: Measure = "pearson") -> Tensor:
    """Absolute similarity of every two neurons, 0..1: [M, M], float64.

    A dead neuron counts as like every other one: nothing is lost where it goes.
    """
    products = moments.gram
    if measure == "cosine":
        products = products + moments.weight * torch.outer(moments.mean_in, moments.mean_in)
    lengths = products.diagonal()
    dead = lengths <= DEAD * lengths.mean()
    root = lengths.masked_fill(dead, 1.0).sqrt()
    alike = (products / root).div_(root[:, None]).abs_().clamp_(max=1.0)
    alike[dead] = 1.0
    alike[:, dead] = 1.0
    alike.fill_diagonal_(1.0)
    return alike


def count_alike(alike: Tensor, *, threshold: float = ALIKE) -> int:
    """Neurons that have another one more like them than the threshold."""
    others = alike - torch.eye(len(alike), dtype=alike.dtype, device=alike.device)
    return int((others > threshold).any(dim=1).sum())


def tree_of(alike: Tensor) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """Return scipy's linkage matrix: M - 1 mergers, the most alike first."""
    distances = (1.0 - alike).cpu().numpy()
    np.fill_diagonal(distances, 0.0)
    return np.asarray(linkage(squareform(distances, checks=False), method="complete"), dtype=np.float64)


def groups_at(tree: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", threshold: float) -> int:
    """Return the number of groups in which every pair is at least this alike."""
    return 1 + int(np.sum(tree[:, 2] > 1.0 - threshold))


def cut(tree: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", count: int) -> Tensor:
    """Return the group of every neuron when exactly so many are left: [M], numbers 0..count-1."""
    width = len(tree) + 1
    members = list(range(width))  # one neuron of every cluster of the tree
    members.extend(0 for _ in tree)
    for index, row in enumerate(tree):
        members[width + index] = members[int(row[0])]
    merged = [(members[int(row[0])], members[int(row[1])]) for row in tree[: width - count]]
    ends = np.array(merged, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(width, width))
    _, labels = connected_components(graph, directed=False)
    return torch.as_tensor(labels, dtype=torch.int64)


def medoids(alike: Tensor, groups: Tensor, energy: Tensor) -> Tensor:
    """Return of each group the neuron most like all others of it: indices [K]. energy: [M], decides between equals."""
    count = int(groups.max()) + 1
    groups = groups.to(alike.device)
    together = torch.nn.functional.one_hot(groups, count).to(alike.dtype)  # [M, K]
    mean = (alike @ together).gather(1, groups[:, None])[:, 0] / together.sum(dim=0)[groups]
    mean = mean.masked_fill(energy <= DEAD * energy.mean(), -1.0)  # a dead neuron stands for nobody
    # Twins are equally like each other: rounding must not decide, so compare in steps of 1e-9.
    rank = torch.argsort(energy, stable=True).argsort()
    score = (mean * 1e9).round() * len(alike) + rank
    best = score.new_full((count,), -torch.inf).scatter_reduce(0, groups, score, "amax")
    chosen = torch.nonzero(score == best[groups])[:, 0]
    return chosen[groups[chosen].argsort()]


def merge(layer: Fit, moments: Moments, kept: Tensor, groups: Tensor) -> Fit:
    """Return the layer for the medoids alone: each other neuron replaced by the best line through its medoid's values.

    layer: fc2 as it was, [D, M]. kept: medoids [K], the one of group i at place i. groups: [M].
    """
    groups = groups.to(kept.device)
    medoid = kept[groups]
    every = torch.arange(len(groups), device=kept.device)
    variance = moments.gram.diagonal()[medoid]
    slopes = torch.where(variance > 0, moments.gram[every, medoid] / variance.clamp(min=1e-300), 0.0)
    slopes[kept] = 1.0
    offsets = moments.mean_in - slopes * moments.mean_in[medoid]
    weight = layer.weight.new_zeros(len(layer.weight), len(kept)).index_add_(1, groups, layer.weight * slopes)
    return Fit(weight, layer.bias + layer.weight @ offsets, ridge=0.0)
