"""Top-1 of ViT-Tiny after prune_mlp, without any training of the whole model: method, repair and width.

    python benchmarks/mlp_pruning.py [--fit N] [--evaluate N] [--keep 0.5] [--resume]

Calibrates on the 1,000 images of imagenet_train1000, evaluates on the 1,100 of imagenet_val, with torch in fp32. The
stage's defaults were chosen on other images. Nothing is random but the order of tokens in `refine`, whose seed is the
block's number, and the neurons of `random`, with seed 0. similarity without repair replaces each neuron by the line
through its medoid's values; energy with parallel repair is near to what CORP does, and `corp` and `snp` are the rules
of these papers (rules_of_papers.py). Torch-Pruning (the peer: L2 norm and Taylor) cuts the same widths from timm's own
model; Taylor's gradients are those of the cross-entropy with the model's own answers on the calibration images. Of a
quarter of the width only a few variants are measured. `thresholds`: similarity merging down to whatever width has no
two neurons more alike than 0.98.
"""

import argparse
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.conditions import add_resume, measured_with, read_result, write_result
from benchmarks.real_vit import RealViT, told
from benchmarks.rules_of_papers import corp_mlps, snp_mlps
from stages.prune_mlp.options import PruneMlpOptions
from stages.prune_mlp.prune import prune

KEEP = (0.75, 0.5, 0.25)
VARIANTS: tuple[dict[str, Any], ...] = (
    {"method": "dgmr", "repair": "none"},
    {"method": "dgmr", "repair": "parallel"},
    {"method": "dgmr", "repair": "sequential", "refine": 0},
    {"method": "ols", "repair": "parallel"},
    {"method": "ols", "repair": "sequential", "refine": 0},
    {"method": "ols", "repair": "sequential", "refine": 1},
    {"method": "ols", "repair": "sequential", "refine": 3},
    {"method": "similarity", "repair": "none"},
    {"method": "similarity", "repair": "none", "measure": "cosine"},
    {"method": "similarity", "repair": "sequential", "refine": 0},
    {"method": "similarity", "repair": "sequential", "refine": 0, "measure": "cosine"},
    {"method": "energy", "repair": "parallel"},
    {"method": "energy", "repair": "sequential", "refine": 0},
    {"method": "l2", "repair": "none"},
    {"method": "l2", "repair": "sequential", "refine": 0},
    {"method": "random", "repair": "sequential", "refine": 0},
)
NOT_OF_A_QUARTER: tuple[dict[str, Any], ...] = (
    {"method": "dgmr", "repair": "parallel"},
    {"method": "ols", "repair": "parallel"},
    {"method": "similarity", "repair": "none"},
    {"method": "similarity", "repair": "none", "measure": "cosine"},
    {"method": "similarity", "repair": "sequential", "refine": 0, "measure": "cosine"},
    {"method": "l2", "repair": "none"},
)
"""variants that are not measured at a quarter of the width: nothing is left there to compare"""
THRESHOLDS: tuple[dict[str, Any], ...] = (
    {"method": "similarity", "threshold": 0.98, "repair": "none"},
    {"method": "similarity", "threshold": 0.98, "repair": "none", "measure": "cosine"},
    {"method": "similarity", "threshold": 0.98, "repair": "sequential", "refine": 0},
)


def answer_gradients(model: torch.nn.Module, batches: list[torch.Tensor]) -> None:
    """Leave in a model the gradients of the cross-entropy with its own answers, summed over images, for Taylor."""
    for batch in batches:
        logits = model(batch)
        torch.nn.functional.cross_entropy(logits, logits.argmax(dim=1), reduction="sum").backward()


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
            answer_gradients(model, real.calibration)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", type=int, help="calibrate on so many images: a try, which writes nothing")
    parser.add_argument("--evaluate", type=int, help="evaluate on so many images: a try, which writes nothing")
    parser.add_argument("--keep", type=float, nargs="+", default=list(KEEP), help="only these shares: a try")
    add_resume(parser)
    asked = parser.parse_args()
    a_try = asked.fit or asked.evaluate or asked.keep != list(KEEP)
    real = RealViT(fit=asked.fit, evaluate=asked.evaluate)
    before = read_result("mlp_pruning") if asked.resume else {}
    rows: list[dict[str, Any]] = before.get("rows", [])
    thresholds: list[dict[str, Any]] = before.get("thresholds", [])
    for keep in asked.keep:
        if any(row["keep"] == keep for row in rows):
            continue
        of_keep = []
        for variant in VARIANTS:
            if keep > 0.25 or variant not in NOT_OF_A_QUARTER:
                of_keep.append({"keep": keep, **measured(real, {"keep": keep, **variant})})
        of_keep += papers(real, keep) + peers(real, keep)
        rows += [row | measured_with() for row in of_keep]
        if keep == asked.keep[0]:
            thresholds = [measured(real, variant) for variant in THRESHOLDS]
        if not a_try:
            found = {**real.sets, "rows": rows, "thresholds": thresholds}
            print(f"wrote {write_result('mlp_pruning', found)}", flush=True)


def measured(real: RealViT, variant: dict[str, Any]) -> dict[str, Any]:
    """Prune by the stage; options as far as they tell variants apart, with figures."""
    options = PruneMlpOptions.model_validate({"images": None, **variant})
    started = time.perf_counter()
    pruned, spec, _ = prune(real.model, real.spec, options, real.calibration)
    seconds = time.perf_counter() - started
    row = {
        "method": options.method,
        "measure": options.measure if options.method == "similarity" else None,
        "repair": options.repair,
        "take_back": options.take_back if options.repair == "sequential" else None,
        "refine": options.refine if options.asks_to_refine else 0,
        **real.figures(pruned),
        "seconds": round(seconds, 1),
    }
    if options.threshold is not None:
        row |= {"threshold": options.threshold, "widths": [block.mlp_width for block in spec.blocks]}
    said = " ".join(f"{name} {value}" for name, value in variant.items() if name != "method")
    print(f"{options.method:<10} {said:<44} {told(row)}, {row['seconds']} s", flush=True)
    return row


def papers(real: RealViT, keep: float) -> list[dict[str, Any]]:
    """The same widths by the rules of papers that no stage offers."""
    rows = []
    for name, cut in (
        ("corp", lambda: corp_mlps(real.model, real.spec, keep, real.calibration)),
        ("snp", lambda: snp_mlps(real.model, real.spec, keep)),
    ):
        started = time.perf_counter()
        pruned, _ = cut()
        seconds = time.perf_counter() - started
        repair = "as in the paper" if name == "corp" else "none"
        rows.append(
            {"keep": keep, "method": name, "repair": repair, **real.figures(pruned), "seconds": round(seconds, 1)}
        )
        print(f"{name:<10} keep {keep:g} {'':<37} {told(rows[-1])}, {rows[-1]['seconds']} s", flush=True)
    return rows


if __name__ == "__main__":
    main()
