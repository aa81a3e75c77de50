"""Rotate and truncate: new axes for the queries and keys of a head, so that few of them hold nearly all of the logits.

With second moments G_Q of the queries and G_K of the keys, and M the d x d matrix that stands between them (the
identity before, of rank r after), the squared error of the logits q . M k is tr[(M - I)' G_Q (M - I) G_K]. With roots
S_Q and S_K of the moments and S_Q S_K = R Sigma S', its minimum over matrices of rank r is

    q' = Sigma_r^(1/2) R_r' S_Q^-1 q        k' = Sigma_r^(1/2) S_r' S_K^-1 k        error = sum of sigma_j^2 over j > r

(The idea of CLOVER, arXiv 2411.17426, with the metric of the data.) A constant added to all keys of an image cancels
in the softmax, so keys are centred and their bias is of no use.

Pooled moments also count queries with keys of other images. `refine_per_image` lowers the error over the pairs of the
same image, sum over images i of tr[(M - I)' G_Q,i (M - I) G_K,i] with M = A B', by alternating least squares.

Shapes: I images, H heads, d width of a head, r width kept. All float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-9
"""Smallest eigenvalue of a moment matrix, as a share of the mean one: what lies below is rounding."""


@dataclass(frozen=True)
class Axes:
    """For each head: q' = query' q and k' = key' k, and what that loses."""

    query: Tensor
    """[H, d, d], columns by importance; the first r are the answer for rank r"""
    key: Tensor
    """[H, d, d]"""
    errors: Tensor
    """[H, d + 1], squared error of the logits with r axes; errors[:, 0] is their energy, errors[:, d] is 0"""


def best_axes(queries: Tensor, keys: Tensor) -> Axes:
    """Solve for all ranks at once. queries, keys: [H, d, d] second moments, the keys' centred."""
    root_q, inverse_q = _roots(queries)
    root_k, inverse_k = _roots(keys)
    left, sigma, right = torch.linalg.svd(root_q @ root_k)
    balance = sigma.sqrt()[:, None, :]
    energy = sigma.square()
    left_over = torch.cat([energy.flip(-1).cumsum(-1).flip(-1), energy.new_zeros(len(energy), 1)], dim=1)
    return Axes(inverse_q @ left * balance, inverse_k @ right.mT * balance, left_over)


def logit_error(queries: Tensor, keys: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Squared error of the logits when q . k becomes (a' q) . (b' k): [H].

    queries, keys: [I, H, d, d] second moments of each image, or [H, d, d] pooled; a, b: [H, d, r].
    """
    missed = a @ b.mT - torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
    each = (queries.to(a) @ missed * (missed @ keys.to(a))).sum(dim=(-2, -1))
    return each if each.ndim == 1 else each.sum(dim=0)


def refine_per_image(
    queries: Tensor, keys: Tensor, a: Tensor, b: Tensor, *, rounds: int = 2, steps: int = 4
) -> tuple[Tensor, Tensor]:
    """Lower the error over the pairs of each image. queries, keys: [I, H, d, d]; a, b: [H, d, r] to start from.

    rounds: of fitting a, then b. steps: of conjugate gradients in each fit, in coordinates where the pooled moments
    are the identity.
    """
    root_q, inverse_q = _roots(queries.double().mean(dim=0))
    root_k, inverse_k = _roots(keys.double().mean(dim=0))
    white_q = (inverse_q @ queries.double() @ inverse_q).to(queries)
    white_k = (inverse_k @ keys.double() @ inverse_k).to(keys)
    a, b, goal = (root_q @ a).to(queries), (root_k @ b).to(keys), (root_q @ root_k).to(queries)
    for _ in range(rounds):
        a, b = _fit_one_side(white_q, white_k, goal, a, b, steps=steps)
        b, a = _fit_one_side(white_k, white_q, goal.mT, b, a, steps=steps)
    # Any invertible r x r matrix may stand between the two; take the one that gives both the same spread.
    left_q, left_t = torch.linalg.qr(a.double())
    right_q, right_t = torch.linalg.qr(b.double())
    left, sigma, right = torch.linalg.svd(left_t @ right_t.mT)
    balance = sigma.sqrt()[:, None, :]
    return inverse_q @ left_q @ left * balance, inverse_k @ right_q @ right.mT * balance


def _fit_one_side(
    queries: Tensor, keys: Tensor, goal: Tensor, a: Tensor, b: Tensor, *, steps: int
) -> tuple[Tensor, Tensor]:
    """Fit a for a fixed b, by conjugate gradients: sum_i Q_i a (b' K_i b) = sum_i Q_i goal K_i b."""
    b, triangle = torch.linalg.qr(b)
    a = a @ triangle.mT
    inner = b.mT @ keys @ b  # [I, H, r, r]

    def normal(x: Tensor) -> Tensor:
        return (queries @ x @ inner).mean(dim=0)

    residual = (queries @ goal @ (keys @ b)).mean(dim=0) - normal(a)
    direction, power = residual, residual.square().sum(dim=(-2, -1), keepdim=True)
    for _ in range(steps):
        image = normal(direction)
        curvature = (direction * image).sum(dim=(-2, -1), keepdim=True)
        step = torch.where(curvature > 0, power / curvature, 0.0)
        a = a + step * direction
        residual = residual - step * image
        now = residual.square().sum(dim=(-2, -1), keepdim=True)
        direction = residual + torch.where(power > 0, now / power, 0.0) * direction
        power = now
    return a, b


def _roots(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric root of each matrix and its inverse: [H, d, d] each."""
    moments = moments.double()
    values, vectors = torch.linalg.eigh((moments + moments.mT) / 2)
    floor = FLOOR * values.mean(dim=-1, keepdim=True) + torch.finfo(values.dtype).tiny ** 0.5
    values = values.clamp(min=0) + floor
    roots = values.sqrt()[:, None, :]
    return vectors * roots @ vectors.mT, vectors / roots @ vectors.mT
