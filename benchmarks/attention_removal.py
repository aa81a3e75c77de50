"""drop_attention: accuracy of ViT-Tiny without attentions, and latency of DeiT-B's shape without them.

    python benchmarks/attention_removal.py [--part accuracy|latency] [--fit N] [--select N] [--evaluate N]
                                           [--counts N,N] [--shape NAME] [--level quick|full] [--trial]

Accuracy: no training. The attentions are chosen on 300 images of imagenet_train1000 (by hash), the MLPs fitted on the
700 others, and top-1 read on the 1,100 of imagenet_val, with torch in fp32. `last` removes the last ones of the model,
`random` is the mean of three draws. Latency: ONNX Runtime on this CPU, fp32, batch 1, random weights, unpruned and 40 %
and 50 % of the attentions removed, interleaved. --trial prints and writes no result file.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import timm
import torch

from benchmarks.conditions import assets, write_result
from benchmarks.published_shapes import REMOVED
from pipeline.statistics import agreement, compare_answers
from stages.data.images import ImageSet, open_images
from stages.data.source import DataSource
from stages.drop_attention.drop import BATCH, choose, remove_from
from stages.drop_attention.options import DropAttentionOptions
from stages.export.graph import save_graph, tidy, trace
from stages.source.load import load_source
from stages.source.options import SourceOptions
from stages.stage import Role
from stages.vit.counts import count_macs, count_params
from stages.vit.model import ViT
from stages.vit.timm_reader import read_spec
from targets.measure.latency import EngineUnderTest, compare
from targets.measure.percentiles import p50_ci95, p50_of, paired_ratio
from targets.worker import Worker

MODEL = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SELECTED = 300
"""of the 1,000 training images; the others fit"""
DRAWS = 3


def main() -> None:
    """Measure what is asked for and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("accuracy", "latency"), help="default: both")
    parser.add_argument("--fit", type=int, default=700, help="images the MLPs are fitted on")
    parser.add_argument("--select", type=int, default=SELECTED, help="images that choose")
    parser.add_argument("--evaluate", type=int, help="images that are evaluated; default: all")
    parser.add_argument("--counts", default="1,2,3,4,5,6", help="how many attentions to remove")
    parser.add_argument("--shape", default="deit_base_patch16_224", help="timm name of the shape that is timed")
    parser.add_argument("--level", choices=("quick", "full"), default="full", help="of the latency")
    parser.add_argument("--trial", action="store_true", help="write no result file")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"torch_threads": torch.get_num_threads()}
    if arguments.part != "latency":
        counts = [int(one) for one in arguments.counts.split(",")]
        found["accuracy"] = accuracy(counts, arguments.fit, arguments.select, arguments.evaluate)
    if arguments.part != "accuracy":
        found["latency"] = latency(arguments.shape, arguments.level)
    if not arguments.trial:
        print(f"wrote {write_result('attention_removal', found)}")


