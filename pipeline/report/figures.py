"""How numbers and names are written, the same in every page, table and sentence.

Sensible digits, a unit that follows the size, a real minus sign, and names that cannot pretend to be something else.
"""

import math
import unicodedata
from collections.abc import Sequence

from pipeline.report.record import Latency, LatencyFigures, Report, Status

NOT_MEASURED = "not measured"
DASH = "\N{EN DASH}"
NO_BUDGET = "no budget was set"
STATUS_WORDS: dict[Status, str] = {
    "within": "within budget",
    "over": "over budget",
    "undecided": "undecided",
    "not_measured": NOT_MEASURED,
    "failed": "failed",
}
ROLES = ("baseline", "unpruned", "engine")
_METRICS = {
    "top1": "top-1",
    "zero_shot_top1": "zero-shot top-1",
    "knn_top1": "kNN top-1",
    "knn_agreement": "kNN agreement",
}
_RUNTIMES = {
    "onnxruntime": "ONNX Runtime",
    "onnxruntime_cuda": "ONNX Runtime CUDA",
    "onnxruntime_tensorrt": "ONNX Runtime TensorRT",
    "openvino": "OpenVINO",
    "openvino_gpu": "OpenVINO GPU",
    "openvino_npu": "OpenVINO NPU",
    "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT-RTX",
}
LONGEST_NAME = 300
"""characters of one text on a page"""
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""characters that change the order in which others are shown"""
BUDGET_NAMES = {
    "accuracy_drop_points": "accuracy drop",
    "latency_p50_ms": "latency p50",
    "latency_p99_ms": "latency p99",
    "latency_ratio": "latency ratio",
    "memory_bytes": "memory",
    "engine_bytes": "engine size",
    "parameters": "parameters",
    "macs": "MACs",
    "power_w": "power",
    "energy_mj": "energy per image",
}


def number(value: float, decimals: int) -> str:
    """Write with thousands separators and U+2212 for minus; what rounds to zero has no sign."""
    text = f"{value:,.{decimals}f}"
    if not text.strip("-0.,"):
        text = text.lstrip("-")
    return text.replace("-", "\N{MINUS SIGN}")


def decimals_of(value: float, digits: int) -> int:
    """Decimals that show `digits` significant digits; never negative."""
    return max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else digits - 1


def significant(value: float, digits: int = 3) -> str:
    """Write with so many significant digits; digits before the point are never dropped."""
    decimals = decimals_of(value, digits)
    return number(value, decimals_of(round(value, decimals), digits))  # 9.996 is 10.0, not 10.00


def milliseconds(value: float) -> str:
    """`4.31 ms`."""
    return f"{significant(value)} ms"


def milliseconds_change(before: float, after: float) -> str:
    """`8.4 → 4.3 ms`, both with the decimals that the smaller one needs."""
    decimals = decimals_of(min(before, after), 2)
    return f"{number(before, decimals)} → {number(after, decimals)} ms"


def percent(share: float) -> str:
    """`78.4 %` for 0.784; two decimals near 0 and 100 %, where they matter."""
    near = min(abs(share), abs(1 - share))
    return f"{number(100 * share, 2 if 0 < near < 0.01 else 1)} %"


def points(value: float, *, decimals: int = 1) -> str:
    """`0.6 points`: percentage points."""
    return f"{number(value, decimals)} points"


def bracket(interval: tuple[float, float], decimals: int) -> str:
    """`[0.2, 1.4]`."""
    return f"[{number(interval[0], decimals)}, {number(interval[1], decimals)}]"


def telling_decimals(values: Sequence[float], limit: float | None, *, least: int = 1) -> int:
    """Decimals with which no value that differs from the limit is written like it."""
    decimals = least
    while decimals < least + 3 and limit is not None:
        if all(number(value, decimals) != number(limit, decimals) for value in values if value != limit):
            break
        decimals += 1
    return decimals


def count(value: float, digits: int = 3) -> str:
    """`5.72 M`, `1.26 G`."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * factor:
            return f"{significant(value / factor, digits)} {letter}"
    return number(value, 0)


def size(value: float) -> str:
    """`22.9 MB`, decimal units."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= 0.9995 * factor:
            return f"{significant(value / factor)} {unit}"
    return f"{number(value, 0)} B"


def duration(seconds: float) -> str:
    """`0.4 s`, `42 s`, `9 min 12 s`, `1 h 4 min`."""
    if seconds < 9.95:
        return f"{number(seconds, 1)} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def relative_change(before: float, after: float) -> str:
    """`+48 %`, `+3.1 %`, `same`."""
    if before == after:
        return "same"
    if not before:
        return "new"
    change = 100 * (after - before) / before
    text = number(change, 0 if abs(change) >= 9.5 else 1)
    return f"{'+' if change > 0 else ''}{text} %"


def budget_value(name: str, value: float, *, near: float | None = None) -> str:
    """A value of one budget key in its own unit; `near`: a value that it must not be rounded onto."""
    if name == "accuracy_drop_points":
        return points(value, decimals=telling_decimals([value], near))
    if name == "latency_ratio":
        return number(value, telling_decimals([value], near, least=2))
    if name.endswith("_ms"):
        least = decimals_of(near if near else value, 3)
        return f"{number(value, telling_decimals([value], near, least=least))} ms"
    if name in ("parameters", "macs"):
        return count(value)
    if name in ("power_w", "energy_mj"):
        return f"{significant(value)} {'W' if name == 'power_w' else 'mJ'}"
    return size(value)


def budget_interval(name: str, interval: tuple[float, float], *, near: float) -> str:
    """The 95 % interval of one budget key, without the unit."""
    least = {"accuracy_drop_points": 1, "latency_ratio": 2}.get(name, decimals_of(near, 3))
    return bracket(interval, telling_decimals(interval, near, least=least))


def metric_name(metric: str) -> str:
    """What a metric is called in prose."""
    return _METRICS.get(metric, visible(metric))


def runtime_name(runtime: str) -> str:
    """What a runtime is called in prose."""
    return _RUNTIMES.get(runtime, visible(runtime))


def engine_name(report: Report, role: str) -> str:
    """What stands behind a role: `fp32 ONNX Runtime`, `int8 OpenVINO`."""
    target = report.target
    if role == "baseline":
        return f"fp32 {runtime_name(target.baseline_runtime)}" if target.baseline_runtime else "fp32"
    return f"{target.precision} {runtime_name(target.runtime)}"


def figures_of(latency: Latency, role: str) -> LatencyFigures:
    """The figures of one role."""
    found: LatencyFigures = getattr(latency, role)
    return found


def visible(text: str) -> str:
    """Write control characters and those that reorder text as escapes, so that a name shows what it holds."""
    return "".join(
        f"\\u{{{ord(letter):x}}}"
        if letter in _BIDI or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")
        else letter
        for letter in text
    )


def name(text: str) -> str:
    """`visible`, cut where it is too long to be read; report.json has all."""
    return visible(text) if len(text) <= LONGEST_NAME else f"{visible(text[:LONGEST_NAME])} …"


def capital(text: str) -> str:
    """Begin with a capital, where that is how the word is written (not in kNN)."""
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]


def visible_lines(text: str) -> str:
    """`visible` for text of several lines: line ends and tabs stay."""
    return "\n".join("\t".join(visible(part) for part in line.split("\t")) for line in text.split("\n"))
