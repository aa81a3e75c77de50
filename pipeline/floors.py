"""The roofline floor of an engine on its target: what no measurement may lie below."""

from stages.graph.described import Described, macs_of, params_of
from targets.measure.floor import Floor, floor_of, work_of
from targets.profile import TargetProfile


def floor_on(profile: TargetProfile, spec: Described, *, precision: str, batch: int) -> Floor:
    """Least time of a query, from the profile's dense peak in this precision and its bandwidth.

    A quantized graph keeps some products in float; the peak of its precision makes the floor too low and never too
    high. Where the profile tells neither peak nor bandwidth there is no floor.
    """
    board = profile.board
    peak, bandwidth = board.peak_tera_ops_s.get(precision), board.memory_bandwidth_gb_s  # type: ignore[call-overload]
    return floor_of(
        work_of(macs=macs_of(spec), parameters=params_of(spec), precision=precision, batch=batch),
        peak_ops_per_s=peak.value * 1e12 if peak else None,
        bandwidth_bytes_per_s=bandwidth.value * 1e9 if bandwidth else None,
    )
