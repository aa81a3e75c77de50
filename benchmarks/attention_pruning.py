"""Top-1 of ViT-Tiny after prune_attention, without any training of the whole model: method, repair and shape.

    python benchmarks/attention_pruning.py [--fit N] [--evaluate N] [--only rotate] [--shapes "QK 50 %"]

Calibrates on 500 images of imagenet_train1000, evaluates on the 1,100 of imagenet_val, with torch in fp32: top-1,
agreement with the source and the mean divergence KL(source, pruned) of the answers. With fewer images or methods it is
a try, and writes no result file. Nothing is random but `method: random` and the order of images in `refine`, whose
seed is the block's number.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from scipy.stats import binomtest

from benchmarks.conditions import assets, write_result
from pipeline.statistics import compare_answers
from stages.data.images import ImageSet, open_images
from stages.data.source import DataSource
from stages.prune_attention.options import PruneAttentionOptions
from stages.prune_attention.prune import BATCH, prune
from stages.source.load import load_source
from stages.source.options import SourceOptions
from stages.stage import Role
from stages.vit.model import ViT
from targets.preprocess import Preprocess

SHAPES: dict[str, dict[str, Any]] = {
    "QK 75 %": {"qk": 0.75},
    "QK 50 %": {"qk": 0.5},
    "QK 25 %": {"qk": 0.25},
    "V 75 %": {"v": 0.75},
    "V 50 %": {"v": 0.5},
    "heads 2 of 3": {"heads": 2},
    "QK 50 %, V 75 %": {"qk": 0.5, "v": 0.75},
}
METHODS = ("rotate", "corp", "energy", "snp", "magnitude", "random")
REPAIRS: tuple[dict[str, Any], ...] = ({"repair": "none"}, {"repair": "sequential"})
ROTATE_ONLY: tuple[dict[str, Any], ...] = (
    {"repair": "parallel"},
    {"repair": "sequential", "take_back": 0.0},
    {"repair": "sequential", "take_back": 0.7},
    {"repair": "sequential", "refine": 1},
)
POOLED = {"repair": "none", "per_image": False}
"""for rotate only, where q and k are cut"""
ROTATE_SHAPES = ("V 75 %", "QK 50 %, V 75 %")
"""shapes that are measured for rotate only"""
FULL_SHAPES = ("QK 50 %", "V 50 %", "QK 50 %, V 75 %")
"""shapes on which all options of rotate are measured"""
FIT = 500
"""every second image of imagenet_train1000"""


def decoded(images: ImageSet, preprocess: Preprocess) -> list[torch.Tensor]:
    """Batches of images, decoded and normalised once for all variants."""
    return [torch.as_tensor(batch) for batch in images.batches(preprocess, BATCH)]


def answers(model: ViT, batches: list[torch.Tensor]) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Logits [N, C] of every image, in order."""
    with torch.inference_mode():
        return np.concatenate([model(batch).numpy() for batch in batches])


def divergence(before: Any, after: Any) -> float:
    """Mean KL(source, pruned) in nats."""
    p, q = (torch.as_tensor(one).double().log_softmax(dim=1) for one in (before, after))
    return float((p.exp() * (p - q)).sum(dim=1).mean())


def share_ci95(share: float, images: int) -> list[float]:
    """Wilson's 95 % interval of a share of images."""
    interval = binomtest(round(share * images), images).proportion_ci(method="wilson")
    return [round(interval.low, 4), round(interval.high, 4)]


def variants(name: str, methods: list[str]) -> list[dict[str, Any]]:
    """Options of all rows of one shape."""
    shape = SHAPES[name]
    asked = [method for method in methods if method == "rotate" or name not in ROTATE_SHAPES]
    rows = [{"method": method, **repair} for method in asked for repair in REPAIRS]
    if "rotate" in asked and name in FULL_SHAPES:
        rows += [{"method": "rotate", **more} for more in ROTATE_ONLY]
        if "qk" in shape:
            rows.append({"method": "rotate", **POOLED})
    return [{**shape, **row} for row in rows]


