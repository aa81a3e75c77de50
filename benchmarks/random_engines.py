"""Engines of models with random weights, timed against each other: shapes decide the time, weights do not."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from stages.export.stage import ExportOptions, export
from stages.stage import StageContext
from stages.vit.counts import count_macs, count_params
from stages.vit.files import save_model
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from targets.measure.latency import EngineUnderTest, Procedure, compare
from targets.measure.percentiles import p50_ci95, p50_of, paired_ratio
from targets.worker import Worker

P50 = Procedure(
    processes=5,
    queries=120,
    seconds=3,
    blocks=20,
    warmup_queries=10,
    warmup_seconds=1,
    warmup_limit_seconds=10,
)
"""enough for medians of five processes; no tails"""
QUICK = Procedure(
    processes=2, queries=16, seconds=0, blocks=4, warmup_queries=3, warmup_seconds=0.1, warmup_limit_seconds=1
)


def engine_of(spec: ViTSpec, place: Path, runtime: str, threads: int | None) -> Path:
    """Random weights, exported in fp32 at batch 1 with parity, built for a runtime."""
    torch.manual_seed(0)
    save_model(place / "model", spec, ViT(spec.model_dump(mode="json")).state_dict())
    for name in ("graph", "engine"):
        (place / name).mkdir()
    context = StageContext(
        input=place / "model", source=place / "model", output=place / "graph", scratch=place, images={}
    )
    export(ExportOptions(batch=1), context)
    with Worker(threads=threads) as worker:
        worker.build(
            place / "graph" / "model.onnx",
            place / "engine",
            runtime=runtime,
            precision="fp32",
            batch=1,
            threads=threads,
        )
    return place / "engine"


def time_shapes(
    group: str, specs: Mapping[str, ViTSpec], *, runtime: str, procedure: Procedure = P50, threads: int | None = None
) -> list[dict[str, Any]]:
    """Time models of one input size, interleaved; the first is what the others are compared with."""
    first = next(iter(specs))
    with TemporaryDirectory(prefix="vitrim-bench-") as place:
        engines = {
            name: EngineUnderTest(folder=engine_of(spec, Path(place, str(index)), runtime, threads), batch=1)
            for index, (name, spec) in enumerate(specs.items())
        }
        inputs = np.random.default_rng(0).standard_normal((16, *specs[first].input_shape), dtype=np.float32)
        measured = compare(engines, inputs, level="quick", procedure=procedure).measurements
    rows = []
    for name, spec in specs.items():
        speedup, interval = paired_ratio(measured[first], measured[name])
        rows.append(
            {
                "group": group,
                "shape": name,
                "runtime": runtime,
                "params": count_params(spec),
                "macs": count_macs(spec),
                "macs_share": round(count_macs(spec) / count_macs(specs[first]), 4),
                "p50_ms": round(p50_of(measured[name]), 3),
                "p50_ci95": [round(edge, 3) for edge in p50_ci95(measured[name])],
                "times_faster": round(speedup, 3),
                "times_faster_ci95": [round(edge, 3) for edge in interval],
                "flags": list(measured[name].flags),
            }
        )
        print(
            f"{group:<8} {runtime:<12} {name:<38} MACs {100 * rows[-1]['macs_share']:5.1f} %, "
            f"p50 {rows[-1]['p50_ms']:8.2f} ms, {speedup:.2f}x {rows[-1]['times_faster_ci95']}",
            flush=True,
        )
    return rows
