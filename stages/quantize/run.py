"""The quantize stage from folder to folder: candidates, agreement on `select`, choice, layers back to float."""

import json
import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from stages.graph.described import DESCRIPTIONS, read_described
from stages.quantize.agreement import Agreement, choose
from stages.quantize.calibrate import Job
from stages.quantize.candidates import make_candidates
from stages.quantize.graph import (
    FP8_OPSET,
    attention_products,
    check_block,
    check_can_be_quantized,
    check_opset,
    count_products,
    is_transformer,
    join_pairs,
    match_nodes,
    merge_nodes,
    read_graph,
)
from stages.quantize.judge import Judge
from stages.quantize.mixed import layers
from stages.quantize.rest import narrow_graph
from stages.quantize.returning import Variants, measure_sensitivity, return_until
from stages.quantize.rungs import Rung, prepare
from stages.quantize.stage import reads_fit
from stages.stage import Role, StageContext, StageResult
from targets.errors import InputError
from targets.preprocess import Preprocess

if TYPE_CHECKING:
    from stages.data.images import ImageSet
    from stages.quantize.stage import QuantizeOptions

log = logging.getLogger("vitrim.quantize")

GRAPH_FILE, LABELS_FILE = "model.onnx", "labels.json"
CALIBRATING = 0.8
"""share of the time that calibration takes; the rest compares"""
COLLAPSED_BELOW = 0.5
"""agreement (or cosine) under which a graph is no longer the model it came from"""
BROKEN_BELOW_DB = 6.0
"""signal-to-noise ratio at which the error is half as large as the tensor"""
NOISE_IMAGES = 8
TELLING_IMAGES = 16
"""fewer images of `select` say nothing of a collapse: graphs whose speed alone counts"""


@dataclass
class Chosen:
    """The graph to leave, and what was found on the way."""

    graph: Path
    found: Agreement
    facts: dict[str, Any] = field(default_factory=dict)


def quantize_graph(options: "QuantizeOptions", context: StageContext) -> StageResult:
    """Write the quantized model.onnx, vit.json and, where there are any, labels.json."""
    source = context.input / GRAPH_FILE
    graph = read_graph(source)
    check_can_be_quantized(graph)
    keep = {*match_nodes(graph, options.keep_float, if_any=options.keep_float_if_any), *merge_nodes(graph)}
    fp32 = set(keep)
    if options.precision in ("int8", "int8_dynamic", "fp8"):
        options = options.replace(scope=options.scope_of(transformer=is_transformer(graph)))
    if options.precision == "int8_dynamic" and options.scope == "linears":
        keep |= set(attention_products(graph))
    if options.precision == "fp8":
        check_opset(onnx.load(source, load_external_data=False), FP8_OPSET, "fp8", "take int8")
    if options.block is not None:
        check_block(source, options.block, keep)
    preprocess = read_described(context.input).preprocess
    size = sum(file.stat().st_size for file in context.input.glob(f"{GRAPH_FILE}*"))
    if options.precision == "int8":  # SmoothQuant is for transformers
        options = options.replace(alphas=options.strengths(size) if is_transformer(graph) else ("off",))
    fit = draw(context.images[Role.FIT], options.images, seed=context.seed) if reads_fit(options) else None
    select = draw(context.images[Role.SELECT], options.select_images, seed=context.seed)

    context.tell("reading images", None)
    pixels = (fit or select).pixels_file(preprocess, context.scratch)
    rung = prepare(options, context, source=source, pixels=pixels, preprocess=preprocess, keep=keep, model_bytes=size)
    seconds = make_candidates(
        rung.jobs, model_bytes=size, tell=lambda message, share: context.tell(message, _scale(share))
    )

    context.tell("fp32 answers", CALIBRATING)
    with Judge(source, select, preprocess, context.scratch) as judge:
        found = _compare_all(rung, judge, context)
        best = choose(found)
        chosen = Chosen(rung.jobs[best].output, found[best])
        if options.sensitivity or (options.least_agreement or 0) > chosen.found.share:
            pairs = ((one.scores, one.values) for one in rung.pairs)
            _return_layers(options, context, chosen, judge, join_pairs(layers(graph, rung.keep), pairs))
        if options.rest not in (None, "float32"):
            rung.final, rung.judged = _narrow(options, context, chosen, judge, pixels, preprocess, fp32)
            _judge_budget_again(options, chosen)
    place_graph(chosen.graph if rung.final is None else rung.final, context.output / GRAPH_FILE)
    onnx.checker.check_model(str(context.output / GRAPH_FILE), full_check=True)
    for name in (*DESCRIPTIONS, LABELS_FILE):
        if (context.input / name).exists():
            shutil.copyfile(context.input / name, context.output / name)

    collapsed = chosen.found.share < COLLAPSED_BELOW
    if len(select) >= TELLING_IMAGES:
        noise = _measure_noise(context, source, chosen, select, preprocess)
        chosen.facts["snr_db"] = noise_by_group(noise)
        if collapsed:
            chosen.facts["breaks_at"] = find_break(noise)
            _tell_collapse(options, chosen.found.share, len(found), chosen.facts["breaks_at"])
    done, products = count_products(read_graph(context.output / GRAPH_FILE), options.precision)
    alpha = f", alpha {options.alphas[best]} of {', '.join(map(str, options.alphas))}" if _sweeps(options) else ""
    back = chosen.facts.get("returned", [])
    facts: dict[str, Any] = {
        "summary": f"{done} of {products} matrix products in {options.precision}{alpha}"
        + (f"; returned to float: {', '.join(one['layer'] for one in back)}" if back else ""),
        "precision": options.precision,
        "agreement": chosen.found.share,
        "divergence": chosen.found.divergence,
        "collapsed": collapsed,
        "judged": rung.judged,
        "images": len(fit) if fit is not None else 0,
        "select_images": len(select),
        "products": {options.precision: done, "all": products},
        "bytes": {
            "before": size,
            "after": sum(file.stat().st_size for file in context.output.glob(f"{GRAPH_FILE}*")),
        },
        **rung.facts,
        **chosen.facts,
    }
    if options.scope is not None:
        facts["scope"] = options.scope
    if options.precision == "int8":
        facts |= {
            "symmetric": options.symmetric,
            "half_range": options.half_range,
            "alpha": options.alphas[best],
            "candidates": [
                {
                    "alpha": alpha,
                    **({"strength": job.alpha} if alpha == "auto" else {}),
                    "agreement": one.share,
                    "divergence": one.divergence,
                    "bytes": job.output.stat().st_size,
                    "seconds": round(took, 1),
                }
                for alpha, job, one, took in zip(options.alphas, rung.jobs, found, seconds, strict=True)
            ],
        }
    return StageResult(facts=facts)


