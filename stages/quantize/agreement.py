"""How near a quantized graph's answers are to those of the fp32 graph, and which candidate to take.

Shapes: N images, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Answers = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Agreement:
    """A candidate against fp32, image by image."""

    scores: NDArray[np.float64]
    """[N]: logits: 1 where the top class is the same, else 0; any other output: cosine"""
    divergence: float
    """logits: mean Kullback-Leibler divergence in nats; any other output: mean squared error / mean square"""

    @property
    def share(self) -> float:
        """Mean score."""
        return float(self.scores.mean())


def compare(reference: Answers, candidate: Answers) -> Agreement:
    """Compare logits where there are any, else the first output. Answers that are not finite agree with nothing."""
    name = "logits" if "logits" in reference else next(iter(reference))
    right, got = (np.asarray(answers[name], np.float64) for answers in (reference, candidate))  # [N, ...]
    right, got = right.reshape(len(right), -1), got.reshape(len(got), -1)
    if not np.isfinite(got).all():
        return Agreement(np.zeros(len(right)), float(np.finfo(np.float64).max))
    if name == "logits":
        log_right, log_got = _log_softmax(right), _log_softmax(got)
        same = (right.argmax(axis=1) == got.argmax(axis=1)).astype(np.float64)
        return Agreement(same, float((np.exp(log_right) * (log_right - log_got)).sum(axis=1).mean()))
    norms = np.linalg.norm(right, axis=1) * np.linalg.norm(got, axis=1)
    cosine = (right * got).sum(axis=1) / np.maximum(norms, 1e-30)
    return Agreement(cosine, float(((got - right) ** 2).mean() / max(float((right**2).mean()), 1e-30)))


def choose(candidates: list[Agreement]) -> int:
    """Index of the candidate to take: the best share; among those within its standard error, the least divergence.

    The error is that of the difference on the same images (for shares of equal answers: McNemar's), so that a few
    images do not outvote the divergence, which sees all classes of all images. Whoever is nearer to the best than
    one within its error counts as within it too.
    """
    best = max(candidates, key=lambda one: one.share)
    lowest = min(one.share for one in candidates if _is_tie(best.scores - one.scores))
    tied = [index for index, one in enumerate(candidates) if one.share >= lowest]
    return min(tied, key=lambda index: candidates[index].divergence)


def _is_tie(difference: NDArray[np.float64]) -> bool:
    """Is the mean within its standard error of zero?"""
    error = np.sqrt((difference**2).sum()) / len(difference)
    return bool(difference.mean() <= error)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)  # [N, K]
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
