"""Top-1 of ViT-Tiny after prune_mlp, without any training: method, repair and width.

    python benchmarks/mlp_pruning.py

Calibrates on the 1,000 images of imagenet_train1000, evaluates on the 1,100 of imagenet_val, with torch in fp32.
"""

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks.conditions import assets, write_result
from pipeline.statistics import compare_answers
from stages.data.images import ImageSet, open_images
from stages.data.source import DataSource
from stages.prune_mlp.options import PruneMlpOptions
from stages.prune_mlp.prune import BATCH, prune
from stages.source.load import load_source
from stages.source.options import SourceOptions
from stages.stage import Role
from stages.vit.model import ViT
from targets.preprocess import Preprocess

KEEP = (0.75, 0.5)
VARIANTS = (("dgmr", "none"), ("dgmr", "parallel"), ("dgmr", "sequential"), ("ols", "parallel"), ("ols", "sequential"))


def answers(model: ViT, images: ImageSet, preprocess: Preprocess) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Logits [N, C] of every image, in order."""
    with torch.inference_mode():
        return np.concatenate([model(torch.as_tensor(batch)).numpy() for batch in images.batches(preprocess, BATCH)])


def main() -> None:
    """Measure every variant and write the result file."""
    folder = assets()
    weights = next((folder / "vit_tiny_patch16_224").glob("*.safetensors"))
    source = load_source(SourceOptions(timm="vit_tiny_patch16_224.augreg_in21k_ft_in1k", checkpoint=weights), seed=0)
    model = ViT(source.spec.model_dump(mode="json"))
    model.load_state_dict(source.state)
    model.eval()
    fit = open_images(DataSource(images=folder / "imagenet_train1000" / "images.zip"), Role.FIT, index_cache=None)
    evaluate = open_images(
        DataSource(images=folder / "imagenet_val" / "images.zip", labels=folder / "imagenet_val" / "labels.csv"),
        Role.EVALUATE,
        index_cache=None,
    )
    labels = evaluate.labels
    assert labels is not None
    preprocess = source.spec.preprocess
    before = answers(model, evaluate, preprocess)
    top1 = float((before.argmax(axis=1) == labels).mean())
    print(f"{'fp32, not pruned':<28} top-1 {100 * top1:5.1f} %", flush=True)
    rows = []
    for keep in KEEP:
        for method, repair in VARIANTS:
            options = PruneMlpOptions(method=method, repair=repair, keep=keep, images=None)
            started = time.perf_counter()
            pruned, _, _ = prune(model, source.spec, options, fit.batches(preprocess, BATCH))
            seconds = time.perf_counter() - started
            after = answers(pruned, evaluate, preprocess)
            compared = compare_answers(before, after, labels)
            rows.append(
                {
                    "keep": keep,
                    "method": method,
                    "repair": repair,
                    "top1": round(compared.engine, 4),
                    "drop_points": round(compared.drop_points, 2),
                    "drop_ci95": [round(edge, 2) for edge in compared.drop_ci95 or ()],
                    "agreement": round(compared.agreement or 0.0, 4),
                    "seconds": round(seconds, 1),
                    "parameters": sum(one.numel() for one in pruned.parameters()),
                }
            )
            row = rows[-1]
            print(
                f"{keep:4.0%} {method:<5} {repair:<16} top-1 {100 * row['top1']:5.1f} %, agreement "
                f"{100 * row['agreement']:5.1f} %, {row['seconds']} s",
                flush=True,
            )
    path = write_result(
        "mlp_pruning",
        {
            "model": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
            "calibration": {"images": len(fit), "set": "imagenet_train1000"},
            "evaluation": {"images": len(evaluate), "set": "imagenet_val"},
            "top1_source": round(top1, 4),
            "rows": rows,
        },
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
