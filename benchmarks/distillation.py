"""Top-1 of ViT-Tiny at equal latency after the same distillation: shapes of papers, ours uniform, ours allocated.

    python benchmarks/distillation.py [--images 20000] [--runtime onnxruntime] [--only NAME ...]

Every row is one `vitrim build`, without labels: calibrated on imagenet_train1000, distilled on it and on caltech101
in the same way, top-1 and paired drop on the 1,100 images of imagenet_val, latency of the engine interleaved with that
of the unpruned model. Half of every MLP goes: by DGMR without repair, as in the paper, and by
orthogonal least squares with repair. The ratio that this shape takes is then the budget of the searched shapes: all
rows have the same latency, but for what the search leaves unused. fp32, so that nothing but the shapes differs. The
agreement on `select` (300 images of imagenet_train1000) before and after the training says what it was worth.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.allocation import Steps, measure, recipe
from benchmarks.conditions import assets, write_result

UNIFORM: dict[str, dict[str, Any]] = {
    "dgmr": {"method": "dgmr", "keep": 0.5, "repair": "none"},
    "uniform ols": {"method": "ols", "keep": 0.5},
}
SEARCHED: dict[str, dict[str, Any]] = {
    "allocated": {},
    "allocated, sizes and merging": {"search": {"tokens": [0.7, 0.5], "sizes": [192, 160]}},
}
DISTILL: dict[str, Any] = {"lr": 3.0e-4, "crop_scale": [0.35, 1], "stop_when_flat": False}
"""the same length for every row"""


def main() -> None:
    """Build every row and write the result file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="that each student sees; they repeat as crops")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--only", nargs="*", help="only these rows, and no result file")
    parser.add_argument("--store", type=Path, help="keep finished steps here (default: a temporary folder)")
    arguments = parser.parse_args()
    distill = {"distill": {**DISTILL, "images_seen": arguments.images}}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="vitrim-bench-") as folder:
        store = arguments.store or Path(folder, "store")

        def row(name: str, steps: Steps, ratio: float | None) -> None:
            if arguments.only is not None and name not in arguments.only:
                return
            budget = {} if ratio is None else {"latency_ratio": ratio}
            content = with_training_images(recipe("distillation", [*steps, distill], arguments.runtime, budget))
            rows.append({**measure(name, ratio or 0.0, content, store), "budget_ratio": ratio})
            print(json.dumps(rows[-1]), flush=True)
            if arguments.only is None:
                told = {"runtime": arguments.runtime, "precision": "fp32", "images_seen": arguments.images}
                write_result("distillation", {**told, "distill": DISTILL, "rows": rows})

        for name, options in UNIFORM.items():
            row(name, [{"prune_mlp": options}], None)
        measured = [one["ratio"] for one in rows if one["name"] in UNIFORM]
        budget = round(sum(measured) / len(measured), 3) if measured else 0.75
        for name, options in SEARCHED.items():
            row(name, [{"prune": options}], budget)


def with_training_images(content: dict[str, Any]) -> dict[str, Any]:
    """Add the images to distil on: imagenet_train1000 but for what selects, and all of caltech101."""
    folder = assets()
    images = [str(folder / "imagenet_train1000" / "images.zip"), str(folder / "caltech101")]
    return {**content, "data": {**content["data"], "train": {"images": images, "share": [0, 0.7]}}}


if __name__ == "__main__":
    main()
