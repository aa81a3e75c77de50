"""Top-1 of ViT-Tiny against the latency of its engine, without training: shapes found by the search, and uniform ones.

    python benchmarks/allocation.py [--runtime onnxruntime] [--ratios 0.85 0.7 0.55] [--only allocated "uniform ols"]

`allocated` is one `vitrim build` for each ratio as its budget, calibrated on 700 images of imagenet_train1000, chosen
by the 300 others: top-1 and paired drop of the engine on the 1,100 images of imagenet_val, its latency interleaved with
that of the unpruned one. `allocated, sizes and merging` may read smaller pictures and merge tokens, too. The uniform
rows cut every MLP, or every MLP and every head, to the same share: ours, and the rules of papers, with the repair that
each of them has (none, or `+ repair` where it is ours), L2 and Taylor through Torch-Pruning where it is installed, all
calibrated on 700 images, too; their top-1 is torch's, and the latency that of engines of these shapes with random
weights, interleaved with the unpruned one: shapes decide it. fp32, so that nothing but the shapes differs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import yaml

from benchmarks.conditions import ROOT, assets, write_result
from benchmarks.mlp_pruning import peers
from benchmarks.random_engines import time_shapes
from benchmarks.real_vit import RealViT
from benchmarks.rules_of_papers import corp_mlps, snp_mlps
from stages.prune_attention.options import PruneAttentionOptions
from stages.prune_attention.prune import prune as prune_attention
from stages.prune_mlp.options import PruneMlpOptions
from stages.prune_mlp.prune import prune as prune_mlp
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec

SHARES = (0.75, 0.5)
FIT = 700
Steps = list[dict[str, Any]]
Cut = tuple[dict[str, Any], dict[str, Any] | None]
"""options of prune_mlp and, where heads are cut, of prune_attention, without the share"""

UNIFORM: dict[str, Cut] = {
    "uniform ols": ({"method": "ols"}, None),
    "uniform ols and rotate": ({"method": "ols"}, {"method": "rotate"}),
    "dgmr": ({"method": "dgmr", "repair": "none"}, None),
    "dgmr + repair": ({"method": "dgmr"}, None),
    "l2": ({"method": "l2", "repair": "none"}, None),
    "random + repair": ({"method": "random"}, {"method": "random"}),
    "corp": ({"method": "corp"}, {"method": "corp", "repair": "none"}),
    "snp": ({"method": "snp"}, {"method": "snp", "repair": "none"}),
    "snp + repair": ({"method": "ols"}, {"method": "snp"}),
}
"""corp and snp as methods of MLPs: benchmarks/rules_of_papers.py"""
PEERS = "Torch-Pruning"
"""of MLPs alone, l2 and taylor"""
AUTO: dict[str, dict[str, Any]] = {
    "allocated": {},
    "allocated, sizes and merging": {"search": {"tokens": [0.7, 0.5], "sizes": [192, 160]}},
}


def recipe(name: str, steps: Steps, runtime: str, budget: dict[str, float]) -> dict[str, Any]:
    """The recipe of one row."""
    folder = assets()
    weights = next((folder / "vit_tiny_patch16_224").glob("*.safetensors"))
    images = str(folder / "imagenet_train1000" / "images.zip")
    val = folder / "imagenet_val"
    return {
        "vitrim": 1,
        "name": name,
        "model": {"timm": "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "checkpoint": str(weights)},
        "data": {
            "fit": {"images": images, "share": [0, 0.7]},
            "select": {"images": images, "share": [0.7, 1]},
            "evaluate": {"images": str(val / "images.zip"), "labels": str(val / "labels.csv")},
        },
        "steps": steps,
        "runtimes": [runtime],
        "budget": budget,
    }


def main() -> None:
    """Build every row and write the result file after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--ratios", type=float, nargs="*", default=[0.85, 0.7, 0.55])
    parser.add_argument("--only", nargs="*", help="only these rows: a try, which writes nothing")
    parser.add_argument("--fit", type=int, default=FIT, help="images that uniform rows calibrate on, with --only")
    parser.add_argument("--evaluate", type=int, help="images that uniform rows are evaluated on, with --only")
    parser.add_argument("--store", type=Path, help="keep finished steps here (default: a temporary folder)")
    arguments = parser.parse_args()
    if arguments.only is None and (arguments.fit != FIT or arguments.evaluate):
        parser.error("--fit and --evaluate go with --only: with fewer images it is a try")
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)
        if arguments.only is None:
            write_result("allocation", {"runtime": arguments.runtime, "precision": "fp32", "rows": rows})

    def wanted(name: str) -> bool:
        return arguments.only is None or name in arguments.only

    with tempfile.TemporaryDirectory(prefix="vitrim-bench-") as folder:
        store = arguments.store or Path(folder, "store")
        for name, options in AUTO.items():
            for ratio in arguments.ratios if wanted(name) else ():
                content = recipe("allocation", [{"prune": options}], arguments.runtime, {"latency_ratio": ratio})
                keep(measure(name, ratio, content, store))
    names = [name for name in (*UNIFORM, PEERS) if wanted(name)]
    for row in uniform(names, arguments.runtime, fit=arguments.fit, evaluate=arguments.evaluate):
        keep(row)


