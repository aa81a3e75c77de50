"""The quantize_aware stage from folder to folder: calibrate, train, trace, and keep what agrees best with float."""

import copy
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from stages.distill.distillation import ENERGY_IMAGES
from stages.distill.losses import FEATURES, DistillationLoss, Student, Weights, feature_energies
from stages.export.graph import GRAPH_FILE, fold_layer_scale, save_graph, tidy, trace
from stages.export.run import outputs_of
from stages.quantize.agreement import Agreement, choose
from stages.quantize.graph import count_quantized, read_graph
from stages.quantize.judge import Judge
from stages.quantize.rest import narrow_graph
from stages.quantize.run import COLLAPSED_BELOW, draw, place_graph
from stages.quantize_aware.graph import write_graph
from stages.quantize_aware.insert import QuantizedViT, freeze, insert_roundings
from stages.stage import Role, StageContext, StageResult
from stages.training.augment import Augmentation
from stages.training.logs import LogTo
from stages.training.loop import Training, train
from stages.training.options import ASIDE
from stages.training.pictures import TrainingImages
from stages.training.precision import pick_device
from stages.training.sampler import steps_for
from stages.vit.files import LABELS_FILE, load_model, load_spec
from stages.vit.model import ViT
from stages.vit.spec import SPEC_FILE, WEIGHTS_FILE, ViTSpec
from targets.atomic import sha256_of
from targets.errors import InputError

if TYPE_CHECKING:
    from stages.data.images import ImageSet
    from stages.quantize_aware.stage import QuantizeAwareOptions

log = logging.getLogger("vitrim.quantize_aware")

TRAINED_AT, JUDGED_AT = 0.1, 0.9
"""shares of the time done when the training begins and ends"""
REST_SHARE = 0.5
"""of 65504: what exceeds it on `fit` stays fp32, as quantize has it unless told otherwise"""
UNTRAINED, TRAINED = 0, 1


def train_and_quantize(options: "QuantizeAwareOptions", context: StageContext) -> StageResult:
    """Write the int8 model.onnx, vit.json and, where there are any, labels.json.

    Raises InputError for a model or images that it cannot work on, StageError where training diverges.
    """
    spec, teacher = load_spec(context.input), load_model(context.input)
    outputs = outputs_of(options.outputs, spec, teacher)
    check_inputs(spec, context)
    model = copy.deepcopy(teacher)
    fold_layer_scale(model)  # exact, as in every graph
    context.tell("writing the float graph", None)
    exact = context.scratch / "float"
    _write_float(copy.deepcopy(model), exact, outputs, options)

    context.tell("setting ranges", None)
    fit = draw(context.images[Role.FIT], options.images, seed=context.seed)
    seen = [torch.from_numpy(pixels) for pixels in fit.batches(spec.preprocess, 1)]
    quantized = insert_roundings(model, seen, options, outputs=outputs)
    folders = (context.scratch / "untrained", context.scratch / "trained")
    _write(copy.deepcopy(quantized), folders[UNTRAINED], seen[0], outputs, options)

    facts = _train(options, context, quantized, teacher, spec)
    quantized.cpu()
    context.tell("writing the graph", JUDGED_AT)
    _write(quantized, folders[TRAINED], seen[0], outputs, options)

    select = draw(context.images[Role.SELECT], options.select_images, seed=context.seed)
    context.tell("comparing with float", JUDGED_AT)
    with Judge(exact / GRAPH_FILE, select, spec.preprocess, context.scratch) as judge:
        found = [judge.agreement(folder / GRAPH_FILE, "int8") for folder in folders]
        best = choose(found)
        narrowed = _narrow(options, context, folders[best], fit, spec, judge)
    place_graph(narrowed.pop("graph", folders[best] / GRAPH_FILE), context.output / GRAPH_FILE)
    for name in (SPEC_FILE, LABELS_FILE):
        if (context.input / name).exists():
            shutil.copyfile(context.input / name, context.output / name)
    _tell(found, best)
    told = _facts(options, context, facts, found, best, fit=len(fit), select=len(select))
    return StageResult(facts={**told, **narrowed})


def check_inputs(spec: ViTSpec, context: StageContext) -> None:
    """Raise InputError for what has no images, or a model that the stage does not know how to round."""
    if any(spec.merge):
        raise InputError(
            "quantize_aware does not train models that merge tokens: what merges stays in float, and NNCF's torch side "
            "cannot be told so by name; use quantize instead"
        )
    for role in (Role.FIT, Role.TRAIN, Role.SELECT):
        if len(context.images[role]) == 0:
            raise InputError(f"quantize_aware reads images of {role.value}, which holds none; give it some")


