"""drop_attention: accuracy of ViT-Tiny without attentions, without any training.

    python benchmarks/attention_removal.py [--fit N] [--select N] [--evaluate N] [--counts N,N] [--trial] [--resume]

The attentions are chosen on 300 images of imagenet_train1000 (by hash), the MLPs fitted on the 700 others, and top-1
read on the 1,100 of imagenet_val, with torch in fp32. `last` removes the last ones of the model, `random` is the mean
of two draws, `repaired` is judged by the answers after the next MLP is fitted again. Latency without attentions:
published_latency.py. --trial prints and writes no result file.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks.conditions import add_resume, assets, measured_with, read_result, write_result
from pipeline.statistics import agreement, compare_answers
from stages.data.images import ImageSet, open_images
from stages.data.source import DataSource
from stages.drop_attention.drop import BATCH, choose, remove_from
from stages.drop_attention.options import DropAttentionOptions
from stages.source.load import load_source
from stages.source.options import SourceOptions
from stages.stage import Role
from stages.vit.model import ViT

MODEL = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SELECTED = 300
"""of the 1,000 training images; the others fit"""
DRAWS = 2
CHOICES = ("last", "entropy", "divergence", "random", "repaired")


def main() -> None:
    """Measure what is asked for and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", type=int, default=700, help="images the MLPs are fitted on")
    parser.add_argument("--select", type=int, default=SELECTED, help="images that choose")
    parser.add_argument("--evaluate", type=int, help="images that are evaluated; default: all")
    parser.add_argument("--counts", default="1,2,3,4,6", help="how many attentions to remove")
    parser.add_argument("--trial", action="store_true", help="write no result file")
    add_resume(parser)
    arguments = parser.parse_args()
    counts = [int(one) for one in arguments.counts.split(",")]
    known = read_result("attention_removal") if arguments.resume else {}
    for found in accuracy(counts, arguments.fit, arguments.select, arguments.evaluate, known):
        if not arguments.trial:
            told = {"torch_threads": torch.get_num_threads(), **found}
            print(f"wrote {write_result('attention_removal', told)}", flush=True)


def accuracy(
    counts: list[int], fit: int, select: int, evaluate: int | None, known: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield top-1 and agreement of ViT-Tiny by choice, count and repair, after each row. known: measured before."""
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
    rows: list[dict[str, Any]] = known.get("rows", [])
    searches: dict[str, Any] = known.get("searches", {})

    def searched(by: str) -> list[int]:
        if by in searches:
            return list(searches[by]["order"])
        options = DropAttentionOptions(count=most, by=by)
        started = time.perf_counter()
        steps, images = choose(model, spec, options, selecting, fit=fitting, tell=lambda message, share: None)
        searches[by] = {
            "order": [step.block for step in steps],
            "scores": [round(step.score, 5) for step in steps],
            "images": images,
            "seconds": round(time.perf_counter() - started, 1),
        }
        print(f"{by}: {searches[by]}", flush=True)
        return [step.block for step in steps]

    for choice in CHOICES:
        wanted = [(count, one) for count in counts for one in (("mlp",) if choice == "random" else ("none", "mlp"))]
        done = {(row["count"], row["repair"]) for row in rows if row["choice"] == choice}
        if done.issuperset(wanted):
            continue
        if choice == "random":
            tried = [random.Random(draw).sample(range(depth), depth) for draw in range(DRAWS)]
        else:
            tried = [list(range(depth - 1, -1, -1)) if choice == "last" else searched(choice)]
        stamp = measured_with()
        for count, repair in wanted:
            if (count, repair) in done:
                continue
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
            rows.append(row | stamp)
            print(
                f"{choice:<10} {count} {repair:<5} top-1 {100 * row['top1']:5.1f} %, "
                f"agreement {100 * row['agreement']:5.1f} %",
                flush=True,
            )
            yield {
                "model": MODEL,
                "select_images": sum(len(batch) for batch in selecting),
                "fit_images": sum(len(batch) for batch in fitting),
                "evaluation_images": len(chosen),
                "top1_source": round(float((before.argmax(axis=1) == labels).mean()), 4),
                "searches": searches,
                "rows": rows,
            }


if __name__ == "__main__":
    main()
