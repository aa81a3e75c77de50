"""Distillation: from two model folders and unlabelled images to a student folder."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.data.images import ImageSet
from stages.distill.dilution import Dilution, diluting_blocks
from stages.distill.losses import BLOCK, FEATURES, DistillationLoss, Student, Weights, feature_energies
from stages.distill.stage import DistillOptions
from stages.distill.teacher import StrongerTeacher, comparable, load_teacher, resizing
from stages.training.augment import Augmentation
from stages.training.logs import LogTo
from stages.training.loop import EVALUATIONS, Tell, Training, train
from stages.training.memory import recompute_blocks
from stages.training.options import ASIDE
from stages.training.pictures import PlainBatches, TrainingImages, without_held_out
from stages.training.precision import pick_attention, pick_device, pick_precision
from stages.training.ranks import check_batch, ranks, whole_state
from stages.training.sampler import steps_for
from stages.vit.files import load_labels, load_model, load_spec, save_model
from stages.vit.fold import fold_doubling, folded_spec
from stages.vit.model import ViT
from stages.vit.spec import WEIGHTS_FILE, ViTSpec
from targets.atomic import sha256_of
from targets.errors import InputError
from targets.preprocess import Preprocess

ENERGY_IMAGES = 128
"""enough that the class token's energy is known within about 2 %"""
LEAST_JUDGED, JUDGED_SHARE = 256, 8
"""images of select that are looked at: at most this share of the images seen, 1 / 8, but not fewer than that"""
FEWEST_LOOKS = 4


