"""TensorRT-RTX ahead of time: seconds of a build and bytes of the engine, by precision, compute capability and shape.

    python benchmarks/rtx_builds.py [--quick]

ViT-Tiny, -Small and -Base (DeiT's shapes, 224 x 224, 1,000 classes) with random weights, whole and with half of every
MLP and of every query and key. Graphs are those of the stages export and quantize: fp32, fp16, symmetric int8 Q/DQ, fp8
Q/DQ, and bf16 where the stage makes it. ViT-Tiny for every compute capability, the larger ones for two. Batch 1.

No GPU is needed, and none runs an engine. Every build has a process of its own; its seconds are those of loading the
library, parsing, checking and building, without the start of the process. --quick: ViT-Tiny for one capability, once;
writes no file.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.conditions import write_result
from benchmarks.published_shapes import PUBLISHED
from stages.data.images import open_images
from stages.data.source import DataSource
from stages.export.stage import ExportOptions, export
from stages.quantize.stage import QuantizeOptions, quantize
from stages.stage import Role, StageContext
from stages.vit.counts import count_macs, count_params
from stages.vit.files import save_model
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from targets.errors import VitrimError
from targets.facts import usable_cores
from targets.runtimes.nvidia.capability import LEGAL
from targets.runtimes.nvidia.options import PRECISIONS, RTX
from targets.worker import Worker

UNPRUNED, PRUNED = "unpruned", "pruned"
MODELS = {"ViT-Tiny": "snp_deit_tiny", "ViT-Small": "snp_deit_small", "ViT-Base": "snp_deit_base"}
SMALLEST = "ViT-Tiny"
FEW = ("8.6", "8.9")
"""compute capabilities of the larger models: one without fp8 and one with it"""
REPEATS = {"ViT-Tiny": 3, "ViT-Small": 2, "ViT-Base": 1}
SHARES: dict[Role, tuple[float, float]] = {Role.FIT: (0.0, 0.5), Role.SELECT: (0.5, 1.0)}


@dataclass(frozen=True)
class Plan:
    """Which models, for which capabilities, how often."""

    models: tuple[str, ...]
    capabilities: dict[str, tuple[str, ...]]
    repeats: dict[str, int]


FULL = Plan(tuple(MODELS), {name: tuple(LEGAL[RTX]) if name == SMALLEST else FEW for name in MODELS}, REPEATS)
QUICK = Plan((SMALLEST,), {SMALLEST: FEW[-1:]}, {SMALLEST: 1})


def shapes(model: str) -> dict[str, ViTSpec]:
    """Whole, and with half of every MLP and of every query and key."""
    whole = PUBLISHED[MODELS[model]].source_spec
    halved = (one.replace(d_qk=one.d_qk // 2, mlp_width=one.mlp_width // 2) for one in whole.blocks)
    return {UNPRUNED: whole, PRUNED: whole.replace(blocks=tuple(halved))}


def precisions() -> tuple[str, ...]:
    """Those of which vitrim makes a graph."""
    made = get_args(QuantizeOptions.model_fields["precision"].annotation)
    return tuple(one for one in PRECISIONS if one == "fp32" or one in made)


def graphs_of(spec: ViTSpec, place: Path) -> Iterator[tuple[str, Path]]:
    """Export random weights, then quantize: (precision, model.onnx). Ranges come of two images: speed alone counts."""
    torch.manual_seed(0)
    model, fp32 = place / "model", place / "fp32"
    fp32.mkdir(parents=True)
    save_model(model, spec, ViT(spec.model_dump(mode="json")).state_dict())
    export(ExportOptions(), StageContext(input=model, source=model, output=fp32, scratch=place, images={}))
    yield "fp32", fp32 / "model.onnx"
    images = {
        role: open_images(DataSource(dataset="digits", share=share, limit=2), role, index_cache=None)
        for role, share in SHARES.items()
    }
    for precision in precisions():
        if precision == "fp32":
            continue
        output, scratch = place / precision, place / f"{precision}-scratch"
        output.mkdir()
        scratch.mkdir()
        options = QuantizeOptions.model_validate(
            {"precision": precision, **({"symmetric": True} if precision == "int8" else {})}
        ).quickly()
        quantize(options, StageContext(input=fp32, source=model, output=output, scratch=scratch, images=images))
        yield precision, output / "model.onnx"


def build(graph: Path, precision: str, capability: str, repeats: int) -> dict[str, Any]:
    """Build so many times; seconds of each, and the size of the engine."""
    seconds, engine = [], {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="vitrim-rtx-") as output, Worker(threads=usable_cores()) as worker:
            engine, took = worker.build(
                graph,
                Path(output),
                runtime=RTX,
                precision=precision,
                batch=1,
                threads=usable_cores(),
                more={"compute_capability": capability},
            )
        seconds.append(round(took, 3))
    return {
        "build_s": seconds,
        "build_s_median": round(statistics.median(seconds), 3),
        "engine_bytes": sum(file["size_bytes"] for file in engine["files"].values()),
    }


def rows_of(model: str, plan: Plan) -> Iterator[dict[str, Any]]:
    """Every build of a model; one that fails says why."""
    for shape, spec in shapes(model).items():
        with tempfile.TemporaryDirectory(prefix="vitrim-bench-") as place:
            for precision, graph in graphs_of(spec, Path(place)):
                size = sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*"))
                for capability in plan.capabilities[model]:
                    if precision not in LEGAL[RTX][capability]:
                        continue
                    row = {"model": model, "shape": shape, "precision": precision, "capability": capability}
                    row |= {"params": count_params(spec), "macs": count_macs(spec), "graph_bytes": size}
                    try:
                        row |= build(graph, precision, capability, plan.repeats[model])
                    except VitrimError as error:
                        row["failed"] = str(error)
                    yield row


def main() -> None:
    """Build everything and write the result file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="ViT-Tiny for one capability, once; no file")
    quick = parser.parse_args().quick
    plan = QUICK if quick else FULL
    rows = []
    for model in plan.models:
        for row in rows_of(model, plan):
            rows.append(row)
            told = row.get("failed") or f"{row['build_s_median']:.2f} s, {row['engine_bytes'] / 1e6:.1f} MB"
            print(f"{model}, {row['shape']}, {row['precision']}, {row['capability']}: {told}", flush=True)
    left_out = [one for one in PRECISIONS if one not in precisions()]
    if not quick:
        write_result("rtx_builds", {"batch": 1, "threads": usable_cores(), "left_out": left_out, "rows": rows})
    failed = [row for row in rows if "failed" in row]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(rows)} builds failed")


if __name__ == "__main__":
    main()
