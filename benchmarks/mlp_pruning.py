"""Top-1 of ViT-Tiny after prune_mlp, without any training of the whole model: method, repair and width.

    python benchmarks/mlp_pruning.py

Calibrates on the 1,000 images of imagenet_train1000, evaluates on the 1,100 of imagenet_val, with torch in fp32. The
stage's defaults were chosen on other images. Nothing is random but the order of tokens in `refine`, whose seed is the
block's number, and the neurons of `random`, with seed 0. similarity without repair replaces each neuron by the line
through its medoid's values; energy with parallel repair is what CORP does (arXiv 2602.05243). Torch-Pruning (the peer:
L2 norm and Taylor) cuts the same widths from timm's own model; Taylor's gradients are those of the cross-entropy with
the model's own answers on the calibration images.
"""

import sys
import time
import warnings
from importlib.metadata import version
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
from stages.prune_mlp.options import PruneMlpOptions
from stages.prune_mlp.prune import BATCH, prune
from stages.source.load import load_source
from stages.source.options import SourceOptions
from stages.stage import Role
from stages.vit.model import ViT
from targets.preprocess import Preprocess

KEEP = (0.75, 0.5, 0.25)
VARIANTS: tuple[dict[str, Any], ...] = (
    {"method": "dgmr", "repair": "none"},
    {"method": "dgmr", "repair": "parallel"},
    {"method": "dgmr", "repair": "sequential"},
    {"method": "ols", "repair": "parallel"},
    {"method": "ols", "repair": "sequential", "take_back": 1.0},
    {"method": "ols", "repair": "sequential"},
    {"method": "ols", "repair": "sequential", "refine": 1},
    {"method": "similarity", "repair": "none"},
    {"method": "similarity", "repair": "sequential"},
    {"method": "similarity", "measure": "cosine", "repair": "sequential"},
    {"method": "energy", "repair": "none"},
    {"method": "energy", "repair": "parallel"},
    {"method": "energy", "repair": "sequential"},
    {"method": "l2", "repair": "none"},
    {"method": "l2", "repair": "sequential"},
    {"method": "random", "repair": "none"},
    {"method": "random", "repair": "sequential"},
)


def decoded(images: ImageSet, preprocess: Preprocess) -> list[torch.Tensor]:
    """Batches of images, decoded and normalised once for all variants."""
    return [torch.as_tensor(batch) for batch in images.batches(preprocess, BATCH)]


def answers(model: ViT, batches: list[torch.Tensor]) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Logits [N, C] of every image, in order."""
    with torch.inference_mode():
        return np.concatenate([model(batch).numpy() for batch in batches])


def share_ci95(share: float, images: int) -> list[float]:
    """Wilson's 95 % interval of a share of images."""
    interval = binomtest(round(share * images), images).proportion_ci(method="wilson")
    return [round(interval.low, 4), round(interval.high, 4)]


def peers(
    keep: float,
    state: dict[str, torch.Tensor],
    calibration: list[torch.Tensor],
    unseen: list[torch.Tensor],
    before: "np.ndarray[Any, np.dtype[np.float32]]",
    labels: Any,
) -> list[dict[str, Any]]:
    """The same widths by Torch-Pruning, which repairs nothing; no rows where it is not installed."""
    try:
        import torch_pruning
    except ImportError:
        print("torch-pruning is not installed: no peers", flush=True)
        return []
    import timm

    rows = []
    for name in ("l2", "taylor"):
        model = timm.create_model("vit_tiny_patch16_224").eval()
        model.load_state_dict(state)
        started = time.perf_counter()
        if name == "taylor":
            for batch in calibration:
                logits = model(batch)
                torch.nn.functional.cross_entropy(logits, logits.argmax(dim=1), reduction="sum").backward()
        narrowed = [block.mlp.fc1 for block in model.blocks]
        others = [one for one in model.modules() if not list(one.children()) and one not in narrowed]
        importance = torch_pruning.importance
        with warnings.catch_warnings(action="ignore"):
            torch_pruning.pruner.BasePruner(
                model,
                unseen[0][:1],
                importance=importance.GroupTaylorImportance()
                if name == "taylor"
                else importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=1 - keep,
                ignored_layers=[one for one in others if isinstance(one, torch.nn.Linear | torch.nn.LayerNorm)],
                round_to=8,
            ).step()
        assert {layer.out_features for layer in narrowed} == {round(keep * 768)}
        compared = compare_answers(before, answers(model, unseen), labels)
        rows.append(
            {
                "keep": keep,
                "method": f"Torch-Pruning {version('torch-pruning')} {name}",
                "repair": "none",
                "top1": round(compared.engine, 4),
                "top1_ci95": share_ci95(compared.engine, len(before)),
                "drop_points": round(compared.drop_points, 2),
                "drop_ci95": [round(edge, 2) for edge in compared.drop_ci95 or ()],
                "agreement": round(compared.agreement or 0.0, 4),
                "agreement_ci95": share_ci95(compared.agreement or 0.0, len(before)),
                "seconds": round(time.perf_counter() - started, 1),
                "parameters": sum(one.numel() for one in model.parameters()),
            }
        )
        print(f"{keep:4.0%} {rows[-1]['method']:<35} top-1 {100 * compared.engine:5.1f} %", flush=True)
    return rows


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
    calibration, unseen = (decoded(images, source.spec.preprocess) for images in (fit, evaluate))
    before = answers(model, unseen)
    top1 = float((before.argmax(axis=1) == labels).mean())
    print(f"{'fp32, not pruned':<34} top-1 {100 * top1:5.1f} %", flush=True)
    rows: list[dict[str, Any]] = []
    for keep in KEEP:
        for variant in VARIANTS:
            options = PruneMlpOptions(keep=keep, images=None, **variant)
            started = time.perf_counter()
            pruned, _, _ = prune(model, source.spec, options, calibration)
            seconds = time.perf_counter() - started
            compared = compare_answers(before, answers(pruned, unseen), labels)
            agreement = compared.agreement or 0.0
            low, high = share_ci95(agreement, len(evaluate))
            row = {
                "keep": keep,
                "method": options.method,
                "measure": options.measure if options.method == "similarity" else None,
                "repair": options.repair,
                "take_back": options.take_back if options.repair == "sequential" else None,
                "refine": options.refine,
                "top1": round(compared.engine, 4),
                "top1_ci95": share_ci95(compared.engine, len(evaluate)),
                "drop_points": round(compared.drop_points, 2),
                "drop_ci95": [round(edge, 2) for edge in compared.drop_ci95 or ()],
                "agreement": round(agreement, 4),
                "agreement_ci95": [low, high],
                "seconds": round(seconds, 1),
                "parameters": sum(one.numel() for one in pruned.parameters()),
            }
            rows.append(row)
            extra = "".join(f" {name} {variant[name]:g}" for name in ("take_back", "refine") if name in variant)
            extra += f" {variant['measure']}" if "measure" in variant else ""
            print(
                f"{keep:4.0%} {options.method:<10} {options.repair + extra:<24} top-1 {100 * compared.engine:5.1f} %, "
                f"agreement {100 * agreement:5.1f} % ({100 * low:.1f} to {100 * high:.1f}), {row['seconds']} s",
                flush=True,
            )
        rows.extend(peers(keep, source.state, calibration, unseen, before, labels))
    path = write_result(
        "mlp_pruning",
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
