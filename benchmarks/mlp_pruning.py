"""Top-1 of ViT-Tiny after prune_mlp, without any training of the whole model: method, repair and width.

    python benchmarks/mlp_pruning.py

Calibrates on the 1,000 images of imagenet_train1000, evaluates on the 1,100 of imagenet_val, with torch in fp32. The
stage's defaults were chosen on other images. Nothing is random but the order of tokens in `refine`, whose seed is the
block's number, and the neurons of `random`, with seed 0. similarity without repair replaces each neuron by the line
through its medoid's values; energy with parallel repair is what CORP does (arXiv 2602.05243). Torch-Pruning (the peer:
L2 norm and Taylor) cuts the same widths from timm's own model; Taylor's gradients are those of the cross-entropy with
the model's own answers on the calibration images. Of a quarter of the width only a few variants are measured.
"""

import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.conditions import write_result
from benchmarks.real_vit import RealViT, told
from stages.prune_mlp.options import PruneMlpOptions
from stages.prune_mlp.prune import prune

KEEP = (0.75, 0.5, 0.25)
VARIANTS: tuple[dict[str, Any], ...] = (
    {"method": "dgmr", "repair": "none"},
    {"method": "dgmr", "repair": "parallel"},
    {"method": "dgmr", "repair": "sequential"},
    {"method": "ols", "repair": "parallel"},
    {"method": "ols", "repair": "sequential"},
    {"method": "ols", "repair": "sequential", "refine": 1},
    {"method": "ols", "repair": "sequential", "refine": 3},
    {"method": "similarity", "repair": "none"},
    {"method": "similarity", "repair": "sequential"},
    {"method": "energy", "repair": "parallel"},
    {"method": "energy", "repair": "sequential"},
    {"method": "l2", "repair": "none"},
    {"method": "l2", "repair": "sequential"},
    {"method": "random", "repair": "sequential"},
)
OF_A_QUARTER = (0, 4, 6, 8, 9, 13)
"""variants that are measured at a quarter of the width"""


def peers(real: RealViT, keep: float) -> list[dict[str, Any]]:
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
        model.load_state_dict(real.state)
        started = time.perf_counter()
        if name == "taylor":
            for batch in real.calibration:
                logits = model(batch)
                torch.nn.functional.cross_entropy(logits, logits.argmax(dim=1), reduction="sum").backward()
        narrowed = [block.mlp.fc1 for block in model.blocks]
        others = [one for one in model.modules() if not list(one.children()) and one not in narrowed]
        importance = torch_pruning.importance
        with warnings.catch_warnings(action="ignore"):
            torch_pruning.pruner.BasePruner(
                model,
                real.unseen[0][:1],
                importance=importance.GroupTaylorImportance()
                if name == "taylor"
                else importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=1 - keep,
                ignored_layers=[one for one in others if isinstance(one, torch.nn.Linear | torch.nn.LayerNorm)],
                round_to=8,
            ).step()
        assert {layer.out_features for layer in narrowed} == {round(keep * 768)}
        seconds = time.perf_counter() - started
        method = f"Torch-Pruning {version('torch-pruning')} {name}"
        rows.append(
            {"keep": keep, "method": method, "repair": "none", **real.figures(model), "seconds": round(seconds, 1)}
        )
        print(f"{keep:4.0%} {method:<35} {told(rows[-1])}", flush=True)
    return rows


def main() -> None:
    """Measure every variant and write the result file after each width."""
    real = RealViT()
    rows: list[dict[str, Any]] = []
    for keep in KEEP:
        for variant in VARIANTS if keep > 0.25 else [VARIANTS[index] for index in OF_A_QUARTER]:
            options = PruneMlpOptions(keep=keep, images=None, **variant)
            started = time.perf_counter()
            pruned, _, _ = prune(real.model, real.spec, options, real.calibration)
            seconds = time.perf_counter() - started
            row = {
                "keep": keep,
                "method": options.method,
                "measure": options.measure if options.method == "similarity" else None,
                "repair": options.repair,
                "take_back": options.take_back if options.repair == "sequential" else None,
                "refine": options.refine,
                **real.figures(pruned),
                "seconds": round(seconds, 1),
            }
            rows.append(row)
            extra = "".join(f" {name} {variant[name]:g}" for name in ("take_back", "refine") if name in variant)
            extra += f" {variant['measure']}" if "measure" in variant else ""
            print(
                f"{keep:4.0%} {options.method:<10} {options.repair + extra:<24} {told(row)}, {row['seconds']} s",
                flush=True,
            )
        rows.extend(peers(real, keep))
        print(f"wrote {write_result('mlp_pruning', {**real.sets, 'rows': rows})}", flush=True)


if __name__ == "__main__":
    main()
