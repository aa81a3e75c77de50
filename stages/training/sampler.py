"""Which images a training step sees: a pure function of (seed, step), so a resumed run sees what it would have seen."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def batch_at(step: int, *, count: int, batch_size: int, seed: int) -> list[tuple[int, int]]:
    """(image, epoch) of each place in the batch of this step.

    Each epoch shows every one of `count` images once, in an order of its own. Batches are always full: one that reaches
    the end of an epoch goes on in the next, also several times where a batch is larger than the set.
    """
    places = range(step * batch_size, (step + 1) * batch_size)
    return [(int(_order(count, seed, place // count)[place % count]), place // count) for place in places]


def steps_for(images_seen: int, *, batch_size: int) -> int:
    """The steps that show at least so many images."""
    return -(-images_seen // batch_size)


def held_out(count: int, *, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split `count` images into those to train on and those held out; at least one of each where there are two."""
    order = _order(count, seed, -1)
    size = min(max(1, round(share * count)), count - 1)
    return sorted(order[size:].tolist()), sorted(order[:size].tolist())


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch; epoch -1 is the split's."""
    return np.random.default_rng([seed, epoch + 1]).permutation(count)
