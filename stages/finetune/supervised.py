"""Supervised fine-tuning of a ViT: cross-entropy on labelled images.

Label smoothing: https://arxiv.org/abs/1512.00567. mixup: https://arxiv.org/abs/1710.09412.
Shapes: B images, C classes, F width of what enters the head.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.data.images import ImageSet
from stages.finetune.stage import FinetuneOptions
from stages.training.augment import Augmentation
from stages.training.logs import LogTo
from stages.training.loop import Tell, Training, train
from stages.training.options import ASIDE
from stages.training.pictures import Batch, PlainBatches, TrainingImages, without_held_out
from stages.training.precision import pick_attention, pick_device, pick_precision
from stages.training.ranks import check_batch, ranks, whole_state
from stages.training.sampler import steps_for
from stages.vit.files import build_empty, load_labels, load_spec, load_state, save_model
from stages.vit.model import ViT
from stages.vit.spec import WEIGHTS_FILE, ViTSpec
from targets.atomic import sha256_of
from targets.errors import InputError

HEAD_STD = 0.02
WIDE_POSITION_STD = 0.2
"""timm draws position embeddings with 0.02. A small ViT then takes most of a short training to tell places apart: 30
epochs of 1,000 digits gave 96.5 % with 0.02 and 98.6 % with 0.2 (500 held-out digits, everything else equal)"""


def finetune_model(
    options: FinetuneOptions,
    *,
    model_folder: Path,
    output: Path,
    scratch: Path,
    images: ImageSet,
    seed: int,
    tell: Tell = lambda message, share: None,
) -> dict[str, Any]:
    """Train a model folder's ViT on labelled images, write the result to another folder, return the facts.

    Raises InputError for images that cannot teach it, StageError where training diverges.
    """
    old_spec = load_spec(model_folder)
    classes = count_classes(images, old_spec.classes)
    spec = old_spec if classes == old_spec.classes else old_spec.replace(classes=classes, head_bias=True)
    model = load_for_training(model_folder, spec, seed=seed, from_scratch=options.from_scratch)

    among = ranks()
    check_batch(options.batch_size, among)
    device = pick_device(among)
    model.to(device)
    precision = pick_precision(options.precision, device, width=spec.width)
    pick_attention(model, precision, device, tokens=spec.tokens)
    shown, held_out = without_held_out(images, seed=seed) if options.stop_when_flat else (images, None)
    data = TrainingImages(
        shown,
        spec.preprocess,
        augmentation=Augmentation(
            crop_scale=options.crop_scale,
            crop_ratio=options.crop_ratio,
            flip=options.flip,
            shift=options.shift,
            degrees=options.degrees,
        ),
        batch_size=options.batch_size,
        seed=seed,
        among=among,
    )
    training = Training(
        steps=steps_for(options.epochs * len(shown), batch_size=options.batch_size),
        lr=options.lr,
        weight_decay=options.weight_decay,
        layer_decay=options.layer_decay,
        warmup_share=options.warmup_share,
        clip=options.clip,
        accumulate=options.accumulate,
        ema_decay=options.ema_decay,
        precision=precision,
        sharded=options.sharded,
    )

    facts = train(
        model,
        SupervisedLoss(model, label_smoothing=options.label_smoothing, mixup=options.mixup, seed=seed),
        data,
        training,
        scratch=scratch,
        among=among,
        log_to=LogTo(kind=options.log, folder=options.log_folder, name="finetune"),
        identity=[
            options.model_dump(mode="json", exclude=set(ASIDE)),
            images.fingerprint,
            seed,
            sha256_of(model_folder / WEIGHTS_FILE),
        ],
        held_out=None if held_out is None else PlainBatches(held_out, spec.preprocess, options.batch_size),
        tell=lambda message, share: tell(f"fine-tuning: {message}", share),
    )
    labels = images.classes or (load_labels(model_folder) if spec is old_spec else None)
    save_model(output, spec, whole_state(model), labels=labels)
    return {
        "summary": f"{facts['images_seen']:,} pictures of {len(shown):,} images seen in {facts['precision']}",
        **facts,
        "images": len(shown),
        "classes": spec.classes,
        "new_head": spec is not old_spec,
        "held_out_images": 0 if held_out is None else len(held_out),
    }


def count_classes(images: ImageSet, known: int) -> int:
    """How many classes the head needs, `known` being those of the model. Raises InputError for unfit images."""
    labels = images.labels
    if len(images) == 0:
        raise InputError("finetune has no images; name some under data.train")
    if labels is None:
        raise InputError(
            f"finetune needs a label for every image, and the {len(images)} images of data.train have none for some or "
            "all; give a labels file, put them in one folder per class, or leave finetune out"
        )
    highest = int(labels.max()) + 1
    classes = len(images.classes) if images.classes else max(known, highest)
    if highest > classes:
        raise InputError(
            f"label {highest - 1} of data.train is beyond its {classes} classes; correct labels or classes"
        )
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"all {len(images)} images of data.train have the label {highest - 1}; give at least two classes"
        )
    return classes


def load_for_training(folder: Path, spec: ViTSpec, *, seed: int, from_scratch: bool) -> ViT:
    """The folder's model with the head that `spec` asks for: its own, or a new one drawn from the seed."""
    model = build_empty(spec)
    state = load_state(folder)
    draw = torch.Generator().manual_seed(seed)
    if isinstance(model.head, nn.Linear) and load_spec(folder).classes != spec.classes:
        weight = torch.empty(model.head.weight.shape)  # [C, F]
        state["head.weight"] = nn.init.trunc_normal_(weight, std=HEAD_STD, generator=draw)
        state["head.bias"] = torch.zeros(spec.classes)
    if from_scratch and "pos_embed" in state:
        state["pos_embed"] = torch.randn(state["pos_embed"].shape, generator=draw) * WIDE_POSITION_STD
    model.load_state_dict(state, assign=True)
    return model


class SupervisedLoss:
    """Cross-entropy with label smoothing; while the model trains, mixup where alpha is above 0."""

    def __init__(self, model: ViT, *, label_smoothing: float, mixup: float, seed: int) -> None:
        self._model, self._smoothing, self._alpha, self._seed = model, label_smoothing, mixup, seed

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"cross_entropy": mean over the batch}."""
        if batch.labels is None:
            raise ValueError("this batch has no labels")
        if not self._alpha or not self._model.training:
            return {"cross_entropy": self._cross_entropy(self._model(batch.images), batch.labels)}
        share = float(np.random.default_rng([self._seed, batch.step]).beta(self._alpha, self._alpha))
        logits = self._model(share * batch.images + (1 - share) * batch.images.flip(0))  # [B, C]
        own, other = (self._cross_entropy(logits, labels) for labels in (batch.labels, batch.labels.flip(0)))
        return {"cross_entropy": share * own + (1 - share) * other}

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, label_smoothing=self._smoothing)
