"""Seconds of prune + repair in units of one forward pass over the same calibration images.

    python benchmarks/prune_time.py

Both run in this process on decoded images, in turns. Weights do not matter for time: the models have random ones.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.conditions import write_result
from stages.prune_mlp.options import PruneMlpOptions
from stages.prune_mlp.prune import BATCH, prune
from stages.source.load import load_source
from stages.source.options import SourceOptions
from stages.vit.model import ViT

MODELS = {"vit_tiny_patch16_224": 1024, "vit_small_patch16_224": 512}
"""timm name -> calibration images"""
REPEATS = 3


def seconds_of_both(name: str, images: int) -> dict[str, list[float]]:
    """Seconds of a forward pass and of the stage, measured in turns; the first turn does not count."""
    source = load_source(SourceOptions(timm=name, pretrained=False), seed=0)
    model = ViT(source.spec.model_dump(mode="json"))
    model.load_state_dict(source.state)
    model.eval()
    size = (3, source.spec.preprocess.height, source.spec.preprocess.width)
    batches = list(torch.randn(images, *size, generator=torch.Generator().manual_seed(0)).split(BATCH))
    found: dict[str, list[float]] = {"forward_s": [], "prune_s": []}
    for turn in range(REPEATS + 1):
        started = time.perf_counter()
        with torch.inference_mode():
            for batch in batches:
                model(batch)
        between = time.perf_counter()
        prune(model, source.spec, PruneMlpOptions(keep=0.75, images=None), batches)
        if turn:
            found["forward_s"].append(between - started)
            found["prune_s"].append(time.perf_counter() - between)
    return found


def main() -> None:
    """Measure every model and write the result file."""
    rows = []
    for name, images in MODELS.items():
        found = seconds_of_both(name, images)
        ratios = [prune / forward for prune, forward in zip(found["prune_s"], found["forward_s"], strict=True)]
        rows.append(
            {
                "model": name,
                "images": images,
                "forward_s": [round(one, 2) for one in found["forward_s"]],
                "prune_s": [round(one, 2) for one in found["prune_s"]],
                "forward_passes_median": round(statistics.median(ratios), 2),
            }
        )
        row = rows[-1]
        print(
            f"{name:<24} one pass {row['forward_s']} s, stage {row['prune_s']} s: {row['forward_passes_median']} passes"
        )
    print(f"wrote {write_result('prune_time', {'options': 'ols, keep 0.75, sequential repair', 'rows': rows})}")


if __name__ == "__main__":
    main()
