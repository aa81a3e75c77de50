"""The roofline floor of an engine on its target: what no measurement may lie below."""

from collections.abc import Mapping
from typing import Any

from stages.graph.described import Described, macs_of, params_of
from targets.board import COMPUTES
from targets.measure.cpu_peak import cpu_peaks
from targets.measure.floor import Floor, floor_of, work_of
from targets.profile import TargetProfile

ON_CORES = ("onnxruntime", "openvino")
"""runtimes that compute on the processor's cores"""
MIB = 2**20


def floor_on(
    profile: TargetProfile,
    spec: Described,
    *,
    precision: str,
    batch: int,
    runtime: str = "",
    facts: Mapping[str, Any] | None = None,
) -> Floor:
    """Least time of a query, from the dense peak in this precision, the bandwidth and what a cache may keep.

    facts: of the device that measures: where a profile of a processor has no peak, its own highest one is computed. A
    quantized graph keeps some products in float; the peak of its precision makes the floor too low and never too
    high. Where neither peak nor bandwidth is known there is no floor.
    """
    board = profile.board
    bandwidth, cache = board.memory_bandwidth_gb_s, board.cache_mb
    return floor_of(
        work_of(macs=macs_of(spec), parameters=params_of(spec), precision=precision, batch=batch),
        peak_ops_per_s=_peak(profile, COMPUTES.get(precision, precision), runtime, facts),
        bandwidth_bytes_per_s=bandwidth.value * 1e9 if bandwidth else None,
        cache_bytes=int(cache.value * MIB) if cache else None,
    )


def _peak(profile: TargetProfile, precision: str, runtime: str, facts: Mapping[str, Any] | None) -> float | None:
    """Operations per second that a runtime cannot exceed in a precision; None: not known."""
    board = profile.board
    if board.kind == "cpu" and runtime not in (*ON_CORES, ""):
        return None  # the integrated GPU or NPU of a processor: the profile's peaks are its cores'
    rounded = any(choice.name == runtime and choice.options.get("tf32") for choice in profile.runtimes)
    # TF32 products run on the units that fp16 ones run on, at half their rate.
    told = board.peak_tera_ops_s.get("fp16" if rounded and precision == "fp32" else precision)  # type: ignore[call-overload]
    if told is not None:
        return float(told.value) * 1e12
    if board.kind == "cpu" and facts is not None:
        return cpu_peaks(dict(facts), profile.threads).get(precision)
    return None
