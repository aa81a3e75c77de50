"""Top-1 of ViT-Tiny after prune_width, without any training of the whole model: method, repair and width.

    python benchmarks/width_pruning.py

Calibrates on 500 images of imagenet_train1000, evaluates on the 1,100 of imagenet_val, with torch in fp32. The widths
are multiples of 16.
"""

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.conditions import write_result
from benchmarks.real_vit import RealViT, told
from stages.prune_width.options import PruneWidthOptions
from stages.prune_width.prune import prune
from stages.vit.counts import count_macs

FIT = 500
WIDTHS = (176, 160, 144)
VARIANTS: tuple[dict[str, Any], ...] = (
    {"method": "rotate"},
    {"method": "rotate", "repair": "none"},
    {"method": "energy"},
    {"method": "energy", "repair": "none"},
    {"method": "snp"},
    {"method": "snp", "repair": "none"},
)


def main() -> None:
    """Measure every variant and write the result file after each width."""
    real = RealViT(fit=FIT)
    rows: list[dict[str, Any]] = []
    for width in WIDTHS:
        for variant in VARIANTS:
            options = PruneWidthOptions.model_validate({"width": width, "images": None, **variant})
            started = time.perf_counter()
            pruned, spec, _ = prune(real.model, real.spec, options, real.calibration if options.reads_images else None)
            seconds = time.perf_counter() - started
            rows.append(
                {
                    "width": width,
                    "method": options.method,
                    "repair": options.repair,
                    "macs_share": round(count_macs(spec) / count_macs(real.spec), 4),
                    **real.figures(pruned),
                    "seconds": round(seconds, 1),
                }
            )
            print(
                f"{width} of {real.spec.width} {options.method:<7} {options.repair:<11} {told(rows[-1])}, "
                f"{rows[-1]['seconds']} s",
                flush=True,
            )
        print(f"wrote {write_result('width_pruning', {**real.sets, 'rows': rows})}", flush=True)


if __name__ == "__main__":
    main()
