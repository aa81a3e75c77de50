"""OpenVINO's latency and throughput hints on one CPU: images per second with all requests at work, random weights.

    python benchmarks/openvino_hints.py [--precisions fp32 bf16] [--streams 2] [--rounds 12] [--quick]

DeiT-T at batch 1, one engine for each hint, each in a process of its own. Both are loaded at once and take turns in
blocks, the other stopped meanwhile, in changing order; the ratio is the median over the rounds of blocks of the same
moment. Of each also the latency of one query alone. No profile's engine is judged by this.
"""

import argparse
import random
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks.conditions import write_result
from benchmarks.published_shapes import PUBLISHED
from stages.export.stage import ExportOptions, export
from stages.stage import StageContext
from stages.vit.files import save_model
from stages.vit.model import ViT
from targets.facts import usable_cores
from targets.worker import Worker

HINTS = ("latency", "throughput")
BLOCK = 48
"""queries"""


def graph(place: Path) -> Path:
    """DeiT-T with random weights as fp32 ONNX."""
    spec = PUBLISHED["snp_deit_tiny"].source_spec
    torch.manual_seed(0)
    save_model(place / "model", spec, ViT(spec.model_dump(mode="json")).state_dict())
    (place / "graph").mkdir()
    model = place / "model"
    export(
        ExportOptions(batch=1),
        StageContext(input=model, source=model, output=place / "graph", scratch=place, images={}),
    )
    return place / "graph" / "model.onnx"


def measure(
    model: Path, place: Path, *, precision: str, streams: int | None, rounds: int, block: int
) -> dict[str, Any]:
    """Both hints in turns; images per second, milliseconds, and what is in force."""
    threads = usable_cores()
    inputs = np.random.default_rng(0).standard_normal((16, 3, 224, 224), dtype=np.float32)
    rates: dict[str, list[float]] = {hint: [] for hint in HINTS}
    alone: dict[str, list[float]] = {hint: [] for hint in HINTS}
    told: dict[str, Any] = {}
    with ExitStack() as alive:
        workers = {}
        for hint in HINTS:
            workers[hint] = worker = alive.enter_context(Worker(threads))
            folder = place / f"{precision}-{hint}"
            folder.mkdir()
            more = {"hint": hint, "streams": streams if hint == "throughput" else None}
            worker.build(model, folder, runtime="openvino", precision=precision, batch=1, threads=threads, more=more)
            loaded = worker.load(folder, threads=threads)
            told[hint] = {"requests": loaded.requests, "num_streams": loaded.facts["num_streams"]}
            worker.rotate(inputs, batch=1)
            worker.warm_up(seconds=1, queries=10, limit_seconds=10)
            worker.pause()
        for index in range(rounds):
            for hint in random.Random(index).sample(HINTS, len(HINTS)):
                worker = workers[hint]
                worker.resume()
                rates[hint].append(block / worker.saturate(block) * 1e9)
                alone[hint] += [one / 1e6 for one in worker.measure(max(4, block // 8))]
                worker.pause()
        for worker in workers.values():
            worker.resume()
    ratios = [fast / slow for fast, slow in zip(rates["throughput"], rates["latency"], strict=True)]
    low, high = np.quantile(ratios, [0.25, 0.75])
    return {
        "precision": precision,
        "threads": threads,
        "in_force": told,
        "images_per_second": {hint: round(statistics.median(found), 1) for hint, found in rates.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(float(low), 3), round(float(high), 3)],
        "one_query_ms": {hint: round(statistics.median(found), 2) for hint, found in alone.items()},
        "rates": {hint: [round(one, 2) for one in found] for hint, found in rates.items()},
    }


def main() -> None:
    """Measure each precision and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--streams", type=int, help="of the throughput hint; default: OpenVINO chooses")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="few queries, to try the script; writes nothing")
    asked = parser.parse_args()
    rows = []
    with TemporaryDirectory(prefix="vitrim-bench-") as folder:
        model = graph(Path(folder))
        for precision in asked.precisions:
            row = measure(
                model,
                Path(folder),
                precision=precision,
                streams=asked.streams,
                rounds=2 if asked.quick else asked.rounds,
                block=8 if asked.quick else BLOCK,
            )
            rows.append(row)
            print({name: value for name, value in row.items() if name != "rates"})
    if not asked.quick:
        write_result("openvino_hints", {"model": "DeiT-T, random weights", "batch": 1, "block": BLOCK, "rows": rows})


if __name__ == "__main__":
    main()
