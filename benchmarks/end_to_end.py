"""The main job on ViT-Tiny and real images: speed-up over fp32 ONNX Runtime at the measured drop of accuracy.

    python benchmarks/end_to_end.py [--recipe FILE] [--store DIR] [--output DIR] [--set KEY=VALUE]...

Runs `vitrim build` on a recipe of ViT-Tiny (vit_tiny_imagenet.yaml) at level full and keeps the figures of its report,
in the result file end_to_end, or of vit_tiny_auto.yaml in end_to_end_auto. Latencies are measured by vitrim itself: all
engines interleaved, in processes of their own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.conditions import ROOT, assets, write_result

RECIPES = ROOT / "recipes"
TABLES = ("table", "pareto", "uniform")
KEPT = ("verdict", "accuracy", "throughput_ips", "memory_bytes", "size", "parity", "candidates", "versions")


def named_after(recipe: Path) -> str:
    """`end_to_end` of the main recipe, `end_to_end_auto` of vit_tiny_auto.yaml."""
    kind = recipe.stem.removeprefix("vit_tiny_")
    return "end_to_end" if kind == "imagenet" else f"end_to_end_{kind}"


def chosen(search: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a search decided, without its tables and curves."""
    return None if search is None else {key: value for key, value in search.items() if key not in TABLES}


def main() -> None:
    """Build, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=RECIPES / "vit_tiny_imagenet.yaml")
    parser.add_argument("--store", type=Path, help="keep finished steps here (default: a temporary folder)")
    parser.add_argument("--output", type=Path, help="keep report and bundle here (default: a temporary folder)")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="override a key of the recipe")
    parser.add_argument("--name", help="name of the result file (default: by the recipe)")
    arguments = parser.parse_args()
    name = arguments.name or named_after(arguments.recipe)
    weights = next((assets() / "vit_tiny_patch16_224").glob("*.safetensors"))
    with tempfile.TemporaryDirectory(prefix="vitrim-bench-") as folder:
        output = arguments.output or Path(folder, "out")
        words = [sys.executable, "-m", "pipeline", "build", str(arguments.recipe.resolve())]
        words += ["--checkpoint", str(weights), "--output", str(output)]
        words += ["--store", str(arguments.store or Path(folder, "store"))]
        for pair in ("measure.level=full", *arguments.overrides):
            words += ["--set", pair]
        done = subprocess.run(words, cwd=ROOT, check=False)
        if done.returncode not in (0, 1):
            raise SystemExit(done.returncode)
        report = json.loads((output / "cpu" / "report.json").read_text())
    latency = report["latency_ms"]
    for role in ("baseline", "unpruned", "engine"):
        latency[role].pop("histogram", None)
    path = write_result(
        name,
        {
            "recipe": arguments.recipe.name,
            "overrides": arguments.overrides,
            **{key: report[key] for key in KEPT},
            "search": chosen(report["search"]),
            "latency_ms": latency,
            "engine": {"runtime": report["target"]["runtime"], "precision": report["target"]["precision"]},
            "stages": [
                {key: row[key] for key in ("name", "seconds", "cached", "params", "macs", "agreement", "top1")}
                for row in report["stages"]
            ],
            "measured_in": report["conditions"],
        },
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
