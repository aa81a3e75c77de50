"""Token merging without training: answers of ViT-Tiny on real images, latency of DeiT shapes on ONNX Runtime.

    python benchmarks/token_merging.py [--quick] [--skip accuracy|latency] [--models NAME ...]

Accuracy: top-1 and agreement with the model that does not merge, on the 1,100 images of imagenet_val, torch in fp32.
Latency: random weights in the shapes of DeiT, batch 1, fp32; all schedules of a shape interleaved by vitrim's own
measurement, each in a process of its own. Random weights cost what trained ones cost: shapes do not depend on them.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks.conditions import assets, write_result
from benchmarks.real_vit import answers, decoded, share_ci95
from pipeline.statistics import compare_answers
from stages.data.images import open_images
from stages.data.source import DataSource
from stages.export.stage import ExportOptions, export
from stages.merge_tokens.options import MergeTokensOptions, reshaped
from stages.source.load import load_source
from stages.source.options import SourceOptions
from stages.stage import Role, StageContext
from stages.vit.counts import count_macs
from stages.vit.files import save_model
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from targets.measure.latency import EngineUnderTest, compare
from targets.measure.percentiles import p50_ci95, p50_of, paired_ratio
from targets.preprocess import Preprocess
from targets.worker import Worker

VARIANTS: tuple[dict[str, Any], ...] = (
    *({"r": r} for r in (2, 4, 8, 11, 13, 15)),
    {"r": 8, "inflect": -1.0},
    {"r": 8, "metric": "tokens"},
    {"r": 13, "metric": "tokens"},
    {"r": 8, "proportional": False},
    {"r": 13, "proportional": False},
)
SHAPES = {"deit_tiny": (192, 3), "deit_small": (384, 6), "deit_base": (768, 12)}
"""residual width and heads; 12 blocks, 196 patches of 16, a class token"""
SCHEDULES: dict[str, dict[str, Any]] = {
    "r 4": {"r": 4},
    "r 8": {"r": 8},
    "r 13": {"r": 13},
    "keep 0.5, in block 3": {"counts": (0, 0, 0, 98, *(0,) * 8)},
}


def accuracy(variants: tuple[dict[str, Any], ...], limit: int | None) -> dict[str, Any]:
    """Answers of the real ViT-Tiny, merged in every way."""
    folder = assets()
    weights = next((folder / "vit_tiny_patch16_224").glob("*.safetensors"))
    source = load_source(SourceOptions(timm="vit_tiny_patch16_224.augreg_in21k_ft_in1k", checkpoint=weights), seed=0)
    images = open_images(
        DataSource(images=folder / "imagenet_val" / "images.zip", labels=folder / "imagenet_val" / "labels.csv"),
        Role.EVALUATE,
        index_cache=None,
    )
    if limit is not None:
        images = images.subset(np.sort(np.random.default_rng(0).permutation(len(images))[:limit]))
    labels, unseen = images.labels, decoded(images, source.spec.preprocess)
    assert labels is not None

    def model_of(spec: ViTSpec) -> ViT:
        model = ViT(spec.model_dump(mode="json"))
        model.load_state_dict(source.state)
        return model.eval()

    before = answers(model_of(source.spec), unseen)
    top1 = float((before.argmax(axis=1) == labels).mean())
    print(f"ViT-Tiny, not merged: top-1 {100 * top1:.1f} %", flush=True)
    rows = []
    for variant in variants:
        spec = reshaped(MergeTokensOptions.model_validate(variant), source.spec)
        compared = compare_answers(before, answers(model_of(spec), unseen), labels)
        agreement = compared.agreement or 0.0
        rows.append(
            {
                **variant,
                "merge": list(spec.merge),
                "tokens_left": spec.tokens_in(len(spec.blocks)),
                "macs_share": round(count_macs(spec) / count_macs(source.spec), 4),
                "top1": round(compared.engine, 4),
                "top1_ci95": share_ci95(compared.engine, len(images)),
                "drop_points": round(compared.drop_points, 2),
                "drop_ci95": [round(edge, 2) for edge in compared.drop_ci95 or ()],
                "agreement": round(agreement, 4),
                "agreement_ci95": share_ci95(agreement, len(images)),
            }
        )
        told = ", ".join(f"{name} {value}" for name, value in variant.items())
        print(
            f"{told:<26} MACs {100 * rows[-1]['macs_share']:5.1f} %, top-1 {100 * compared.engine:5.1f} %, "
            f"agreement {100 * agreement:5.1f} %",
            flush=True,
        )
    return {
        "model": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "images": len(images),
        "set": "imagenet_val",
        "top1_source": round(top1, 4),
        "rows": rows,
    }


def latency(names: list[str], *, level: str, threads: int | None) -> list[dict[str, Any]]:
    """Latency of each shape, not merged and by each schedule, interleaved."""
    rows = []
    for name in names:
        plain = shape(*SHAPES[name])
        specs = {"not merged": plain}
        specs |= {told: reshaped(MergeTokensOptions.model_validate(one), plain) for told, one in SCHEDULES.items()}
        with tempfile.TemporaryDirectory(prefix="vitrim-bench-") as place:
            engines = {
                told: EngineUnderTest(
                    folder=engine_of(spec, Path(place, str(index)), threads), batch=1, threads=threads
                )
                for index, (told, spec) in enumerate(specs.items())
            }
            inputs = np.random.default_rng(0).standard_normal((16, 3, 224, 224)).astype(np.float32)
            compared = compare(engines, inputs, level=level)  # type: ignore[arg-type]
        measured = compared.measurements
        for told, spec in specs.items():
            speedup, interval = paired_ratio(measured["not merged"], measured[told])
            rows.append(
                {
                    "shape": name,
                    "schedule": told,
                    "merge": list(spec.merge),
                    "macs_share": round(count_macs(spec) / count_macs(plain), 4),
                    "p50_ms": round(p50_of(measured[told]), 3),
                    "p50_ci95": _rounded(p50_ci95(measured[told])),
                    "speedup": round(speedup, 3),
                    "speedup_ci95": _rounded(interval),
                    "flags": list(measured[told].flags),
                }
            )
            print(
                f"{name:<11} {told:<21} MACs {100 * rows[-1]['macs_share']:5.1f} %, p50 {rows[-1]['p50_ms']:8.2f} ms, "
                f"{speedup:.2f}x",
                flush=True,
            )
    return rows


def shape(width: int, heads: int) -> ViTSpec:
    """A DeiT of this width: 12 blocks, 224 pixels, patches of 16."""
    block = {
        "heads": heads,
        "d_qk": width // heads,
        "d_v": width // heads,
        "scale": (width // heads) ** -0.5,
        "mlp_width": 4 * width,
        "norm1_eps": 1e-6,
        "norm2_eps": 1e-6,
    }
    return ViTSpec.model_validate(
        {
            "architecture": f"random_{width}",
            "preprocess": Preprocess(height=224, width=224),
            "patch_size": (16, 16),
            "width": width,
            "classes": 1000,
            "blocks": (block,) * 12,
        }
    )


def engine_of(spec: ViTSpec, place: Path, threads: int | None) -> Path:
    """Random weights, exported at batch 1 with parity, built for ONNX Runtime."""
    torch.manual_seed(0)
    save_model(place / "model", spec, ViT(spec.model_dump(mode="json")).state_dict())
    for name in ("graph", "engine"):
        (place / name).mkdir()
    context = StageContext(
        input=place / "model", source=place / "model", output=place / "graph", scratch=place, images={}
    )
    export(ExportOptions(batch=1), context)
    with Worker(threads=threads) as worker:
        worker.build(
            place / "graph" / "model.onnx",
            place / "engine",
            runtime="onnxruntime",
            precision="fp32",
            batch=1,
            threads=threads,
        )
    return place / "engine"


def _rounded(interval: Any) -> list[float] | None:
    return None if interval is None else [round(edge, 3) for edge in interval]


def main() -> None:
    """Measure both and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="few images and queries, to try the script; writes nothing"
    )
    parser.add_argument("--skip", choices=["accuracy", "latency"])
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=["deit_small", "deit_base"])
    parser.add_argument("--threads", type=int, help="of each engine; all usable cores where not given")
    arguments = parser.parse_args()
    data: dict[str, Any] = {"seed": 0}
    if arguments.skip != "accuracy":
        variants = ({"r": 4}, {"r": 13}) if arguments.quick else VARIANTS
        data["accuracy"] = accuracy(variants, 100 if arguments.quick else None)
    if arguments.skip != "latency":
        level = "quick" if arguments.quick else "full"
        data["latency"] = {
            "runtime": "onnxruntime",
            "precision": "fp32",
            "batch": 1,
            "threads": arguments.threads,
            "level": level,
            "rows": latency(arguments.models, level=level, threads=arguments.threads),
        }
    if arguments.quick or arguments.skip:
        print("tried only: no result file")
        return
    print(f"wrote {write_result('token_merging', data)}")


if __name__ == "__main__":
    main()