def accuracy(counts: list[int], fit: int, select: int, evaluate: int | None) -> dict[str, Any]:
    """Top-1 and agreement of ViT-Tiny by choice, count and repair."""
    folder = assets()
    weights = next((folder / "vit_tiny_patch16_224").glob("*.safetensors"))
    source = load_source(SourceOptions(timm=MODEL, checkpoint=weights), seed=0)
    spec = source.spec
    model = ViT(spec.model_dump(mode="json"))
    model.load_state_dict(source.state)
    model.eval()

    def decoded(images: ImageSet, indices: list[int]) -> list[torch.Tensor]:
        return [torch.as_tensor(batch) for batch in images.subset(indices).batches(spec.preprocess, BATCH)]

    training = open_images(DataSource(images=folder / "imagenet_train1000" / "images.zip"), Role.FIT, index_cache=None)
    order = sorted(range(len(training)), key=lambda index: training.items[index].sha256)
    selecting, fitting = decoded(training, order[:select]), decoded(training, order[SELECTED : SELECTED + fit])
    validation = open_images(
        DataSource(images=folder / "imagenet_val" / "images.zip", labels=folder / "imagenet_val" / "labels.csv"),
        Role.EVALUATE,
        index_cache=None,
    )
    # Every so many, because the set is sorted by class.
    step = 1 if evaluate is None else max(len(validation) // evaluate, 1)
    chosen = list(range(0, len(validation), step))
    assert validation.labels is not None
    unseen, labels = decoded(validation, chosen), validation.labels[chosen]

    def answers(one: ViT) -> "np.ndarray[Any, np.dtype[np.float32]]":
        with torch.inference_mode():
            return np.concatenate([one(batch).numpy() for batch in unseen])

    before = answers(model)
    depth, most = len(spec.blocks), max(counts)
    orders: dict[str, list[list[int]]] = {"last": [list(range(depth - 1, -1, -1))]}
    searches: dict[str, Any] = {}
    for by in ("entropy", "divergence"):
        options = DropAttentionOptions(count=most, by=by)
        started = time.perf_counter()
        steps, images = choose(model, spec, options, selecting, tell=lambda message, share: None)
        orders[by] = [[step.block for step in steps]]
        searches[by] = {
            "order": orders[by][0],
            "scores": [round(step.score, 5) for step in steps],
            "images": images,
            "seconds": round(time.perf_counter() - started, 1),
        }
        print(f"{by}: {searches[by]}", flush=True)
    orders["random"] = [random.Random(draw).sample(range(depth), depth) for draw in range(DRAWS)]

    rows = []
    for choice, tried in orders.items():
        for count in counts:
            for repair in ("none", "mean", "mlp"):
                compared, same = [], []
                for sequence in tried:
                    dropped = tuple(sorted(sequence[:count]))
                    options = DropAttentionOptions(blocks=dropped, repair=repair)
                    changed, _, _ = remove_from(model, spec, dropped, options, fitting if options.repairs else None)
                    after = answers(changed)
                    compared.append(compare_answers(before, after, labels))
                    same.append(agreement(before, after))
                row = {
                    "choice": choice,
                    "count": count,
                    "repair": repair,
                    "draws": len(tried),
                    "top1": round(float(np.mean([one.engine for one in compared])), 4),
                    "agreement": round(float(np.mean(same)), 4),
                }
                if len(tried) == 1:
                    row["drop_ci95"] = [round(edge, 2) for edge in compared[0].drop_ci95 or ()]
                rows.append(row)
                print(
                    f"{choice:<10} {count} {repair:<5} top-1 {100 * row['top1']:5.1f} %, "
                    f"agreement {100 * row['agreement']:5.1f} %",
                    flush=True,
                )
    return {
        "model": MODEL,
        "select_images": sum(len(batch) for batch in selecting),
        "fit_images": sum(len(batch) for batch in fitting),
        "evaluation_images": len(chosen),
        "top1_source": round(float((before.argmax(axis=1) == labels).mean()), 4),
        "searches": searches,
        "rows": rows,
    }


def latency(shape: str, level: Any) -> dict[str, Any]:
    """Latency of a shape with random weights, unpruned and without attentions, interleaved."""
    with torch.device("meta"):
        spec = read_spec(timm.create_model(shape), name=shape)
    torch.manual_seed(0)
    model = ViT(spec.model_dump(mode="json")).eval()
    specs = {}
    with tempfile.TemporaryDirectory(prefix="vitrim-bench-") as folder:
        engines = {}
        for role, dropped in REMOVED.items():
            options = DropAttentionOptions(blocks=dropped or (0,), repair="none")
            one, specs[role] = remove_from(model, spec, dropped, options, None)[:2] if dropped else (model, spec)
            graph = trace(one, outputs=("logits",), batch="dynamic", opset=20)
            tidy(graph)
            there = Path(folder, str(len(engines)))
            for name in ("graph", "engine"):
                (there / name).mkdir(parents=True)
            path = save_graph(graph, there / "graph")[0]
            with Worker() as worker:
                worker.build(path, there / "engine", runtime="onnxruntime", precision="fp32", batch=1)
            engines[role] = EngineUnderTest(folder=there / "engine", batch=1)
        inputs = np.random.default_rng(0).standard_normal((16, *spec.input_shape), dtype=np.float32)
        measured = compare(engines, inputs, level=level).measurements
    rows = []
    for role, one in measured.items():
        ratio, interval = paired_ratio(measured["unpruned"], one)
        row = {
            "attentions_removed": len(REMOVED[role]),
            "params": count_params(specs[role]),
            "macs": count_macs(specs[role]),
            "p50_ms": round(p50_of(one), 2),
            "p50_ci95": [round(edge, 2) for edge in p50_ci95(one)],
            "times_faster": round(ratio, 3),
            "times_faster_ci95": [round(edge, 3) for edge in interval],
            "flags": list(one.flags),
        }
        rows.append(row)
        print(
            f"{shape} {role:<9} p50 {row['p50_ms']} ms, {row['times_faster']}x {row['times_faster_ci95']}", flush=True
        )
    return {"model": f"{shape}, random weights", "runtime": "onnxruntime fp32, batch 1", "rows": rows}


if __name__ == "__main__":
    main()
