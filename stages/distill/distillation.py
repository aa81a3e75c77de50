"""Distillation: from two model folders and unlabelled images to a student folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.data.images import ImageSet
from stages.distill.losses import DistillationLoss, Student, Weights, feature_energies
from stages.distill.stage import DistillOptions
from stages.training.augment import Augmentation
from stages.training.loop import Tell, Training, train
from stages.training.pictures import PlainBatches, TrainingImages, without_held_out
from stages.training.precision import pick_attention, pick_device, pick_precision
from stages.training.sampler import steps_for
from stages.vit.files import load_labels, load_model, load_spec, save_model
from stages.vit.spec import WEIGHTS_FILE, ViTSpec
from targets.atomic import sha256_of
from targets.errors import InputError

ENERGY_IMAGES = 128
"""enough that the class token's energy is known within about 2 %"""


def distill_model(
    options: DistillOptions,
    *,
    student_folder: Path,
    teacher_folder: Path,
    output: Path,
    scratch: Path,
    images: ImageSet,
    seed: int,
    tell: Tell = lambda message, share: None,
) -> dict[str, Any]:
    """Train the student to answer as the teacher does, write it to another folder, return the facts.

    Raises InputError for models or images that do not go together, StageError where training diverges.
    """
    spec, teacher_spec = load_spec(student_folder), load_spec(teacher_folder)
    check_models(spec, teacher_spec)
    check_images(images, options, classes=spec.classes)

    device = pick_device()
    precision = pick_precision(options.precision, device, width=spec.width)
    teacher = load_model(teacher_folder).to(device).requires_grad_(False)
    student = Student(load_model(student_folder), teacher_width=teacher_spec.width, seed=seed).to(device)
    for model in (teacher, student):
        pick_attention(model, precision, device, tokens=spec.tokens)
    shown, held_out = without_held_out(images, seed=seed) if options.stop_when_flat else (images, None)
    augmentation = Augmentation(crop_scale=options.crop_scale, crop_ratio=options.crop_ratio, flip=options.flip)
    data = TrainingImages(shown, spec.preprocess, augmentation=augmentation, batch_size=options.batch_size, seed=seed)
    training = Training(
        steps=steps_for(options.images_seen, batch_size=options.batch_size),
        lr=options.lr,
        weight_decay=options.weight_decay,
        warmup_share=options.warmup_share,
        clip=options.clip,
        accumulate=options.accumulate,
        ema_decay=options.ema_decay,
        precision=precision,
    )

    tell("distilling: the teacher's features", None)
    energies = feature_energies(teacher, _first_images(data, options.batch_size, device), precision)
    weights = Weights(
        features=options.feature_weight,
        logits=options.logits_weight,
        labels=options.labels_weight,
        temperature=options.temperature,
    )
    facts = train(
        student,
        DistillationLoss(student, teacher, energies, weights, precision=precision),
        data,
        training,
        scratch=scratch,
        identity=[
            options.model_dump(mode="json"),
            images.fingerprint,
            seed,
            *(sha256_of(folder / WEIGHTS_FILE) for folder in (student_folder, teacher_folder)),
        ],
        held_out=None if held_out is None else PlainBatches(held_out, spec.preprocess, options.batch_size),
        tell=lambda message, share: tell(f"distilling: {message}", share),
    )
    save_model(output, spec, student.model.state_dict(), labels=load_labels(student_folder))
    return {
        "summary": f"{facts['images_seen']:,} pictures of {len(shown):,} images seen in {facts['precision']}",
        **facts,
        "images": len(shown),
        "held_out_images": 0 if held_out is None else len(held_out),
        "teacher_feature_energy": energies,
    }


def check_models(student: ViTSpec, teacher: ViTSpec) -> None:
    """Raise InputError where a student cannot learn from this teacher."""
    if any(block.attention == "diluting" for block in student.blocks):
        raise InputError("distill cannot fade out attention yet (attention: diluting); leave the dropped attention off")
    if any(student.merge) or any(teacher.merge):
        raise InputError("distill cannot compare merged tokens yet; put merge_tokens after distill")
    for name in ("preprocess", "patch_size", "classes", "class_token", "register_tokens"):
        mine, other = getattr(student, name), getattr(teacher, name)
        if mine != other:
            raise InputError(f"student and teacher differ in {name}: {mine!r} and {other!r}; distill needs the same")


def check_images(images: ImageSet, options: DistillOptions, *, classes: int) -> None:
    """Raise InputError where the images cannot give what the options ask for."""
    if len(images) == 0:
        raise InputError("distill has no images; name some under data.train")
    if not (options.feature_weight or (options.logits_weight and classes) or options.labels_weight):
        raise InputError(
            "distill has nothing to learn: feature_weight, logits_weight and labels_weight are 0 "
            "(logits and labels need a model with a head); set feature_weight to 1"
        )
    if options.labels_weight:
        labels = images.labels
        if not classes:
            raise InputError("labels_weight needs a model with a head; set it to 0")
        if labels is None:
            raise InputError(
                f"labels_weight {options.labels_weight:g} needs a label for every image of data.train; "
                "give labels, or set it to 0"
            )
        if int(labels.max()) >= classes:
            raise InputError(
                f"label {int(labels.max())} of data.train is beyond the {classes} classes of the model; "
                "correct the labels, or set labels_weight to 0"
            )


def _first_images(data: TrainingImages, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """The first batches of the training: the same ones for a resumed run."""
    for batch in data(0, steps_for(ENERGY_IMAGES, batch_size=batch_size)):
        yield batch.to(device).images
