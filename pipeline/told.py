"""What `vitrim validate` tells of a measured engine, as plain figures by name: the same here and on a device."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stages.data.images import ImageSet, check_labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.report.record import LatencyFigures

SWEPT = (
    "batch",
    "latency_p50_ms",
    "latency_p90_ms",
    "latency_p99_ms",
    "throughput_ips",
    "requests",
    "joules_per_image",
    "throttled",
)
"""what is told of each batch size"""
NO_CLASS = -1
"""the answer of a row that is not finite"""


def latency_told(found: "LatencyFigures", *, batch: int, throughput_ips: float | None) -> dict[str, Any]:
    """Milliseconds, images per second, power and energy of one engine."""
    return {
        "batch": batch,
        "latency_p50_ms": round(found.p50, 3),
        "latency_p50_ms_ci95": [round(edge, 3) for edge in found.ci95],
        "latency_p90_ms": None if found.p90 is None else round(found.p90, 3),
        "latency_p99_ms": None if found.p99 is None else round(found.p99, 3),
        "throughput_ips": None if throughput_ips is None else round(throughput_ips, 2),
        "mean_power_w": {one.scope: round(one.mean_power_w, 2) for one in found.energy} or None,
        "joules_per_image": {one.scope: round(one.joules_per_image, 4) for one in found.energy} or None,
        "energy_note": found.energy_note,
        "peak_gpu_memory_bytes": found.peak_gpu_memory_bytes,
        "queries": found.queries,
        "processes": found.processes,
        "stable": found.stable,
        "throttled": list(found.throttled),
    }


def swept(told: dict[str, Any]) -> dict[str, Any]:
    """What is told of one batch size among several."""
    return {name: value for name, value in told.items() if name in SWEPT}


def check_labelled(images: ImageSet | None, output: dict[str, Any]) -> None:
    """Refuse labels that the model's classes do not hold, before anything runs. output: of the bundle's manifest."""
    if images is not None and images.labels is not None and output["kind"] == "logits":
        check_labels(images, output["size"])


def accuracy_told(images: ImageSet, answers: "NDArray[Any]", kind: str) -> tuple[dict[str, Any], Sequence[int] | None]:
    """How many were answered right, and the class of each; None of a model without classes."""
    told: dict[str, Any] = {"images": len(images), "images_digest": images.fingerprint}
    if kind != "logits":
        return {**told, "accuracy": "not measured: the model gives features"}, None
    import numpy as np

    top1 = classes_of(answers)
    if images.labels is None:
        return {**told, "accuracy": "not measured: the images have no labels"}, top1
    return {**told, "top1": round(float((np.array(top1) == images.labels).mean()), 4)}, top1


def classes_of(answers: "NDArray[Any]") -> list[int]:
    """The class that was answered for each image; NO_CLASS for a row that is not finite. answers: [N, classes]."""
    import numpy as np

    found: list[int] = np.where(np.isfinite(answers).all(axis=1), answers.argmax(axis=1), NO_CLASS).tolist()
    return found