def _narrow(
    options: "QuantizeOptions",
    context: StageContext,
    chosen: Chosen,
    judge: Judge,
    pixels: Path,
    preprocess: Preprocess,
    keep: set[str],
) -> tuple[Path, str]:
    """Write the chosen graph with a rest of 16 bits; returns it and who judged. The emulation is chosen."""
    rest = str(options.rest)
    made = narrow_graph(
        chosen.graph,
        rest,
        keep=keep,
        share=options.largest_share,
        pixels=pixels,
        preprocess=preprocess,
        scratch=context.scratch,
        tell=context.tell,
    )
    chosen.facts |= {**made.facts, "agreement_float32_rest": chosen.found.share}
    chosen.graph, chosen.found = made.emulated, judge.agreement(made.emulated, options.precision)
    return made.graph, f"emulation that rounds to {rest} what is not quantized, in ONNX Runtime on the CPU"


def _judge_budget_again(options: "QuantizeOptions", chosen: Chosen) -> None:
    """Layers went back to float beside a rest in fp32; the graph that is left has one of 16 bits."""
    budget = chosen.facts.get("budget")
    if budget is None or not budget["met"] or chosen.found.share >= budget["agreement"]:
        return
    budget["met"] = False
    log.warning(
        "%s agrees on %.1f %% of the select images with its rest in %s (%.1f %% with the rest in fp32), "
        "budget_agreement asks for %.1f %%; say `rest: float32`, or ask for a little more",
        options.precision,
        100 * chosen.found.share,
        options.rest,
        100 * chosen.facts["agreement_float32_rest"],
        100 * budget["agreement"],
    )


def _sweeps(options: "QuantizeOptions") -> bool:
    return options.precision == "int8"


def draw(images: "ImageSet", count: int | None, *, seed: int) -> "ImageSet":
    """Some images by chance, in order: the first ones by name would be of one class. Raises InputError for none."""
    if len(images) == 0:
        raise InputError(f"{images.role} holds no images, but ranges and alpha are chosen by them; give it some")
    if count is None or count >= len(images):
        return images
    return images.subset(np.sort(np.random.default_rng(seed).permutation(len(images))[:count]))


def _compare_all(rung: Rung, judge: Judge, context: StageContext) -> list[Agreement]:
    """Answers of each candidate against those of the source graph."""
    found = []
    for index, job in enumerate(rung.jobs, start=1):
        context.tell(
            f"comparing {rung.names[index - 1]}", CALIBRATING + (1 - CALIBRATING) * index / (len(rung.jobs) + 1)
        )
        found.append(judge.agreement(job.output, rung.judged_as))
    return found


