"""One of several processes that train together: `together.py KIND FOLDER [SECONDS_PER_STEP]`.

KIND is finetune or distill, or one of them with -sharded. FOLDER holds `model` and `teacher`; the first process writes
`result`, checkpoints go to `scratch`.
"""

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from stages.data.images import ImageSet, Item
from stages.distill.distillation import distill_model
from stages.distill.stage import DistillOptions
from stages.finetune.stage import FinetuneOptions
from stages.finetune.supervised import finetune_model
from stages.stage import Role
from stages.training import loop
from stages.training.ranks import finish, ranks, whole


def images() -> ImageSet:
    """Coloured noise of four classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (240, 20, 20, 3), dtype=np.uint8)
    items = tuple(Item(f"{i:03}", f"{i:064x}", i % 4) for i in range(240))
    return ImageSet(role=Role.TRAIN, items=items, places=tuple(pixels), classes=("a", "b", "c", "d"))


def main() -> None:
    """Train and write the result."""
    torch.set_num_threads(1)
    kind, _, sharded = sys.argv[1].partition("-")
    folder = Path(sys.argv[2])
    pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    make_step = loop._make_step

    def slow_step(*arguments):
        time.sleep(pause)
        return make_step(*arguments)

    loop._make_step = slow_step
    clip, norms = torch.nn.utils.clip_grad_norm_, []

    def note_norm(*arguments):
        norms.append(float(whole(clip(*arguments))))

    torch.nn.utils.clip_grad_norm_ = note_norm
    loop.train.__kwdefaults__["checkpoint_seconds"] = 0.0
    with TemporaryDirectory() as elsewhere:
        first = ranks().is_first
        output = folder / "result" if first else Path(elsewhere, "result")
        scratch = folder / "scratch" if first else Path(elsewhere, "scratch")
        common = {"output": output, "scratch": scratch, "images": images(), "seed": 3}
        if kind == "finetune":
            options = FinetuneOptions(
                epochs=3,
                batch_size=15,
                mixup=0.4,
                ema_decay=0.9,
                lr=1e-3,
                precision="fp32",
                stop_when_flat=True,
                sharded=bool(sharded),
            )
            facts = finetune_model(options, model_folder=folder / "model", **common)
        else:
            options = DistillOptions(
                images_seen=480,
                batch_size=12,
                accumulate=2,
                lr=1e-3,
                precision="fp32",
                logits_weight=0,
                sharded=bool(sharded),
                weight_decay=0.1,
            )
            facts = distill_model(options, student_folder=folder / "model", teacher_folder=folder / "teacher", **common)
        if first:
            (folder / "facts.json").write_text(json.dumps({**facts, "gradient_norms": norms}))
    finish()


if __name__ == "__main__":
    main()