def uniform(names: list[str], runtime: str, *, fit: int, evaluate: int | None) -> Iterator[dict[str, Any]]:
    """Yield a row for every uniform cut and share."""
    if not names:
        return
    real = RealViT(fit=fit, evaluate=evaluate)
    latencies: dict[tuple[bool, float], dict[str, Any]] = {}
    for share in SHARES:
        for heads in (False, True):
            mlp, attention = {"method": "random", "repair": "none"}, {"method": "random", "repair": "none"}
            _, spec = cut(real, share, (mlp, attention if heads else None))
            told = f"{share:.0%} of MLPs" + (" and heads" if heads else "")
            latencies[heads, share] = time_shapes(told, {"unpruned": real.spec, told: spec}, runtime=runtime)[1]
    for name in names:
        for share in SHARES:
            if name == PEERS:
                for peer in peers(real, share):
                    figures = {key: value for key, value in peer.items() if key not in ("keep", "repair", "seconds")}
                    yield uniform_row(figures.pop("method"), share, figures, latencies[False, share])
            else:
                pruned, _ = cut(real, share, UNIFORM[name])
                yield uniform_row(name, share, real.figures(pruned), latencies[UNIFORM[name][1] is not None, share])


def uniform_row(name: str, share: float, figures: dict[str, Any], timed: dict[str, Any]) -> dict[str, Any]:
    """A row. figures: of the answers; timed: of an engine of the same shapes."""
    low, high = timed["times_faster_ci95"]
    return {
        "name": name,
        "asked": share,
        **figures,
        "ratio": round(1 / timed["times_faster"], 4),
        "ratio_ci95": [round(1 / high, 4), round(1 / low, 4)],
        **{key: timed[key] for key in ("p50_ms", "params", "macs", "macs_share")},
    }


def cut(real: RealViT, share: float, options: Cut) -> tuple[ViT, ViTSpec]:
    """Cut every head and MLP to a share."""
    model, spec = real.model, real.spec
    mlp, attention = options
    if attention is not None:
        heads = PruneAttentionOptions.model_validate({"images": None, "keep": share, **attention})
        model, spec, _ = prune_attention(model, spec, heads, real.calibration if heads.reads_images else None)
    if mlp["method"] == "corp":
        return corp_mlps(model, spec, share, real.calibration)
    if mlp["method"] == "snp":
        return snp_mlps(model, spec, share)
    widths = PruneMlpOptions.model_validate({"images": None, "keep": share, **mlp})
    model, spec, _ = prune_mlp(model, spec, widths, real.calibration if widths.reads_images else None)
    return model, spec


def measure(name: str, asked: float, content: dict[str, Any], store: Path) -> dict[str, Any]:
    """Build one row in a process of its own and return its figures. asked: ratio or share."""
    with tempfile.TemporaryDirectory(prefix="vitrim-row-") as folder:
        path, output = Path(folder, "allocation.yaml"), Path(folder, "out")
        path.write_text(yaml.safe_dump(content))
        words = [sys.executable, "-m", "pipeline", "build", str(path), "--output", str(output), "--store", str(store)]
        done = subprocess.run(words, cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
        if done.returncode not in (0, 1):
            raise SystemExit(f"{name} at {asked:g} ended with {done.returncode}")
        report = json.loads((output / "cpu" / "report.json").read_text())
    accuracy, latency, search = report["accuracy"], report["latency_ms"], report["search"]
    return {
        "name": name,
        "asked": asked,
        "top1": accuracy["engine"],
        "top1_source": accuracy["baseline"],
        "drop_points": accuracy["drop_points"],
        "drop_ci95": accuracy["drop_ci95"],
        "agreement": accuracy["agreement"],
        "ratio": latency["ratio"],
        "ratio_ci95": latency["ratio_ci95"],
        "p50_ms": latency["engine"]["p50"],
        "params": report["size"]["params"]["after"],
        "macs": report["size"]["macs"]["after"],
        "macs_share": report["size"]["macs"]["after"] / report["size"]["macs"]["before"],
        "predicted_loss": search["loss"] if search else None,
        "solve_ms": search["solve_ms"] if search else None,
        "rounds": [one["measured"] for one in search["rounds"]] if search else None,
        "merge": search["merge"] if search else None,
        "size": search["size"] if search else None,
        "agreement_on_select": {row["name"]: row["agreement"] for row in report["stages"] if row["agreement"]},
        "seconds": {stage["name"]: stage["seconds"] for stage in report["stages"]},
    }


if __name__ == "__main__":
    main()
