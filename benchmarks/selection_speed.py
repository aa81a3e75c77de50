"""Seconds and peak memory of DGMR's selection of one layer: the plain loop, LAPACK's pivoted QR, and ours.

    python benchmarks/selection_speed.py

Each run has a process of its own, in turns. The plain loop (arXiv 2506.08591: deflate all rows by the one taken) costs
the same at every pick: of large layers only its first picks are run, and its seconds are scaled to all of them. That
the picks agree is checked over the picks that it made. Peak memory is that of the process beyond what it had before.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks.conditions import write_result
from stages.prune_mlp.dgmr import order_by_diversity

CASES = {
    "ViT-B, 3072 x 768": (3072, 768, 768),
    "ViT-L, 4096 x 1024": (4096, 1024, 256),
    "DINOv2-g, 4096 x 3072 (both halves)": (4096, 3072, 96),
    "EVA-CLIP-E, 15360 x 1792": (15360, 1792, 64),
}
"""layer -> neurons, inputs, picks that the plain loop makes"""
REPEATS = 3


def layer(neurons: int, inputs: int) -> Tensor:
    """fp32 rows of uneven length whose singular values fall over two decades, as those of trained layers do."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(neurons, inputs, generator=generator)
    rows *= torch.exp(0.2 * torch.randn(neurons, 1, generator=generator))
    return rows * torch.logspace(0, -2, inputs)


def loop(rows: Tensor, count: int, dtype: torch.dtype) -> list[int]:
    """The paper's algorithm as written down there."""
    rest = rows.to(dtype, copy=True)
    picks: list[int] = []
    for _ in range(count):
        lengths = rest.norm(dim=1)
        lengths[picks] = -1
        best = int(lengths.argmax())
        picks.append(best)
        direction = rest[best] / rest[best].norm()
        rest -= torch.outer(rest @ direction, direction)
    return picks


def geqp3(rows: Tensor, count: int) -> list[int]:
    """LAPACK's QR with column pivoting, through scipy."""
    from scipy.linalg import qr

    pivots = qr(rows.double().numpy().T, mode="r", pivoting=True)[1]
    return [int(pivot) for pivot in pivots[:count]]


METHODS: dict[str, Callable[[Tensor, int], list[int]]] = {
    "loop, float64": lambda rows, count: loop(rows, count, torch.float64),
    "loop, float32": lambda rows, count: loop(rows, count, torch.float32),
    "geqp3, float64": geqp3,
    "vitrim, float64": lambda rows, count: order_by_diversity(rows, count=count).tolist(),
}


def measure_here(case: str, method: str) -> dict[str, Any]:
    """Run one selection in this process."""
    neurons, inputs, loop_picks = CASES[case]
    rows = layer(neurons, inputs)
    count = loop_picks if method.startswith("loop") else inputs
    METHODS[method](rows[:64], 8)  # libraries loaded, threads started
    before = _peak_bytes()
    started = time.perf_counter()
    picks = METHODS[method](rows, count)
    seconds = time.perf_counter() - started
    return {"seconds": seconds * inputs / count, "bytes": _peak_bytes() - before, "picks": picks}


def _peak_bytes() -> int:
    # Not ru_maxrss: a child starts with the peak of the process that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def measure(case: str, method: str) -> dict[str, Any]:
    """Run one selection in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, case, method], capture_output=True, text=True, check=True, timeout=1800
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure every case and write the result file, or one case for the process that asked."""
    if len(sys.argv) == 3:
        print(json.dumps(measure_here(*sys.argv[1:])))
        return
    rows = []
    for case, (neurons, inputs, loop_picks) in CASES.items():
        runs: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
        for _ in range(REPEATS):
            for method in METHODS:
                runs[method].append(measure(case, method))
        median = {name: statistics.median(run["seconds"] for run in found) for name, found in runs.items()}
        reference = runs["loop, float64"][0]["picks"]
        for method, found in runs.items():
            same = sum(one == other for one, other in zip(found[0]["picks"], reference, strict=False))
            rows.append(
                {
                    "layer": case,
                    "neurons": neurons,
                    "inputs": inputs,
                    "method": method,
                    "seconds": [round(run["seconds"], 4) for run in found],
                    "median_s": round(median[method], 4),
                    "times_the_float64_loop": round(median["loop, float64"] / median[method], 2),
                    "times_the_float32_loop": round(median["loop, float32"] / median[method], 2),
                    "peak_bytes": max(run["bytes"] for run in found),
                    "picks_compared": loop_picks,
                    "picks_equal_to_the_float64_loop": same,
                }
            )
            print({name: value for name, value in rows[-1].items() if name not in ("neurons", "inputs")})
    print(write_result("selection_speed", {"threads": torch.get_num_threads(), "repeats": REPEATS, "rows": rows}))


if __name__ == "__main__":
    main()