def some(images: ImageSet, count: int | None) -> ImageSet:
    """Return every n-th image, `count` of them; all for None."""
    return images if count is None else images.subset([i * len(images) // count for i in range(count)])


def main() -> None:
    """Measure every variant and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", type=int, default=FIT)
    parser.add_argument("--evaluate", type=int)
    parser.add_argument("--only", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    asked = parser.parse_args()
    folder = assets()
    weights = next((folder / "vit_tiny_patch16_224").glob("*.safetensors"))
    source = load_source(SourceOptions(timm="vit_tiny_patch16_224.augreg_in21k_ft_in1k", checkpoint=weights), seed=0)
    model = ViT(source.spec.model_dump(mode="json"))
    model.load_state_dict(source.state)
    model.eval()
    fit = some(
        open_images(DataSource(images=folder / "imagenet_train1000" / "images.zip"), Role.FIT, index_cache=None),
        asked.fit,
    )
    evaluate = some(
        open_images(
            DataSource(images=folder / "imagenet_val" / "images.zip", labels=folder / "imagenet_val" / "labels.csv"),
            Role.EVALUATE,
            index_cache=None,
        ),
        asked.evaluate,
    )
    labels = evaluate.labels
    assert labels is not None
    calibration, unseen = (decoded(images, source.spec.preprocess) for images in (fit, evaluate))
    before = answers(model, unseen)
    top1 = float((before.argmax(axis=1) == labels).mean())
    print(f"{'fp32, not pruned':<44} top-1 {100 * top1:5.1f} %", flush=True)
    rows: list[dict[str, Any]] = []
    for name in asked.shapes:
        for given in variants(name, asked.only):
            options = PruneAttentionOptions.model_validate({"images": None, **given})
            started = time.perf_counter()
            pruned, _, _ = prune(model, source.spec, options, calibration if options.reads_images else None)
            seconds = time.perf_counter() - started
            after = answers(pruned, unseen)
            compared = compare_answers(before, after, labels)
            agreement = compared.agreement or 0.0
            row = {
                "shape": name,
                "method": options.method,
                "repair": options.repair,
                "per_image": options.per_image if options.method == "rotate" and options.qk else None,
                "take_back": options.take_back if options.repair == "sequential" else None,
                "refine": options.refine,
                "top1": round(compared.engine, 4),
                "top1_ci95": share_ci95(compared.engine, len(evaluate)),
                "drop_points": round(compared.drop_points, 2),
                "drop_ci95": [round(edge, 2) for edge in compared.drop_ci95 or ()],
                "agreement": round(agreement, 4),
                "agreement_ci95": share_ci95(agreement, len(evaluate)),
                "kl_nats": round(divergence(before, after), 5),
                "seconds": round(seconds, 1),
                "parameters": sum(one.numel() for one in pruned.parameters()),
            }
            rows.append(row)
            extra = "".join(
                f" {word} {given[word]:g}" for word in ("take_back", "refine", "per_image") if word in given
            )
            print(
                f"{name:<16} {options.method:<9} {options.repair + extra:<24} top-1 {100 * compared.engine:5.1f} %, "
                f"agreement {100 * agreement:5.1f} %, KL {row['kl_nats']:.4f}, {row['seconds']} s",
                flush=True,
            )
    if asked.fit != FIT or asked.evaluate or asked.only != list(METHODS) or asked.shapes != list(SHAPES):
        print("a try, not written")
        return
    path = write_result(
        "attention_pruning",
        {
            "model": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
            "calibration": {"images": len(fit), "set": "imagenet_train1000"},
            "evaluation": {"images": len(evaluate), "set": "imagenet_val"},
            "seed": 0,
            "torch_threads": torch.get_num_threads(),
            "top1_source": round(top1, 4),
            "rows": rows,
        },
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