def _train(
    options: "QuantizeAwareOptions", context: StageContext, model: QuantizedViT, teacher: ViT, spec: ViTSpec
) -> dict[str, Any]:
    """Train the model in place to answer as the teacher, itself in float; returns the facts of the training."""
    device = pick_device()
    teacher = teacher.to(device).eval().requires_grad_(False)
    student = Student(cast(ViT, model), teacher_width=spec.width, seed=context.seed).to(device)  # it answers as a ViT
    images = context.images[Role.TRAIN]
    data = TrainingImages(
        images,
        spec.preprocess,
        augmentation=Augmentation(crop_scale=options.crop_scale, crop_ratio=options.crop_ratio, flip=options.flip),
        batch_size=options.batch_size,
        seed=context.seed,
    )
    compared = [name for name in FEATURES if name in teacher.output_names] if options.feature_weight else []
    energies = feature_energies(teacher, _first_images(data, options.batch_size, device), "fp32", names=compared)
    weights = Weights(
        features=options.feature_weight,
        logits=options.logits_weight if spec.classes else 0.0,
        labels=0.0,
        temperature=options.temperature,
    )
    facts = train(
        student,
        DistillationLoss(student, teacher, energies, weights, precision="fp32", answers=bool(spec.classes)),
        data,
        Training(
            steps=steps_for(options.images_seen, batch_size=options.batch_size),
            lr=options.lr,
            weight_decay=0.0,
            warmup_share=options.warmup_share,
            clip=options.clip,
            accumulate=options.accumulate,
        ),
        scratch=context.scratch,
        log_to=LogTo(kind=options.log, folder=options.log_folder, name="quantize_aware"),
        identity=[
            options.model_dump(mode="json", exclude=set(ASIDE)),
            {role.value: context.images[role].fingerprint for role in (Role.FIT, Role.TRAIN)},
            context.seed,
            sha256_of(context.input / WEIGHTS_FILE),
        ],
        tell=lambda message, share: context.tell(f"training: {message}", _scaled(share)),
    )
    return {**facts, "train_images": len(images), "compared": compared + (["logits"] if weights.logits else [])}


def _narrow(
    options: "QuantizeAwareOptions",
    context: StageContext,
    folder: Path,
    fit: "ImageSet",
    spec: ViTSpec,
    judge: Judge,
) -> dict[str, Any]:
    """Write the chosen graph with a rest of 16 bits, where it is wanted: {graph: file, and facts}."""
    if options.rest in (None, "float32"):
        return {}
    made = narrow_graph(
        folder / GRAPH_FILE,
        str(options.rest),
        keep=(),
        share=REST_SHARE,
        pixels=fit.pixels_file(spec.preprocess, context.scratch),
        preprocess=spec.preprocess,
        scratch=context.scratch,
        tell=context.tell,
    )
    found = judge.agreement(made.emulated, "int8")
    judged = f"emulation that rounds to {options.rest} what is not quantized, in ONNX Runtime on the CPU"
    return {
        "graph": made.graph,
        **made.facts,
        "agreement": found.share,
        "divergence": found.divergence,
        "collapsed": found.share < COLLAPSED_BELOW,
        "judged": judged,
    }


def _facts(
    options: "QuantizeAwareOptions",
    context: StageContext,
    trained: dict[str, Any],
    found: list[Agreement],
    best: int,
    *,
    fit: int,
    select: int,
) -> dict[str, Any]:
    done, products = count_quantized(read_graph(context.output / GRAPH_FILE))
    before, after = (one.share for one in found)
    kept = "" if best == TRAINED else "; the untrained graph agrees better and is kept"
    return {
        "summary": f"{done} of {products} matrix products in int8, agreement {100 * before:.1f} % before and "
        f"{100 * after:.1f} % after {trained['images_seen']:,} pictures of {trained['train_images']:,} images{kept}",
        **{name: value for name, value in trained.items() if name != "precision"},
        "precision": options.precision,
        "trained_in": trained["precision"],
        "kept": "trained" if best == TRAINED else "untrained",
        "agreement": found[best].share,
        "divergence": found[best].divergence,
        "untrained": {"agreement": before, "divergence": found[UNTRAINED].divergence},
        "trained": {"agreement": after, "divergence": found[TRAINED].divergence},
        "collapsed": found[best].share < COLLAPSED_BELOW,
        "judged": "ONNX Runtime on the CPU runs the graph itself",
        "images": fit,
        "select_images": select,
        "products": {options.precision: done, "all": products},
        "bytes": {
            "before": _size(context.scratch / "float"),
            "after": _size(context.output),
        },
        "symmetric": options.symmetric,
        "half_range": options.half_range,
        "alpha": options.alpha,
    }


def _tell(found: list[Agreement], best: int) -> None:
    if best == UNTRAINED:
        log.warning(
            "training made the int8 graph worse on select: %.1f %% agree after it, %.1f %% before; the untrained graph "
            "is kept; try more images_seen, a smaller lr, or images of train that are more like the task",
            100 * found[TRAINED].share,
            100 * found[UNTRAINED].share,
        )
    if found[best].share < COLLAPSED_BELOW:
        log.warning(
            "int8 collapsed: the graph agrees with float on %.1f %% of the select images; try another alpha, or more "
            "calibration images",
            100 * found[best].share,
        )


def _write(
    model: QuantizedViT, folder: Path, image: Tensor, outputs: tuple[str, ...], options: "QuantizeAwareOptions"
) -> None:
    """Freeze a model and write its graph."""
    freeze(model, image)
    write_graph(model, folder, outputs=outputs, batch=options.batch, opset=options.opset)


def _write_float(model: ViT, folder: Path, outputs: tuple[str, ...], options: "QuantizeAwareOptions") -> None:
    """Write the graph that answers are compared with."""
    graph = trace(model, outputs=outputs, batch=options.batch, opset=options.opset)
    tidy(graph)
    folder.mkdir(parents=True, exist_ok=True)
    save_graph(graph, folder)


def _first_images(data: TrainingImages, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    for batch in data(0, steps_for(ENERGY_IMAGES, batch_size=batch_size)):
        yield batch.to(device).images


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob(f"{GRAPH_FILE}*"))


def _scaled(share: float | None) -> float | None:
    return None if share is None else TRAINED_AT + (JUDGED_AT - TRAINED_AT) * share