def _return_layers(
    options: "QuantizeOptions", context: StageContext, chosen: Chosen, judge: Judge, groups: dict[str, list[str]]
) -> None:
    """Measure the layers and, where there is a budget, return as many to float as it takes."""
    variants = Variants(
        quantized=chosen.graph, source=context.input / GRAPH_FILE, precision=options.precision, layers=groups
    )

    def tell(what: str, done: int, of: int) -> None:
        context.tell(f"{what} ({done + 1} of {of})", None)

    costs = measure_sensitivity(variants, judge, context.scratch, images=options.sensitivity_images, tell=tell)
    chosen.facts["sensitivity"] = costs
    budget = options.least_agreement
    if budget is None:
        return
    rounds = (
        return_until(
            budget,
            variants,
            [one["layer"] for one in costs],
            judge,
            context.scratch,
            rounds=options.rounds,
            tell=tell,
        )
        if chosen.found.share < budget
        else []
    )
    before = chosen.found.share
    if rounds:
        best = max(range(len(rounds)), key=lambda index: (rounds[index].found.share, -index))
        if rounds[best].found.share > before:
            chosen.graph, chosen.found = rounds[best].graph, rounds[best].found
            rounds = rounds[: best + 1]
        else:
            rounds = []
    met = chosen.found.share >= budget
    chosen.facts["returned"] = [
        {"layer": one.layer, "agreement": one.found.share, "divergence": one.found.divergence} for one in rounds
    ]
    chosen.facts["budget"] = {"agreement": budget, "before": before, "met": met}
    if not met:
        log.warning(
            "%s agrees on %.1f %% of the select images after %d rounds, budget_agreement asks for %.1f %%; "
            "allow more rounds, or another precision",
            options.precision,
            100 * chosen.found.share,
            min(options.rounds, len(costs)),
            100 * budget,
        )


def _measure_noise(
    context: StageContext, source: Path, chosen: Chosen, select: "ImageSet", preprocess: Preprocess
) -> list[dict[str, Any]]:
    """Signal-to-noise ratio of every tensor that the graph shares with fp32, in order: [{node, tensor, snr_db}]."""
    job = Job(
        work="noise",
        title="the look at every tensor",
        model=source,
        output=context.scratch / f"{chosen.graph.parent.name}_{chosen.graph.stem}.noise",
        progress=context.scratch / "noise.share",
        pixels=select.pixels_file(preprocess, context.scratch),
        preprocess=preprocess,
        settings={"other": str(chosen.graph), "images": NOISE_IMAGES},
    )
    context.tell("signal and noise", None)
    make_candidates([job], model_bytes=0, tell=lambda message, share: None)
    found: list[dict[str, Any]] = json.loads(job.output.read_bytes())
    return found


def noise_by_group(noise: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The last tensor's ratio of each part of the model, in order: {patch_embed, blocks.0, ..., head: decibels}."""
    found: dict[str, float] = {}
    for one in noise:
        part = re.match(r"blocks\.\d+|\w+(?=[./])", str(one["node"]))
        if part is not None:
            found[part.group()] = round(float(one["snr_db"]), 1)
    return found


def _tell_collapse(options: "QuantizeOptions", share: float, candidates: int, broken: dict[str, Any] | None) -> None:
    """Tell where the signal is lost."""
    where = f" the signal is lost first in {broken['node']} ({broken['snr_db']:.1f} dB);" if broken else ""
    log.warning(
        "%s collapsed: the best of %d candidates agrees with fp32 on %.1f %% of the select images;%s "
        "try other alphas, more calibration images, or keep layers in float with keep_float",
        options.precision,
        candidates,
        100 * share,
        where,
    )


def find_break(noise: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The first tensor whose error is at least half as large as itself, else the one with the largest error."""
    first = next((one for one in noise if one["snr_db"] < BROKEN_BELOW_DB), None)
    return first or min(noise, key=lambda one: float(one["snr_db"]), default=None)


def place_graph(graph: Path, destination: Path) -> None:
    """Copy a graph, and its weights where they are beside it, under the name that stages expect."""
    beside = graph.with_name(graph.name + ".data")
    if not beside.exists():
        shutil.copyfile(graph, destination)
        return
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = f"{destination.name}.data"
    onnx.save(model, destination)
    shutil.copyfile(beside, destination.with_name(f"{destination.name}.data"))


def _scale(share: float | None) -> float | None:
    return None if share is None else CALIBRATING * share
