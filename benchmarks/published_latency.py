"""Latency of the shapes that papers published, against their unpruned models: random weights, fp32, batch 1.

    python benchmarks/published_latency.py [--runtimes onnxruntime openvino] [--groups DeiT-S ...] [--quick] [--resume]

SNP: the authors' per-layer table, and the same with d_qk, d_v, MLP and stream rounded up to what kernels like. NOSE:
DeiT-B without the attentions that the authors removed, alone and with ToMe on the other blocks as they ran it. DGMR:
ViT-B with MLPs as wide as the stream (r = 1). ToMe: r tokens merged in every block, and as many at once in block 3.
All models of a group take turns, each in a process of its own; figures are medians over five processes.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.conditions import add_resume, measured_with, read_result, write_result
from benchmarks.published_shapes import PUBLISHED, REMOVED
from benchmarks.random_engines import P50, QUICK, time_shapes
from stages.merge_tokens.options import MergeTokensOptions
from stages.merge_tokens.options import reshaped as merging
from stages.vit.spec import ViTSpec

NOSE_TOME = {"40 %": (1, 24), "50 %": (0, 14)}
"""with ToMe: the first of the other blocks that merges, and the tokens merged in each from there on"""


def rounded_up(spec: ViTSpec, heads: int, mlp: int, width: int) -> ViTSpec:
    """The same shapes with every number brought up to the next multiple."""

    def up(number: int, multiple: int) -> int:
        return -(-number // multiple) * multiple

    blocks = (
        one.replace(d_qk=up(one.d_qk, heads), d_v=up(one.d_v, heads), mlp_width=up(one.mlp_width, mlp))
        for one in spec.blocks
    )
    return spec.replace(width=up(spec.width, width), blocks=tuple(blocks))


def without_attention(spec: ViTSpec, gone: tuple[int, ...]) -> ViTSpec:
    """The spec with some attentions off."""
    off = {"attention": "off", "heads": 0, "d_qk": 0, "d_v": 0}
    return spec.replace(
        blocks=tuple(one.replace(**off) if index in gone else one for index, one in enumerate(spec.blocks))
    )


def with_tome(spec: ViTSpec, start: int, r: int) -> ViTSpec:
    """Merge r tokens in each block that has an attention, from the start-th of them on."""
    normal = [index for index, one in enumerate(spec.blocks) if one.attention == "on"][start:]
    counts = tuple(r if index in normal else 0 for index in range(len(spec.blocks)))
    return merging(MergeTokensOptions(counts=counts), spec)


def tome(spec: ViTSpec) -> dict[str, ViTSpec]:
    """Token merging of the unpruned model."""
    at_once = tuple(98 if index == 3 else 0 for index in range(len(spec.blocks)))
    return {
        "ToMe, r 8": merging(MergeTokensOptions(r=8), spec),
        "ToMe, r 13": merging(MergeTokensOptions(r=13), spec),
        "98 tokens merged in block 3": merging(MergeTokensOptions(counts=at_once), spec),
    }


def groups() -> dict[str, dict[str, ViTSpec]]:
    """Every model by group and name; the first of each group is unpruned."""
    tiny, small, smaller = (PUBLISHED[f"snp_deit_{name}"] for name in ("tiny", "small", "small_smaller"))
    base = PUBLISHED["snp_deit_base"]
    whole = base.source_spec
    dgmr = whole.replace(blocks=tuple(one.replace(mlp_width=whole.width) for one in whole.blocks))
    removed = {share: without_attention(whole, gone) for share, gone in REMOVED.items() if gone}
    nose = {f"NOSE, {share} of the attentions removed": spec for share, spec in removed.items()}
    both = {f"NOSE, {share}, with ToMe": with_tome(spec, *NOSE_TOME[share]) for share, spec in removed.items()}
    return {
        "DeiT-T": {"unpruned": tiny.source_spec, "SNP": tiny.spec, "SNP, rounded up": rounded_up(tiny.spec, 8, 16, 16)},
        "DeiT-S": {
            "unpruned": small.source_spec,
            "SNP, 2.0 G": small.spec,
            "SNP, 2.0 G, rounded up": rounded_up(small.spec, 8, 16, 16),
            "SNP, 1.3 G": smaller.spec,
            "SNP, 1.3 G, rounded up": rounded_up(smaller.spec, 8, 16, 16),
            **tome(small.source_spec),
        },
        "DeiT-B": {"unpruned": whole, "DGMR, r = 1": dgmr, "SNP": base.spec, **nose, **both, **tome(whole)},
    }


def main() -> None:
    """Measure every group on every runtime and write the result file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--groups", nargs="+", default=list(groups()), choices=list(groups()))
    parser.add_argument("--quick", action="store_true", help="few queries, to try the script; writes nothing")
    add_resume(parser)
    asked = parser.parse_args()
    rows = read_result("published_latency").get("rows", []) if asked.resume else []
    for runtime in asked.runtimes:
        for name in asked.groups:
            if any((row["group"], row["runtime"]) == (name, runtime) for row in rows):
                continue
            procedure = QUICK if asked.quick else P50
            timed = time_shapes(name, groups()[name], runtime=runtime, procedure=procedure)
            rows += [row | measured_with() for row in timed]
            if not asked.quick and asked.groups == list(groups()):
                write_result("published_latency", {"precision": "fp32", "batch": 1, "rows": rows})


if __name__ == "__main__":
    main()
