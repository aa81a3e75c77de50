"""Trains a Vision Transformer of two blocks on handwritten digits and saves it in timm's names: some seconds.

python train_digits.py FILE.safetensors
"""

import sys

import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn import functional as F

MODEL = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
STEPS, BATCH = 300, 64


def main(file: str) -> None:
    """Train, and refuse to save what learned nothing."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16  # [N, 1, 8, 8]
    images = F.interpolate(images, size=16, mode="bicubic").clamp(0, 1).repeat(1, 3, 1, 1) * 2 - 1
    labels = torch.from_numpy(data.target)
    model = timm.create_model("vit_tiny_patch16_224", **MODEL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=STEPS)
    for _ in range(STEPS):
        picked = torch.randint(len(images), (BATCH,))
        loss = F.cross_entropy(model(images[picked]), labels[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    right = float((model.eval()(images).argmax(1) == labels).float().mean())
    assert right > 0.8, f"only {right:.0%} of the digits are recognised"
    save_file(model.state_dict(), file)


if __name__ == "__main__":
    main(sys.argv[1])
