"""What is compared: a report, or what `vitrim validate --json` told, brought to the same figures."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pipeline.report.files import JSON, read_report
from pipeline.report.record import Report
from targets.bundle.card import SHARES, wilson
from targets.errors import InputError

ON_CPU = ("onnxruntime", "openvino")
"""runtimes whose times the processor alone decides"""
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number with its 95 % interval; None where there is none, and then nothing is ranked by it."""

    value: float
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One engine with what was measured of it."""

    letter: str
    name: str
    where: str
    """the target, or where the file lies"""
    engine: str
    """runtime and precision"""
    engine_sha256: str = ""
    model: str = ""
    batch: int | None = None
    machine: str = ""
    """what the times were measured on; empty where that is not told"""
    metric: str = ""
    accuracy: Figure | None = None
    baseline_accuracy: float | None = None
    drop_points: Figure | None = None
    images: int | None = None
    same_images: tuple[str, ...] = ()
    """what tells which images: two entries with one of these in common judged the same"""
    proxy: str = ""
    p50_ms: Figure | None = None
    baseline: str = ""
    """what the speed-up is over"""
    baseline_p50_ms: Figure | None = None
    speedup: Figure | None = None
    doubts: tuple[str, ...] = ()
    """why its times are not compared"""
    level: str = ""
    size_bytes: int | None = None
    params: int | None = None


def read_entries(paths: list[Path]) -> list[Entry]:
    """Read two or more results. A folder of several targets gives one entry for each; raises InputError."""
    found = [entry for path in paths for entry in _read(path)]
    if len(found) < 2:
        raise InputError(f"compare needs two results or more, got {len(found)}; name several reports or folders")
    if len(found) > 26:
        raise InputError(f"compare takes at most 26 results, got {len(found)}")
    return [replace(one, letter=chr(ord("A") + index)) for index, one in enumerate(found)]


def _read(path: Path) -> list[Entry]:
    if path.is_dir():
        files = [path / JSON] if (path / JSON).is_file() else sorted(path.glob(f"*/{JSON}"))
        if not files:
            raise InputError(f"no {JSON} in {str(path)!r} or one folder below; give what `vitrim build --output` wrote")
        return [_of_report(read_report(file)) for file in files]
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot read {str(path)!r}: {reason}; give a report or its folder") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is not JSON: {error}") from error
    if isinstance(data, dict) and "format" not in data and {"bundle", "latency_p50_ms"} <= data.keys():
        return [_of_validation(path, data)]
    return [_of_report(read_report(path))]


def _of_report(report: Report) -> Entry:
    accuracy, latency, target = report.accuracy, report.latency_ms, report.target
    entry = Entry(
        letter="",
        name=report.name,
        where=target.name,
        engine=f"{target.runtime} {target.precision}",
        engine_sha256=report.reproduce.get("engine_sha256", ""),
        model=report.model,
        batch=target.batch,
        size_bytes=report.size.bytes.after,
        params=report.size.params.after,
    )
    if accuracy is not None:
        entry = replace(
            entry,
            metric=accuracy.metric,
            accuracy=_share(accuracy.engine, accuracy.images, accuracy.metric),
            baseline_accuracy=accuracy.baseline,
            drop_points=Figure(value=accuracy.drop_points, interval=accuracy.drop_ci95),
            images=accuracy.images,
            same_images=_which_images(report),
            proxy=accuracy.proxy,
        )
    if latency is not None:
        doubts = [f"the machine throttled ({', '.join(latency.engine.throttled)})"] * bool(latency.engine.throttled)
        doubts += ["the warm-up did not settle"] * (not latency.engine.stable)
        entry = replace(
            entry,
            batch=latency.batch,
            machine=_machine(report),
            p50_ms=Figure(value=latency.engine.p50, interval=latency.engine.ci95),
            baseline=f"{report.model} in fp32 on {target.baseline_runtime or 'its first runtime'}",
            baseline_p50_ms=Figure(value=latency.baseline.p50, interval=latency.baseline.ci95),
            speedup=Figure(value=latency.speedup, interval=latency.speedup_ci95),
            doubts=tuple(doubts),
            level=latency.level,
        )
    return entry


def _of_validation(path: Path, data: dict[str, Any]) -> Entry:
    try:
        throttled = list(data.get("throttled", []))
        doubts = [f"the machine throttled ({', '.join(throttled)})"] * bool(throttled)
        doubts += ["the warm-up did not settle"] * (not data.get("stable", True))
        top1 = data.get("top1")
        return Entry(
            letter="",
            name=Path(str(data["bundle"])).parent.name or str(data["bundle"]),
            where=path.name,
            engine=f"{data['runtime']} {data['precision']}",
            engine_sha256=str(data.get("engine_sha256") or ""),
            batch=int(data["batch"]),
            machine=str(data.get("machine", "")),
            metric="top1" if top1 is not None else "",
            accuracy=None if top1 is None else _share(float(top1), int(data["images"]), "top1"),
            images=int(data["images"]) if "images" in data else None,
            same_images=tuple(filter(None, [data.get("images_digest")])),
            p50_ms=Figure(value=float(data["latency_p50_ms"]), interval=_pair(data.get("latency_p50_ms_ci95"))),
            doubts=tuple(doubts),
            level=str(data.get("level", "")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not what `vitrim validate --json` writes: {error!r}") from error


def _pair(value: Any) -> Interval | None:
    if value is None:
        return None
    low, high = value
    return float(low), float(high)


def _share(value: float, images: int, metric: str) -> Figure:
    return Figure(value=value, interval=wilson(value, images) if metric in (*SHARES, "agreement") else None)


def _which_images(report: Report) -> tuple[str, ...]:
    """The digest; for a report that has none, what its recipe says of them."""
    assert report.accuracy is not None
    found = [report.accuracy.images_digest]
    try:
        data = yaml.safe_load(report.reproduce.get("recipe", ""))["data"]["evaluate"]
        found.append(json.dumps([data, report.accuracy.images], sort_keys=True, default=str))
    except (yaml.YAMLError, KeyError, TypeError, RecursionError):
        pass  # no recipe, or one of another kind
    return tuple(one for one in found if one)


def _machine(report: Report) -> str:
    """Processor, and the GPUs where a runtime uses one."""
    device = report.conditions.get("device")
    facts = device if isinstance(device, dict) else {}
    names = [str(facts.get("cpu_model") or report.target.board)]
    if report.target.runtime not in ON_CPU:
        names += [str(one.get("name", "")) for one in facts.get("gpus") or () if isinstance(one, dict)]
    return ", ".join(filter(None, names))
