"""The main job on ViT-Tiny and real images: speed-up over fp32 ONNX Runtime at the measured drop of accuracy.

    python benchmarks/end_to_end.py [--store DIR] [--output DIR] [--set KEY=VALUE]...

Runs `vitrim build recipes/vit_tiny_imagenet.yaml` at level full and keeps the figures of its report. Latencies are
measured by vitrim itself: all engines interleaved, in processes of their own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.conditions import ROOT, assets, write_result

KEPT = ("verdict", "accuracy", "throughput_ips", "memory_bytes", "size", "parity", "candidates", "versions")


def main() -> None:
    """Build, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="keep finished steps here (default: a temporary folder)")
    parser.add_argument("--output", type=Path, help="keep report and bundle here (default: a temporary folder)")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="override a key of the recipe")
    parser.add_argument("--name", default="end_to_end", help="name of the result file")
    arguments = parser.parse_args()
    weights = next((assets() / "vit_tiny_patch16_224").glob("*.safetensors"))
    with tempfile.TemporaryDirectory(prefix="vitrim-bench-") as folder:
        output = arguments.output or Path(folder, "out")
        words = [sys.executable, "-m", "pipeline", "build", "recipes/vit_tiny_imagenet.yaml"]
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
        arguments.name,
        {
            "overrides": arguments.overrides,
            **{name: report[name] for name in KEPT},
            "latency_ms": latency,
            "engine": {"runtime": report["target"]["runtime"], "precision": report["target"]["precision"]},
            "stages": [
                {name: row[name] for name in ("name", "seconds", "cached", "params", "macs", "agreement", "top1")}
                for row in report["stages"]
            ],
            "measured_in": report["conditions"],
        },
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
