"""Values and proj: which heads and which directions of their outputs to keep, by the error of the best proj behind.

All from second moments of what enters proj with what should leave it (stages/vit/moments.py), so that every choice has
its error without another look at images.

Heads: one after the other is taken out, each time the one whose loss the others make up for best (block-wise optimal
brain surgeon, Hassibi and Stork 1993: removing inputs h costs tr[W_h (G^-1)_hh^-1 W_h'] of squared error).

Directions: reduced-rank regression (Izenman 1975) of the targets on one head's output, given what the other heads
keep; a few rounds over the heads, none of which raises the error.

Shapes: H heads, d width of a head (d_v), M = H * d inputs of proj, r width kept, D targets.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.vit.moments import Moments

SELECTION_RIDGE = 1e-4
"""Share of the inputs' mean variance added in the selection: nearly dependent inputs then do not look useful."""
ROUNDS = 3


@dataclass(frozen=True)
class HeadOrder:
    """Heads, most important first; each prefix is an offer."""

    picks: Tensor
    """[H]"""
    errors: Tensor
    """[H + 1], squared error of the best proj on the first heads alone; errors[0] is the energy of the targets"""


def order_heads(moments: Moments, heads: int) -> HeadOrder:
    """Take heads out one by one, always the one that costs least."""
    gram = _ridged(moments.gram)
    inverse = torch.linalg.inv(gram)
    weight = moments.cross @ inverse
    left = list(range(heads))
    width = len(gram) // heads
    taken: list[int] = []
    error = max(moments.energy - float((weight * moments.cross).sum()), 0.0)
    errors = [error]
    while left:
        costs = []
        for head in left:
            own = slice(head * width, (head + 1) * width)
            costs.append(float((torch.linalg.solve(inverse[own, own], weight[:, own].T) * weight[:, own].T).sum()))
        place = min(range(len(left)), key=costs.__getitem__)
        head, error = left.pop(place), error + max(costs[place], 0.0)
        taken.append(head)
        errors.append(error)
        own = slice(head * width, (head + 1) * width)
        shift = torch.linalg.solve(inverse[own, own], inverse[own])  # [d, M]
        weight = weight - weight[:, own] @ shift
        inverse = inverse - inverse[:, own] @ shift
        # Exactly zero, not nearly: what is gone must not come back by rounding.
        inverse[own], inverse[:, own], weight[:, own] = 0.0, 0.0, 0.0
    device = gram.device
    return HeadOrder(
        torch.tensor(taken[::-1], device=device),
        torch.tensor(errors[::-1], dtype=torch.float64, device=device),
    )


def value_errors(moments: Moments, heads: int) -> Tensor:
    """Return what cutting one head alone to r directions costs: [H, d + 1] squared error; [:, d] is 0."""
    curves = []
    for root, coefficients in _given_the_others(moments, heads):
        sigma = torch.linalg.svdvals(coefficients @ root)
        energy = torch.cat([sigma, sigma.new_zeros(len(root) - len(sigma))]).square()
        curves.append(torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)]))
    return torch.stack(curves)


def value_axes(moments: Moments, heads: int, rank: int, *, rounds: int = ROUNDS) -> Tensor:
    """Return the directions to keep of each head's output, for a proj that is fitted again: [H, d, r], orthonormal."""
    start = []
    for root, coefficients in _given_the_others(moments, heads):
        start.append(_directions(root, coefficients, rank))
    axes = torch.stack(start)
    gram, width = _ridged(moments.gram), axes.shape[1]
    for _ in range(rounds if heads > 1 else 0):
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            others = block_diagonal(axes)[
                :, [i for i in range(heads * rank) if not head * rank <= i < (head + 1) * rank]
            ]
            between = others.T @ gram[:, own]  # [(H - 1) r, d]
            explained = torch.linalg.solve(others.T @ gram @ others, between)
            own_gram = gram[own, own] - between.T @ explained
            own_cross = moments.cross[:, own] - moments.cross @ others @ explained
            root = _root(own_gram)
            axes[head] = _directions(root, torch.linalg.solve(own_gram, own_cross.T).T, rank)
    return axes


def own_axes(moments: Moments, weight: Tensor, heads: int, rank: int) -> Tensor:
    """Return the directions that keep most of what each head by itself gives: [H, d, r], orthonormal (CLOVER).

    weight: [D, M], proj as it is. Moments count from zero here, not from the mean: no bias makes up for anything.
    """
    width = len(moments.gram) // heads
    axes = []
    for head, own_gram in enumerate(head_moments(moments, heads)):
        root = _root(_ridged(own_gram))
        axes.append(_directions(root, weight[:, head * width : (head + 1) * width], rank))
    return torch.stack(axes)


def head_moments(moments: Moments, heads: int) -> Tensor:
    """Return each head's second moments around zero, [H, d, d], weighted mean over tokens."""
    width = len(moments.gram) // heads
    whole = moments.gram / moments.weight + torch.outer(moments.mean_in, moments.mean_in)
    return torch.stack([whole[at : at + width, at : at + width] for at in range(0, len(whole), width)])


def through(moments: Moments, axes: Tensor) -> Moments:
    """Return the moments of inputs seen along other axes: [M, K]."""
    return replace(
        moments, mean_in=axes.T @ moments.mean_in, gram=axes.T @ moments.gram @ axes, cross=moments.cross @ axes
    )


def block_diagonal(axes: Tensor) -> Tensor:
    """[H, d, r] -> [H * d, H * r]."""
    count, width, rank = axes.shape
    whole = axes.new_zeros(count, width, count, rank)
    each = torch.arange(count, device=axes.device)
    whole[each, :, each] = axes
    return whole.reshape(count * width, count * rank)


def _given_the_others(moments: Moments, heads: int) -> list[tuple[Tensor, Tensor]]:
    """For each head: root of its moments that the other heads, all whole, do not explain [d, d]; its part of proj."""
    gram = _ridged(moments.gram)
    inverse = torch.linalg.inv(gram)
    weight = moments.cross @ inverse
    width = len(gram) // heads
    found = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        found.append((_root(torch.linalg.inv(inverse[own, own])), weight[:, own]))
    return found


def _directions(root: Tensor, coefficients: Tensor, rank: int) -> Tensor:
    """Return an orthonormal basis [d, r] of the inputs that a rank-r part of coefficients [D, d] reads."""
    _, _, right = torch.linalg.svd(coefficients @ root, full_matrices=False)
    if len(right) < rank:  # fewer targets than directions: any others will do
        right = torch.linalg.qr(right.T, mode="complete")[0].T
    basis, _ = torch.linalg.qr(torch.linalg.solve(root, right[:rank].T))
    found: Tensor = basis
    return found


def _root(moments: Tensor) -> Tensor:
    """Symmetric root [d, d]."""
    values, vectors = torch.linalg.eigh((moments + moments.T) / 2)
    values = values.clamp(min=1e-12 * float(values[-1].clamp(min=1e-200)))
    root: Tensor = vectors * values.sqrt() @ vectors.T
    return root


def _ridged(gram: Tensor) -> Tensor:
    gram = gram.clone()
    gram.diagonal().add_(SELECTION_RIDGE * gram.diagonal().mean() + 1e-200)
    return gram
