"""Top-1 of ViT-Tiny against the latency of its engine, without training: shapes found by the search, and uniform ones.

    python benchmarks/allocation.py [--runtime onnxruntime] [--ratios 0.85 0.7 0.55] [--only allocated "uniform ols"]

Every row is one `vitrim build`: real weights, calibrated on imagenet_train1000, top-1 and paired drop on the 1,100
images of imagenet_val, latency of the engine interleaved with that of the unpruned model. `allocated` leaves shapes to
the search, with each ratio as its budget; `allocated, sizes and merging` may merge tokens and read smaller pictures,
too. The uniform rows cut every MLP,
or every MLP and every head, to the same share: ours, and the rules that papers use, with the repair that each of them
has (none, or `+ repair` where it is ours). fp32 by default, so that nothing but the shapes differs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import yaml

from benchmarks.conditions import ROOT, assets, write_result

SHARES = (0.75, 0.5)
Steps = list[dict[str, Any]]


def uniform(mlp: dict[str, Any], attention: dict[str, Any] | None = None) -> dict[float, Steps]:
    """Steps that cut every MLP, and every head where asked for, to a share; by share."""
    return {
        share: [
            *([{"prune_attention": {**attention, "keep": share}}] if attention else []),
            {"prune_mlp": {**mlp, "keep": share}},
        ]
        for share in SHARES
    }


UNIFORM: dict[str, dict[float, Steps]] = {
    "uniform ols": uniform({"method": "ols"}),
    "uniform ols and rotate": uniform({"method": "ols"}, {"method": "rotate"}),
    "dgmr": uniform({"method": "dgmr", "repair": "none"}),
    "dgmr + repair": uniform({"method": "dgmr"}),
    "l2": uniform({"method": "l2", "repair": "none"}),
    "random + repair": uniform({"method": "random"}, {"method": "random"}),
    "corp": uniform({"method": "energy", "repair": "parallel"}, {"method": "corp", "repair": "none"}),
    "snp + repair": uniform({"method": "ols"}, {"method": "snp"}),
}
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
    parser.add_argument("--only", nargs="*", help="only these rows")
    parser.add_argument("--store", type=Path, help="keep finished steps here (default: a temporary folder)")
    arguments = parser.parse_args()
    wanted: list[tuple[str, float, Steps, dict[str, float]]] = [
        (name, ratio, [{"prune": options}], {"latency_ratio": ratio})
        for name, options in AUTO.items()
        for ratio in arguments.ratios
    ]
    wanted += [(name, share, steps, {}) for name, by_share in UNIFORM.items() for share, steps in by_share.items()]
    rows = []
    with tempfile.TemporaryDirectory(prefix="vitrim-bench-") as folder:
        store = arguments.store or Path(folder, "store")
        for name, asked, steps, budget in wanted:
            if arguments.only is None or name in arguments.only:
                rows.append(measure(name, asked, recipe("allocation", steps, arguments.runtime, budget), store))
                print(json.dumps(rows[-1]), flush=True)
                if arguments.only is None:
                    write_result("allocation", {"runtime": arguments.runtime, "precision": "fp32", "rows": rows})


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
        "top1": round(100 * accuracy["engine"], 2),
        "top1_source": round(100 * accuracy["baseline"], 2),
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
        "rounds": [one["measured"] for one in search["rounds"]] if search else None,
        "merge": search["merge"] if search else None,
        "size": search["size"] if search else None,
        "agreement_on_select": {row["name"]: row["agreement"] for row in report["stages"] if row["agreement"]},
        "seconds": {stage["name"]: stage["seconds"] for stage in report["stages"]},
    }


if __name__ == "__main__":
    main()
