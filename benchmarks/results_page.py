"""Writes docs/results.md from the result files: every figure, with its script and conditions.

    python benchmarks/results_page.py [--check]

--check: exit 1 where the page is not what the result files say. The page holds nothing else, so nobody edits it.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import results_tables as tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"
INTRODUCTION = """\
# Results

Written by `benchmarks/results_page.py` from the files in `benchmarks/results`; each says in full under which
conditions it was measured. Figures in brackets are 95 % intervals. The evaluation images include easy ones: read drops
and ratios, not top-1. These machines had two virtual cores: read ratios, which were measured interleaved, not
milliseconds.
"""
SECTIONS: dict[str, tuple[str, Callable[[tables.Row], tables.Lines]]] = {
    "end_to_end": ("The whole job", tables.end_to_end),
    "end_to_end_auto": ("The whole job, shapes chosen for a latency", tables.end_to_end),
    "allocation": ("Top-1 against latency, without training", tables.builds),
    "distillation": ("Top-1 at equal latency, after the same distillation", tables.builds),
    "mlp_pruning": ("MLPs", tables.mlp_pruning),
    "attention_pruning": ("Heads", tables.attention_pruning),
    "attention_removal": ("Attentions removed", tables.attention_removal),
    "width_pruning": ("Residual width", tables.width_pruning),
    "token_merging": ("Token merging", tables.token_merging),
    "cpu_peers": ("This CPU before any pruning, beside peers", tables.cpu_peers),
    "published_latency": ("Latency of published shapes", tables.published_latency),
    "openvino_hints": ("OpenVINO's throughput hint", tables.openvino_hints),
    "prune_time": ("Time of pruning", tables.prune_time),
    "selection_speed": ("Speed of DGMR's selection", tables.selection_speed),
    "streaming_prune": ("A model larger than memory", tables.streaming_prune),
    "nightly_simulation": ("Rules of the nights, simulated", tables.nightly_simulation),
    "rtx_builds": ("Engines of TensorRT-RTX, built ahead of time", tables.rtx_builds),
    "accidents": ("Deliberate accidents", tables.accidents),
    "command_times": ("Commands", tables.command_times),
}


COMMANDS = {
    "end_to_end_auto": "benchmarks/end_to_end.py --recipe recipes/vit_tiny_auto.yaml --set budget.latency_ratio=0.6"
}
"""of sections that no script of the same name measures"""


def page() -> str:
    """The page, from the result files that are there."""
    parts = [INTRODUCTION]
    for name, (title, render) in SECTIONS.items():
        path, command = RESULTS / f"{name}.json", COMMANDS.get(name, f"benchmarks/{name}.py")
        if not path.is_file():
            parts.append(f"## {title}\n\nNot yet measured (`{command}`).\n")
            continue
        data = json.loads(path.read_text())
        source = f"`{command}` → `benchmarks/results/{name}.json`, {machines(data)}."
        parts.append("\n".join([f"## {title}", "", source, "", *render(data), ""]))
    return "\n".join(parts)


def machines(data: dict[str, Any]) -> str:
    """When and on what a file was measured; several machines where its rows say so, told apart by what they compute."""
    found: dict[tuple[object, ...], str] = {}
    for one in [row for row in data.get("rows", ()) if "measured_at" in row] or [data["conditions"]]:
        sets = one.get("instruction_sets", ())
        place = f"{one['measured_at'][:10]}, {one['cores']} cores of {one['cpu']}"
        found.setdefault((one["cores"], one["cpu"], *sets), place + (f" with {sets[-1]}" if sets else ""))
    if len(found) == 1:
        return next(iter(found.values())).partition(" with ")[0]
    return "rows of several machines: " + "; ".join(found.values())


def main() -> None:
    """Write the page, or compare it."""
    made = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text() != made:
            raise SystemExit("docs/results.md is not what benchmarks/results says; run benchmarks/results_page.py")
        return
    PAGE.write_text(made)
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