def distill_model(
    options: DistillOptions,
    *,
    student_folder: Path,
    teacher_folder: Path,
    output: Path,
    scratch: Path,
    images: ImageSet,
    select: ImageSet | None = None,
    seed: int,
    tell: Tell = lambda message, share: None,
) -> dict[str, Any]:
    """Train the student to answer as the teacher does, write it to another folder, return the facts.

    teacher_folder: of the source, which teaches unless the options name another. select: says when to stop, where the
    options ask for it. Raises InputError for models or images that do not go together, StageError where training
    diverges.
    """
    spec, labels = load_spec(student_folder), load_labels(student_folder)
    folded = folded_spec(spec)  # refuses what cannot be folded before hours of training
    check_images(images, options, classes=spec.classes)
    tell("distilling: the teacher", None)
    teacher, teacher_spec = _load_teacher(options, spec, teacher_folder, labels)
    fits = teacher.output_names if teacher_spec is None else comparable(teacher_spec, teacher_spec.classes, spec)
    compared = check_compared(options, spec, fits)

    among = ranks()
    check_batch(options.batch_size, among)
    device = pick_device(among)
    precision = pick_precision(options.precision, device, width=spec.width)
    teacher = teacher.to(device).requires_grad_(False)
    student = Student(load_model(student_folder), teacher_width=(teacher_spec or spec).width, seed=seed).to(device)
    for model in (teacher, student):
        pick_attention(model, precision, device, tokens=spec.tokens)
    if options.recompute:
        recompute_blocks(student.model)
    shown, held_out = images, None
    if options.judged_on == "train":
        shown, held_out = without_held_out(images, seed=seed)
    elif options.judged_on == "select" and select is not None:
        held_out = select.first_by_content(max(LEAST_JUDGED, options.images_seen // JUDGED_SHARE))
    augmentation = Augmentation(crop_scale=options.crop_scale, crop_ratio=options.crop_ratio, flip=options.flip)
    drawn = drawn_at(spec, teacher_spec if options.teacher is None else None)
    data = TrainingImages(
        shown, drawn, augmentation=augmentation, batch_size=options.batch_size, seed=seed, among=among
    )
    steps = steps_for(options.images_seen, batch_size=options.batch_size)
    fading = diluting_blocks(student.model)
    dilution = Dilution(options.dilution, math.ceil(options.dilution_share * steps)) if fading else None
    training = Training(
        steps=steps,
        lr=options.lr,
        weight_decay=options.weight_decay,
        weight_decay_end=options.weight_decay_end,
        betas=options.betas,
        warmup_share=options.warmup_share,
        clip=options.clip,
        accumulate=options.accumulate,
        ema_decay=options.ema_decay,
        settle_steps=dilution.steps if dilution else 0,
        evaluations=looks(options.images_seen, 0 if held_out is None else len(held_out)),
        precision=precision,
        sharded=options.sharded,
    )

    tell("distilling: the teacher's features", None)
    first = TrainingImages(shown, drawn, augmentation=augmentation, batch_size=options.batch_size, seed=seed)
    features = [name for name in compared if name != "logits"]
    energies = among.agree(
        feature_energies(teacher, _first_images(first, options.batch_size, device), precision, names=features)
    )
    weights = Weights(
        features=options.feature_weight,
        logits=options.logits_weight,
        labels=options.labels_weight,
        temperature=options.temperature,
        blocks=options.block_weight,
    )
    loss = DistillationLoss(
        student, teacher, energies, weights, precision=precision, answers="logits" in fits, dilution=dilution
    )
    facts = train(
        student,
        loss,
        data,
        training,
        scratch=scratch,
        among=among,
        log_to=LogTo(kind=options.log, folder=options.log_folder, name="distill"),
        identity=[
            options.model_dump(mode="json", exclude=set(ASIDE)),
            images.fingerprint,
            None if select is None else select.fingerprint,
            seed,
            sha256_of(student_folder / WEIGHTS_FILE),
            _teacher_digest(options, teacher_folder),
        ],
        held_out=None if held_out is None else PlainBatches(held_out, drawn, options.batch_size),
        judge=loss.judge if options.judged_on == "select" else None,
        tell=lambda message, share: tell(f"distilling: {message}", share),
    )
    state = whole_state(student.model)
    if fading:
        folded, state = fold_doubling(spec, state)
    save_model(output, folded, state, labels=labels)
    gone = f"; attention of blocks {', '.join(map(str, fading))} faded out" if fading else ""
    return {
        "summary": f"{facts['images_seen']:,} pictures of {len(shown):,} images seen in {facts['precision']}{gone}",
        **facts,
        "images": len(shown),
        "held_out_images": 0 if held_out is None else len(held_out),
        "compared": compared,
        "teacher_feature_energy": energies,
        **({"faded_out": fading, "dilution_steps": dilution.steps} if dilution else {}),
    }


def looks(images_seen: int, judged: int) -> int:
    """Return how often held-out images are looked at: their passes are at most a quarter of those of the training.

    An image that is trained on costs four passes, the teacher's and three of the student; one looked at costs two.
    """
    if not judged:
        return EVALUATIONS
    return min(EVALUATIONS, max(FEWEST_LOOKS, images_seen // (2 * judged)))


def check_models(student: ViTSpec, teacher: ViTSpec) -> None:
    """Raise InputError where a student cannot learn from this source."""
    if any(teacher.merge):
        raise InputError(
            "distill needs a teacher with all patches, but the source model merges tokens; take another source"
        )
    size = {"height": student.preprocess.height, "width": student.preprocess.width}
    teacher = teacher.replace(preprocess=teacher.preprocess.replace(**size))  # resized pictures are another matter
    for name in ("preprocess", "patch_size", "classes", "class_token", "register_tokens"):
        mine, other = getattr(student, name), getattr(teacher, name)
        if mine != other:
            raise InputError(f"student and teacher differ in {name}: {mine!r} and {other!r}; distill needs the same")


def check_compared(options: DistillOptions, student: ViTSpec, taught: Sequence[str]) -> list[str]:
    """Return what student and teacher are compared in; raises InputError where the options ask for more than fits.

    taught: outputs of the teacher that fit the student's.
    """
    compared = [name for name in FEATURES if name in taught] if options.feature_weight else []
    if options.logits_weight and student.classes:
        if "logits" not in taught:
            raise InputError(
                f"the teacher does not answer for the {student.classes} classes of the model, so that their answers "
                "cannot be compared; set logits_weight to 0 to learn its features alone, or give another teacher"
            )
        compared.append("logits")
    for index in options.block_features if options.block_weight else ():
        if index >= len(student.blocks):
            raise InputError(f"block_features: the model has no block {index}; its last is {len(student.blocks) - 1}")
        if f"{BLOCK}{index}" not in taught:
            raise InputError(
                "block_features needs a teacher with as many blocks and tokens as the model, and of the same width; "
                "leave block_features empty, or give another teacher"
            )
        compared.append(f"{BLOCK}{index}")
    judges = options.judged_on == "select"
    if not compared and (judges or not options.labels_weight):
        raise InputError(
            "this teacher has nothing that fits the model: neither classes nor class token nor patches; "
            "give another teacher"
        )
    return compared


def _load_teacher(
    options: DistillOptions, spec: ViTSpec, source: Path, labels: list[str] | None
) -> tuple[ViT | StrongerTeacher, ViTSpec | None]:
    """The teacher and its spec, None where it is no ViT."""
    if options.teacher is not None:
        stronger = load_teacher(options.teacher, spec, labels=labels)
        if stronger.spec is not None and any(stronger.spec.merge):
            raise InputError("distill needs a teacher with all patches, but this one merges tokens; give another")
        return stronger, stronger.spec
    teacher_spec, model = load_spec(source), load_model(source)
    check_models(spec, teacher_spec)
    if teacher_spec.preprocess == spec.preprocess:
        return model, teacher_spec
    return resizing(model, teacher_spec, student=spec), teacher_spec


def drawn_at(student: ViTSpec, source: ViTSpec | None) -> Preprocess:
    """How pictures are prepared: as the larger of student and source reads them, so that the teacher sees all it can.

    source: None where another model teaches, which sees what the student does.
    """
    if source is None:
        return student.preprocess
    return max((student.preprocess, source.preprocess), key=lambda one: one.height * one.width)


def _teacher_digest(options: DistillOptions, source: Path) -> str | None:
    """Digest of the teacher's weights; None where the hub has them under the name that the options say."""
    path = source / WEIGHTS_FILE if options.teacher is None else options.teacher.weights
    return None if path is None else sha256_of(path)


def check_images(images: ImageSet, options: DistillOptions, *, classes: int) -> None:
    """Raise InputError where the images cannot give what the options ask for."""
    if len(images) == 0:
        raise InputError("distill has no images; name some under data.train")
    blocks = bool(options.block_features and options.block_weight)
    if not (options.feature_weight or (options.logits_weight and classes) or options.labels_weight or blocks):
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
