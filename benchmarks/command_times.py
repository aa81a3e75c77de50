"""Seconds that a user waits: `vitrim --help`, and a second `vitrim build` with nothing changed.

    python benchmarks/command_times.py

Whole processes, wall clock. The first build of the demo (and of ViT-Tiny, where the assets are) is not part of it.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.conditions import ROOT, write_result

HELPS, BUILDS = 20, 5


def seconds_of(words: list[str], repeats: int, store: Path) -> list[float]:
    """Wall-clock seconds of a command, run so many times after one run that is not counted."""
    found = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "pipeline", *words],
            cwd=ROOT,
            env={**os.environ, "VITRIM_STORE": str(store)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        found.append(time.perf_counter() - started)
    return found[1:]


def told(seconds: list[float]) -> dict[str, float]:
    """Median and extremes, in seconds."""
    return {
        "median_s": round(statistics.median(seconds), 3),
        "min_s": round(min(seconds), 3),
        "max_s": round(max(seconds), 3),
        "runs": len(seconds),
    }


def main() -> None:
    """Time every command and write the result file."""
    folder = Path(os.environ.get("VITRIM_ASSETS") or ROOT.parent / "shared" / "assets")
    with tempfile.TemporaryDirectory(prefix="vitrim-bench-") as place:
        store, out = Path(place, "store"), Path(place, "out")
        rows = {"vitrim --help": told(seconds_of(["--help"], HELPS, store))}
        builds = {"second build of recipes/digits.yaml": ["build", "recipes/digits.yaml", "--output", str(out)]}
        if (folder / "vit_tiny_patch16_224").is_dir():
            weights = next((folder / "vit_tiny_patch16_224").glob("*.safetensors"))
            words = ["build", "recipes/vit_tiny_imagenet.yaml", "--checkpoint", str(weights), "--output", str(out)]
            words += ["--set", "steps.distill.images_seen=64"]  # how long the first build trains changes nothing here
            builds["second build of recipes/vit_tiny_imagenet.yaml"] = words
        for name, words in builds.items():
            rows[name] = told(seconds_of(words, BUILDS, store))
    for name, row in rows.items():
        print(f"{name:<52} {row['median_s']:.2f} s ({row['min_s']:.2f} to {row['max_s']:.2f}, {row['runs']} runs)")
    print(f"wrote {write_result('command_times', {'rows': rows})}")


if __name__ == "__main__":
    main()
