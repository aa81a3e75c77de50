"""The real ViT-Tiny with real images, read once, and what a changed model is worth: for benchmarks of accuracy.

Calibrates on imagenet_train1000, evaluates on the 1,100 images of imagenet_val, with torch in fp32.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from benchmarks.conditions import assets
from pipeline.statistics import compare_answers
from stages.data.images import ImageSet, open_images
from stages.data.source import DataSource
from stages.source.load import load_source
from stages.source.options import SourceOptions
from stages.stage import Role
from stages.vit.model import ViT
from targets.preprocess import Preprocess

MODEL = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
BATCH = 32


class RealViT:
    """The model, decoded images, and the source's answers to them."""

    def __init__(self, *, fit: int | None = None, evaluate: int | None = None) -> None:
        """fit, evaluate: so many images, evenly drawn; None: all."""
        folder = assets()
        weights: Path = next((folder / "vit_tiny_patch16_224").glob("*.safetensors"))
        source = load_source(SourceOptions(timm=MODEL, checkpoint=weights), seed=0)
        self.spec, self.state = source.spec, source.state
        self.model = ViT(source.spec.model_dump(mode="json"))
        self.model.load_state_dict(source.state)
        self.model.eval()
        training = DataSource(images=folder / "imagenet_train1000" / "images.zip")
        validation = folder / "imagenet_val"
        labelled = DataSource(images=validation / "images.zip", labels=validation / "labels.csv")
        fitting = some(open_images(training, Role.FIT, index_cache=None), fit)
        unseen = some(open_images(labelled, Role.EVALUATE, index_cache=None), evaluate)
        assert unseen.labels is not None
        self.labels = unseen.labels
        self.calibration = decoded(fitting, self.spec.preprocess)
        self.unseen = decoded(unseen, self.spec.preprocess)
        self.before = answers(self.model, self.unseen)
        self.top1 = float((self.before.argmax(axis=1) == self.labels).mean())
        self.sets = {
            "model": MODEL,
            "calibration": {"images": len(fitting), "set": "imagenet_train1000"},
            "evaluation": {"images": len(unseen), "set": "imagenet_val"},
            "seed": 0,
            "torch_threads": torch.get_num_threads(),
            "top1_source": round(self.top1, 4),
        }
        """what a result file says of it"""
        print(f"fp32, not changed: top-1 {100 * self.top1:.1f} %", flush=True)

    def figures(self, changed: torch.nn.Module) -> dict[str, Any]:
        """Top-1 and its drop, agreement and divergence of a changed model, with intervals."""
        after = answers(changed, self.unseen)
        compared = compare_answers(self.before, after, self.labels)
        agreement = compared.agreement or 0.0
        return {
            "top1": round(compared.engine, 4),
            "top1_ci95": share_ci95(compared.engine, len(self.labels)),
            "drop_points": round(compared.drop_points, 2),
            "drop_ci95": [round(edge, 2) for edge in compared.drop_ci95 or ()],
            "agreement": round(agreement, 4),
            "agreement_ci95": share_ci95(agreement, len(self.labels)),
            "kl_nats": round(divergence(self.before, after), 5),
            "parameters": sum(one.numel() for one in changed.parameters()),
        }


def told(row: dict[str, Any]) -> str:
    """Figures of a row in a line."""
    return f"top-1 {100 * row['top1']:5.1f} %, agreement {100 * row['agreement']:5.1f} %, KL {row['kl_nats']:.4f}"


def some(images: ImageSet, count: int | None) -> ImageSet:
    """Return every n-th image, `count` of them; all for None."""
    return images if count is None else images.subset([i * len(images) // count for i in range(count)])


def decoded(images: ImageSet, preprocess: Preprocess) -> list[torch.Tensor]:
    """Batches of images, decoded and normalised once for all variants."""
    return [torch.as_tensor(batch) for batch in images.batches(preprocess, BATCH)]


def answers(model: torch.nn.Module, batches: list[torch.Tensor]) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Logits [N, C] of every image, in order."""
    with torch.inference_mode():
        return np.concatenate([model(batch).numpy() for batch in batches])


def divergence(before: Any, after: Any) -> float:
    """Mean KL(source, changed) in nats."""
    p, q = (torch.as_tensor(one).double().log_softmax(dim=1) for one in (before, after))
    return float((p.exp() * (p - q)).sum(dim=1).mean())


def share_ci95(share: float, images: int) -> list[float]:
    """Wilson's 95 % interval of a share of images."""
    interval = binomtest(round(share * images), images).proportion_ci(method="wilson")
    return [round(interval.low, 4), round(interval.high, 4)]
