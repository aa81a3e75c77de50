"""The roofline: the least time that a query can take on a piece of hardware. What is faster was not measured right.

t >= sum over the layers of max(operations / peak, bytes / bandwidth) (Williams, Waterman, Patterson: Roofline, CACM
2009, https://doi.org/10.1145/1498765.1498785). What is below the floor is refused, so only what must happen is in it:
fused kernels never write activations to memory, and weights may stay in the cache from query to query. With both the
same sum is an estimate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from targets.errors import WorkerError

OPERATIONS_PER_MAC = 2
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "int8_dynamic": 1, "int8_weights": 1, "fp8": 1}
"""of one number, by precision"""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a query makes the hardware do: a whole model, or one of its layers."""

    macs: int
    """multiply-accumulates of all images of the query"""
    weight_bytes: int
    """read once"""
    activation_bytes: int = 0
    """written and read again, where nothing is fused"""


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Milliseconds of a query; None where there is no floor."""

    ms: float | None
    """no query can be faster"""
    estimate_ms: float | None
    """the same with all weights and activations through memory: what a fast runtime comes near to"""
    note: str
    """what bounds it, and what is not known"""


def work_of(*, macs: int, parameters: int, precision: str, batch: int, activations: int = 0) -> Work:
    """Work of one query from counts of a model or layer.

    macs, activations: of one image; activations: numbers that one operator writes and the next reads.
    """
    size = BYTES[precision]
    return Work(macs=macs * batch, weight_bytes=parameters * size, activation_bytes=2 * activations * batch * size)


def floor_of(
    work: Work | Sequence[Work],
    *,
    peak_ops_per_s: float | None,
    bandwidth_bytes_per_s: float | None,
    cache_bytes: int | None = None,
) -> Floor:
    """Least time of a query. Layers one by one bound it more closely than the whole model does.

    peak_ops_per_s: dense, of the precision; a MAC is two operations. cache_bytes: the largest cache that keeps weights;
    None: not known, so the weights may all stay there and their traffic is only in the estimate.
    """
    layers = [work] if isinstance(work, Work) else list(work)
    unknown = [
        word
        for word, value in (
            ("peak", peak_ops_per_s),
            ("bandwidth", bandwidth_bytes_per_s),
            ("size of the cache", cache_bytes),
        )
        if value is None
    ]
    lacking = f"not known: {', '.join(unknown)}" if unknown else ""
    if peak_ops_per_s is None and bandwidth_bytes_per_s is None:
        return Floor(ms=None, estimate_ms=None, note=f"no floor; {lacking}")
    compute = [OPERATIONS_PER_MAC * one.macs / peak_ops_per_s if peak_ops_per_s else 0.0 for one in layers]
    weights = [one.weight_bytes / bandwidth_bytes_per_s if bandwidth_bytes_per_s else 0.0 for one in layers]
    moved = [
        (one.weight_bytes + one.activation_bytes) / bandwidth_bytes_per_s if bandwidth_bytes_per_s else 0.0
        for one in layers
    ]
    # The best a cache can do is to hold weights of layers that wait for memory.
    waiting = sum(max(0.0, traffic - busy) for busy, traffic in zip(compute, weights, strict=True))
    if cache_bytes is None or bandwidth_bytes_per_s is None:
        waiting = 0.0
    else:
        waiting = max(0.0, waiting - cache_bytes / bandwidth_bytes_per_s)
    seconds = sum(compute) + waiting
    if seconds == 0:
        return Floor(ms=None, estimate_ms=1000 * sum(moved), note="; ".join(filter(None, ("no floor", lacking))))
    bound = "memory traffic" if waiting > sum(compute) else "computing"
    return Floor(
        ms=1000 * seconds,
        estimate_ms=1000 * sum(map(max, compute, moved)),
        note="; ".join(filter(None, (f"bound by {bound}", lacking))),
    )


def check_floor(name: str, measured_ms: float, floor_ms: float | None) -> None:
    """Raise WorkerError for a latency that the hardware cannot reach; without a floor nothing is checked."""
    if floor_ms is not None and measured_ms < floor_ms:
        raise WorkerError(
            f"engine {name!r} answered in {measured_ms:.4g} ms, this hardware needs {floor_ms:.4g} ms at least: the "
            "runtime does not wait for the result, the batch is another, or peak and bandwidth are wrong"
        )
