"""Top-1 of ViT-Tiny after prune_attention, without any training of the whole model: method, repair and shape.

    python benchmarks/attention_pruning.py [--fit N] [--evaluate N] [--only rotate] [--shapes "QK 50 %"]

Calibrates on 500 images of imagenet_train1000, evaluates on the 1,100 of imagenet_val, with torch in fp32: top-1,
agreement with the source and the mean divergence KL(source, pruned) of the answers. With fewer images or methods it is
a try, and writes no result file. Nothing is random but `method: random` and the order of images in `refine`, whose
seed is the block's number. Torch-Pruning (the peer: L2 norm and Taylor) takes whole heads out of timm's own model; it
repairs nothing, and cannot cut queries and keys apart from values.
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
from benchmarks.mlp_pruning import answer_gradients
from benchmarks.real_vit import RealViT, told
from stages.prune_attention.options import PruneAttentionOptions
from stages.prune_attention.prune import prune

HEADS = "heads 2 of 3"
SHAPES: dict[str, dict[str, Any]] = {
    "QK 75 %": {"qk": 0.75},
    "QK 50 %": {"qk": 0.5},
    "QK 25 %": {"qk": 0.25},
    "V 50 %": {"v": 0.5},
    HEADS: {"heads": 2},
    "QK 50 %, V 75 %": {"qk": 0.5, "v": 0.75},
}
METHODS: dict[str, tuple[str, ...]] = {
    "rotate": ("none", "sequential"),
    "corp": ("none", "sequential"),
    "energy": ("sequential",),
    "snp": ("none", "sequential"),
    "magnitude": ("none", "sequential"),
    "random": ("sequential",),
}
"""with the repairs that are measured"""
ROTATE_ONLY: tuple[dict[str, Any], ...] = (
    {"repair": "parallel"},
    {"repair": "sequential", "take_back": 0.0},
    {"repair": "sequential", "refine": 1},
)
POOLED = {"repair": "none", "per_image": False}
"""for rotate only, where q and k are cut"""
ROTATE_SHAPES = ("QK 50 %, V 75 %",)
"""shapes that are measured for rotate only"""
FULL_SHAPES = ("QK 50 %", "V 50 %", "QK 50 %, V 75 %")
"""shapes on which all options of rotate are measured"""
FIT = 500
"""every second image of imagenet_train1000"""


def variants(name: str, methods: list[str]) -> list[dict[str, Any]]:
    """Options of all rows of one shape."""
    shape = SHAPES[name]
    asked = [method for method in methods if method == "rotate" or name not in ROTATE_SHAPES]
    rows: list[dict[str, Any]] = [
        {"method": method, "repair": repair} for method in asked for repair in METHODS[method]
    ]
    if "rotate" in asked and name in FULL_SHAPES:
        rows += [{"method": "rotate", **more} for more in ROTATE_ONLY]
        if "qk" in shape:
            rows.append({"method": "rotate", **POOLED})
    return [{**shape, **row} for row in rows]


def peers(real: RealViT) -> list[dict[str, Any]]:
    """Two of three heads by Torch-Pruning; no rows where it is not installed."""
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
        attentions = [block.attn for block in model.blocks]
        kept = {id(layer) for attention in attentions for layer in (attention.qkv, attention.proj)}
        leaves = (one for one in model.modules() if not list(one.children()) and id(one) not in kept)
        importance = torch_pruning.importance
        with warnings.catch_warnings(action="ignore"):
            pruner = torch_pruning.pruner.BasePruner(
                model,
                real.unseen[0][:1],
                importance=importance.GroupTaylorImportance()
                if name == "taylor"
                else importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=0.0,
                num_heads={attention.qkv: attention.num_heads for attention in attentions},
                prune_num_heads=True,
                head_pruning_ratio=1 / 3,
                ignored_layers=[one for one in leaves if isinstance(one, torch.nn.Linear | torch.nn.LayerNorm)],
            )
            pruner.step()
        for attention in attentions:
            attention.num_heads = pruner.num_heads[attention.qkv]
            attention.attn_dim = attention.num_heads * attention.head_dim
            assert attention.num_heads == SHAPES[HEADS]["heads"]
            assert attention.proj.in_features == attention.attn_dim
        seconds = time.perf_counter() - started
        method = f"Torch-Pruning {version('torch-pruning')} {name}"
        rows.append(
            {"shape": HEADS, "method": method, "repair": "none", **real.figures(model), "seconds": round(seconds, 1)}
        )
        print(f"{HEADS:<16} {method:<34} {told(rows[-1])}", flush=True)
    return rows


def main() -> None:
    """Measure every variant and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", type=int, default=FIT)
    parser.add_argument("--evaluate", type=int)
    parser.add_argument("--only", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    add_resume(parser)
    asked = parser.parse_args()
    real = RealViT(fit=asked.fit, evaluate=asked.evaluate)
    a_try = asked.fit != FIT or asked.evaluate or asked.only != list(METHODS) or asked.shapes != list(SHAPES)
    rows: list[dict[str, Any]] = read_result("attention_pruning").get("rows", []) if asked.resume else []
    for name in asked.shapes:
        if any(row["shape"] == name for row in rows):
            continue
        of_shape = []
        for given in variants(name, asked.only):
            options = PruneAttentionOptions.model_validate({"images": None, **given})
            started = time.perf_counter()
            pruned, _, _ = prune(real.model, real.spec, options, real.calibration if options.reads_images else None)
            seconds = time.perf_counter() - started
            row = {
                "shape": name,
                "method": options.method,
                "repair": options.repair,
                "per_image": options.per_image if options.method == "rotate" and options.qk else None,
                "take_back": options.take_back if options.repair == "sequential" else None,
                "refine": options.refine,
                **real.figures(pruned),
                "seconds": round(seconds, 1),
            }
            of_shape.append(row)
            extra = "".join(
                f" {word} {given[word]:g}" for word in ("take_back", "refine", "per_image") if word in given
            )
            print(
                f"{name:<16} {options.method:<9} {options.repair + extra:<24} {told(row)}, {row['seconds']} s",
                flush=True,
            )
        if name == HEADS:
            of_shape += peers(real)
        rows += [row | measured_with() for row in of_shape]
        if not a_try:
            print(f"wrote {write_result('attention_pruning', {**real.sets, 'rows': rows})}", flush=True)


if __name__ == "__main__":
    main()
