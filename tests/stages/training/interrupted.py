"""A training that can be killed: `interrupted.py SCRATCH OUTPUT` goes on from SCRATCH and writes weights and facts."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from stages.data.images import ImageSet, Item
from stages.stage import Role
from stages.training.augment import Augmentation
from stages.training.loop import Training, train
from stages.training.pictures import Batch, PlainBatches, TrainingImages
from stages.vit.model import ViT
from stages.vit.spec import BlockSpec, ViTSpec
from targets.preprocess import Preprocess

STEPS = 60


def run(scratch: Path, output: Path, *, seconds_per_step: float = 0.0) -> None:
    """Train a tiny ViT with everything that has a state: AdamW, moving average, held-out images, accumulation."""
    block = BlockSpec(heads=2, d_qk=8, d_v=8, scale=0.35, mlp_width=32, norm1_eps=1e-6, norm2_eps=1e-6)
    preprocess = Preprocess(height=16, width=16, interpolation="bilinear")
    spec = ViTSpec(
        architecture="tiny", preprocess=preprocess, patch_size=(8, 8), width=16, classes=4, blocks=(block, block)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViT(spec.model_dump(mode="json"))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 20, 20, 3), dtype=np.uint8)
    items = tuple(Item(str(i), f"{i:064x}", i % 4) for i in range(40))
    images = ImageSet(role=Role.TRAIN, items=items, places=tuple(pixels))
    augmentation = Augmentation(crop_scale=(0.3, 1.0), flip=True, degrees=10)
    data = TrainingImages(images, preprocess, augmentation=augmentation, batch_size=8, seed=0)

    def loss(batch: Batch) -> dict[str, torch.Tensor]:
        time.sleep(seconds_per_step)
        return {"cross_entropy": F.cross_entropy(model(batch.images), batch.labels)}

    facts = train(
        model,
        loss,
        data,
        Training(steps=STEPS, lr=1e-3, ema_decay=0.9, accumulate=2),
        scratch=scratch,
        held_out=PlainBatches(images.subset(range(8)), preprocess, 8),
        checkpoint_seconds=0.0,
    )
    output.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), output / "weights.safetensors")
    facts = {name: value for name, value in facts.items() if "second" not in name}
    (output / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), Path(sys.argv[2]), seconds_per_step=0.01)
