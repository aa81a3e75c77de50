"""What SmoothQuant's alpha does to the real ViT-Tiny in int8: agreement with fp32 and top-1, by alpha and symmetry.

    python benchmarks/alphas.py [--images N] [--evaluate N]

Every strength of `alphas: full` and a few between, with zero points and without (symmetric, for TensorRT), in the
scopes that the ladder tries. Ranges come of images of imagenet_train1000; answers are those of ONNX Runtime on the CPU
to the labelled images of imagenet_val, which nothing was chosen on. Graphs are made by the quantize stage, one alpha
at a time. `auto` also says which strength it found.
"""

import argparse
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.conditions import assets, write_result
from benchmarks.real_vit import MODEL, divergence, share_ci95, some
from pipeline.statistics import compare_answers
from stages.data.images import ImageSet, open_images
from stages.data.source import DataSource
from stages.export.stage import ExportOptions, export
from stages.quantize.stage import FULL, QuantizeOptions, quantize
from stages.source.load import load_source
from stages.source.options import SourceOptions
from stages.stage import Role, StageContext
from stages.vit.files import save_model
from targets.preprocess import Preprocess
from targets.worker import Worker

ALPHAS = ("off", 0.05, *(one for one in FULL if isinstance(one, float)), 0.7, 0.9, 1.0, "auto")
GRAPHS: tuple[dict[str, Any], ...] = (
    {"symmetric": False, "scope": "all"},
    {"symmetric": False, "scope": "linears"},
    {"symmetric": True, "scope": "linears"},
    {"symmetric": True, "scope": "attention"},
)
BATCH = 16
SEED = 0


def main() -> None:
    """Make and compare every graph, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300, help="that set the ranges")
    parser.add_argument("--evaluate", type=int, default=None, help="labelled ones; default: all")
    asked = parser.parse_args()
    folder = assets()
    weights = next((folder / "vit_tiny_patch16_224").glob("*.safetensors"))
    source = load_source(SourceOptions(timm=MODEL, checkpoint=weights), seed=SEED)
    training = open_images(DataSource(images=folder / "imagenet_train1000" / "images.zip"), Role.FIT, index_cache=None)
    labelled = folder / "imagenet_val"
    unseen = some(
        open_images(
            DataSource(images=labelled / "images.zip", labels=labelled / "labels.csv"), Role.EVALUATE, index_cache=None
        ),
        asked.evaluate,
    )
    assert unseen.labels is not None
    chosen = sorted(np.random.default_rng(SEED).permutation(len(training))[: asked.images].tolist())
    fit = training.subset(chosen)
    preprocess = source.spec.preprocess
    rows = []
    with tempfile.TemporaryDirectory(prefix="vitrim-bench-") as place:
        model, exported = Path(place, "model"), Path(place, "fp32")
        exported.mkdir()
        save_model(model, source.spec, source.state)
        export(ExportOptions(), StageContext(input=model, source=model, output=exported, scratch=exported, images={}))
        before = answers(exported / "model.onnx", "fp32", unseen, preprocess)
        for number, (graph, alpha) in enumerate(itertools.product(GRAPHS, ALPHAS)):
            made, facts = quantized(exported, Path(place, str(number)), fit, {**graph, "alphas": (alpha,)})
            after = answers(made, "int8", unseen, preprocess)
            rows.append({**graph, "alpha": alpha, **strength(facts), **figures(before, after, unseen.labels)})
            print(told(rows[-1]), flush=True)
            made.unlink()
    sets = {
        "model": MODEL,
        "calibration": {"images": len(fit), "set": "imagenet_train1000"},
        "evaluation": {"images": len(unseen), "set": "imagenet_val"},
        "top1_source": round(float((before.argmax(axis=1) == unseen.labels).mean()), 4),
        "seed": SEED,
    }
    print(f"wrote {write_result('alphas', {**sets, 'rows': rows})}")


def quantized(graph: Path, place: Path, fit: ImageSet, options: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Quantize with one alpha; returns the graph and what the stage found. There is nothing to choose on `select`."""
    output, scratch = place / "output", place / "scratch"
    output.mkdir(parents=True)
    scratch.mkdir()
    few = fit.subset(range(min(len(fit), 2)))
    context = StageContext(
        input=graph, source=graph, output=output, scratch=scratch, images={Role.FIT: fit, Role.SELECT: few}, seed=SEED
    )
    result = quantize(QuantizeOptions(images=len(fit), select_images=2, **options), context)
    return output / "model.onnx", dict(result.facts)


def strength(facts: dict[str, Any]) -> dict[str, Any]:
    """What `auto` stands for."""
    found = facts["candidates"][0]
    return {"strength": found["strength"]} if "strength" in found else {}


def answers(graph: Path, precision: str, images: ImageSet, preprocess: Preprocess) -> Any:
    """Logits [N, C] of a graph in ONNX Runtime on the CPU."""
    with Worker() as worker:
        worker.load(graph, runtime="onnxruntime", precision=precision)
        return worker.infer(images.uint8(preprocess), batch=BATCH, preprocess=preprocess)["logits"]


def figures(before: Any, after: Any, labels: Any) -> dict[str, Any]:
    """Top-1, its drop, agreement and divergence, with intervals."""
    found = compare_answers(before, after, labels)
    agreement = found.agreement or 0.0
    return {
        "top1": round(found.engine, 4),
        "top1_ci95": share_ci95(found.engine, len(labels)),
        "drop_points": round(found.drop_points, 2),
        "drop_ci95": [round(edge, 2) for edge in found.drop_ci95 or ()],
        "agreement": round(agreement, 4),
        "agreement_ci95": share_ci95(agreement, len(labels)),
        "kl_nats": round(divergence(before, after), 5),
    }


def told(row: dict[str, Any]) -> str:
    """A row in a line."""
    kind = "symmetric" if row["symmetric"] else "asymmetric"
    alpha = f"alpha {row['alpha']}" + (f" ({row['strength']})" if "strength" in row else "")
    figure = f"top-1 {row['top1']:.1%}, agreement {row['agreement']:.1%}, KL {row['kl_nats']:.4f}"
    return f"{kind}, {row['scope']}, {alpha}: {figure}"


if __name__ == "__main__":
    main()
