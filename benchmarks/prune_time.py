"""Seconds of prune + repair in units of one forward pass over the same calibration images.

    python benchmarks/prune_time.py [--quick]

Both run in this process on decoded images, in turns: a pass, the stage, a pass. Weights do not matter for time: the
models have random ones.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.conditions import write_result
from stages.prune_mlp.options import PruneMlpOptions
from stages.prune_mlp.prune import BATCH, prune
from stages.source.load import load_source
from stages.source.options import SourceOptions
from stages.vit.model import ViT

CASES: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("vit_tiny_patch16_224", 1024, {"keep": 0.75, "refine": 0}),
    ("vit_tiny_patch16_224", 1024, {"keep": 0.5, "refine": 0}),
    ("vit_tiny_patch16_224", 1024, {"keep": 0.5, "repair": "parallel"}),
    ("vit_tiny_patch16_224", 1024, {"keep": 0.5, "refine": 1}),
    ("vit_small_patch16_224", 256, {"keep": 0.75, "refine": 0}),
    ("vit_base_patch16_224", 256, {"keep": 0.5, "refine": 0}),
    ("vit_base_patch16_224", 256, {"keep": 0.5, "refine": 1}),
)
"""timm name, calibration images, options"""
REPEATS = 3
WARM_UP = 2
"""batches"""


def measure(name: str, images: int, options: PruneMlpOptions) -> dict[str, list[float]]:
    """Seconds of a forward pass (mean of the one before and the one after) and of the stage, REPEATS times."""
    source = load_source(SourceOptions(timm=name, pretrained=False), seed=0)
    model = ViT(source.spec.model_dump(mode="json"))
    model.load_state_dict(source.state)
    model.eval()
    size = (3, source.spec.preprocess.height, source.spec.preprocess.width)
    batches = list(torch.split(torch.randn(images, *size, generator=torch.Generator().manual_seed(0)), BATCH))

    def forward() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(batch)

    with torch.inference_mode():
        for batch in batches[:WARM_UP]:
            model(batch)
    prune(model, source.spec, options, batches[:WARM_UP])
    found: dict[str, list[float]] = {"forward_s": [], "prune_s": []}
    before = seconds(forward)
    for _ in range(REPEATS):
        found["prune_s"].append(seconds(lambda: prune(model, source.spec, options, batches)))
        after = seconds(forward)
        found["forward_s"].append((before + after) / 2)
        before = after
    return found


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Measure every case and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 images each, to try the script; writes nothing")
    quick = parser.parse_args().quick
    rows = []
    for name, images, asked in [(name, 64 if quick else images, asked) for name, images, asked in CASES]:
        options = PruneMlpOptions(images=None, **asked)
        found = measure(name, images, options)
        ratios = [prune / forward for prune, forward in zip(found["prune_s"], found["forward_s"], strict=True)]
        row = {
            "model": name,
            "images": images,
            "method": options.method,
            "repair": options.repair,
            "keep": options.keep,
            "refine": options.refine if options.asks_to_refine else 0,
            **{what: [round(one, 2) for one in values] for what, values in found.items()},
            "passes": [round(ratio, 2) for ratio in ratios],
            "passes_median": round(statistics.median(ratios), 2),
        }
        rows.append(row)
        print(f"{name:<22} {asked}: one pass {row['forward_s']} s, stage {row['prune_s']} s, {row['passes']} passes")
    if quick:
        return
    path = write_result("prune_time", {"torch_threads": torch.get_num_threads(), "batch": BATCH, "rows": rows})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
