"""Token merging without training: answers of ViT-Tiny on real images, by schedule.

    python benchmarks/token_merging.py [--quick]

Top-1 and agreement with the model that does not merge, on the 1,100 images of imagenet_val, torch in fp32. Latency of
merging: published_latency.py.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from benchmarks.conditions import write_result
from benchmarks.real_vit import RealViT, told
from stages.merge_tokens.options import MergeTokensOptions, reshaped
from stages.vit.counts import count_macs
from stages.vit.model import ViT

VARIANTS: tuple[dict[str, Any], ...] = (
    *({"r": r} for r in (2, 4, 8, 11, 13, 15)),
    {"r": 8, "inflect": -1.0},
    {"r": 8, "metric": "tokens"},
    {"r": 13, "metric": "tokens"},
    {"r": 8, "proportional": False},
    {"r": 13, "proportional": False},
)


def accuracy(variants: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """Answers of the real ViT-Tiny, merged in every way."""
    real = RealViT(fit=1)
    rows = []
    for variant in variants:
        spec = reshaped(MergeTokensOptions.model_validate(variant), real.spec)
        merged = ViT(spec.model_dump(mode="json"))
        merged.load_state_dict(real.state)
        rows.append(
            {
                **variant,
                "merge": list(spec.merge),
                "tokens_left": spec.tokens_in(len(spec.blocks)),
                "macs_share": round(count_macs(spec) / count_macs(real.spec), 4),
                **real.figures(merged.eval()),
            }
        )
        name = ", ".join(f"{key} {value}" for key, value in variant.items())
        print(f"{name:<26} MACs {100 * rows[-1]['macs_share']:5.1f} %, {told(rows[-1])}", flush=True)
    return {**{key: value for key, value in real.sets.items() if key != "calibration"}, "rows": rows}


def main() -> None:
    """Measure every schedule and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images, to try the script; writes nothing")
    arguments = parser.parse_args()
    found = accuracy(({"r": 4}, {"r": 13}) if arguments.quick else VARIANTS)
    if not arguments.quick:
        print(f"wrote {write_result('token_merging', found)}")


if __name__ == "__main__":
    main()
