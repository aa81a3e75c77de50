"""The quantize stage from folder to folder: candidates, agreement on `select`, choice."""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from stages.quantize.agreement import Agreement, choose, compare
from stages.quantize.calibrate import Job
from stages.quantize.candidates import make_candidates
from stages.quantize.graph import check_can_be_quantized, count_quantized, match_nodes, merge_nodes, read_graph
from stages.stage import Role, StageContext, StageResult
from stages.vit.files import LABELS_FILE, load_spec
from stages.vit.spec import SPEC_FILE
from targets.errors import InputError
from targets.worker import Worker

if TYPE_CHECKING:
    from stages.data.images import ImageSet
    from stages.quantize.stage import QuantizeOptions

log = logging.getLogger("vitrim.quantize")

GRAPH_FILE = "model.onnx"
BATCH = 16
CALIBRATING = 0.8
"""share of the time that calibration takes; the rest compares"""
COLLAPSED_BELOW = 0.5
"""agreement (or cosine) under which a graph is no longer the model it came from"""


def quantize_graph(options: "QuantizeOptions", context: StageContext) -> StageResult:
    """Write the quantized model.onnx with the alpha chosen, vit.json and, where there are any, labels.json."""
    source = context.input / GRAPH_FILE
    graph = read_graph(source)
    check_can_be_quantized(graph)
    keep = sorted({*match_nodes(graph, options.keep_float), *merge_nodes(graph)})
    preprocess = load_spec(context.input).preprocess
    fit = _draw(context.images[Role.FIT], options.images, seed=context.seed)
    select = _draw(context.images[Role.SELECT], options.select_images, seed=context.seed)

    context.tell("reading images", None)
    pixels = fit.pixels_file(preprocess, context.scratch)
    jobs = [
        Job(
            model=source,
            output=context.scratch / f"alpha_{alpha}.onnx",
            progress=context.scratch / f"alpha_{alpha}.share",
            pixels=pixels,
            preprocess=preprocess,
            alpha=alpha,
            symmetric=options.symmetric,
            keep_float=tuple(keep),
            bias_correction=options.bias_correction,
        )
        for alpha in options.alphas
    ]
    size = sum(file.stat().st_size for file in context.input.glob(f"{GRAPH_FILE}*"))
    seconds = make_candidates(jobs, model_bytes=size, tell=lambda message, share: context.tell(message, _scale(share)))

    found = _compare_all(source, jobs, select, context)
    best = choose(found)
    shutil.copyfile(jobs[best].output, context.output / GRAPH_FILE)
    onnx.checker.check_model(str(context.output / GRAPH_FILE), full_check=True)
    for name in (SPEC_FILE, LABELS_FILE):
        if (context.input / name).exists():
            shutil.copyfile(context.input / name, context.output / name)

    collapsed = found[best].share < COLLAPSED_BELOW
    if collapsed:
        log.warning(
            "int8 collapsed: the best of %d candidates agrees with fp32 on %.1f %% of the select images; "
            "try other alphas, more calibration images, or keep layers in float with keep_float",
            len(found),
            100 * found[best].share,
        )
    int8, products = count_quantized(read_graph(context.output / GRAPH_FILE))
    facts: dict[str, Any] = {
        "summary": f"{int8} of {products} matrix products in {options.precision}, alpha {options.alphas[best]} of "
        f"{', '.join(map(str, options.alphas))}",
        "precision": options.precision,
        "symmetric": options.symmetric,
        "alpha": options.alphas[best],
        "agreement": found[best].share,
        "divergence": found[best].divergence,
        "collapsed": collapsed,
        "candidates": [
            {
                "alpha": job.alpha,
                "agreement": one.share,
                "divergence": one.divergence,
                "bytes": job.output.stat().st_size,
                "seconds": round(took, 1),
            }
            for job, one, took in zip(jobs, found, seconds, strict=True)
        ],
        "images": len(fit),
        "select_images": len(select),
        "products": {"int8": int8, "all": products},
        "bytes": {"before": size, "after": (context.output / GRAPH_FILE).stat().st_size},
    }
    return StageResult(facts=facts)


def _draw(images: "ImageSet", count: int | None, *, seed: int) -> "ImageSet":
    """Some images by chance, in order: the first ones by name would be of one class. Raises InputError for none."""
    if len(images) == 0:
        raise InputError(f"{images.role} holds no images, but ranges and alpha are chosen by them; give it some")
    if count is None or count >= len(images):
        return images
    return images.subset(np.sort(np.random.default_rng(seed).permutation(len(images))[:count]))


def _compare_all(source: Path, jobs: list[Job], select: "ImageSet", context: StageContext) -> list[Agreement]:
    """Answers of each candidate against those of the source graph, in ONNX Runtime on this machine's CPU."""
    preprocess = jobs[0].preprocess
    pixels = select.uint8(preprocess, folder=context.scratch)
    found = []
    with Worker() as worker:

        def answer(path: Path, precision: str) -> dict[str, Any]:
            loaded = worker.load(path, runtime="onnxruntime", precision=precision)
            return worker.infer(pixels, batch=loaded.inputs[0]["shape"][0] or BATCH, preprocess=preprocess)

        context.tell("fp32 answers", CALIBRATING)
        reference = answer(source, "fp32")
        for index, job in enumerate(jobs, start=1):
            context.tell(f"comparing alpha {job.alpha}", CALIBRATING + (1 - CALIBRATING) * index / (len(jobs) + 1))
            found.append(compare(reference, answer(job.output, "int8")))
    return found


def _scale(share: float | None) -> float | None:
    return None if share is None else CALIBRATING * share
