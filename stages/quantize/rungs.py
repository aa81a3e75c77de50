"""The rungs of the precision ladder: what must be measured first, and the graphs to make, by precision."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from stages.quantize.attention import Pair, attention_pairs, outside_limits
from stages.quantize.calibrate import Job
from stages.quantize.candidates import make_candidates
from stages.quantize.graph import WEIGHTED, attention_products, is_transformer, read_graph
from stages.quantize.half import HALVES, Risk, nodes_at_risk, nodes_without
from stages.quantize.linears import best_alpha, linears
from stages.stage import StageContext
from targets.errors import InputError
from targets.preprocess import Preprocess

if TYPE_CHECKING:
    from stages.quantize.stage import QuantizeOptions

log = logging.getLogger("vitrim.quantize")

NAMED = 6
"""nodes that a line of the log names; the facts name all"""


@dataclass
class Rung:
    """Graphs to make and to compare."""

    jobs: list[Job]
    names: list[str]
    """of the candidates, for messages"""
    keep: set[str]
    """nodes in fp32"""
    judged_as: str
    """the precision that ONNX Runtime is told"""
    judged: str = "ONNX Runtime on the CPU runs the graph itself"
    final: Path | None = None
    """the graph to leave, where another one stands for it in the comparison"""
    facts: dict[str, Any] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    """attentions of which both products are quantized"""


def prepare(
    options: "QuantizeOptions",
    context: StageContext,
    *,
    source: Path,
    pixels: Path,
    preprocess: Preprocess,
    keep: set[str],
    model_bytes: int,
) -> Rung:
    """Scan ranges where they are needed, and say which graphs are to be made."""
    scratch = context.scratch

    def job(name: str, **changes: Any) -> Job:
        usual: dict[str, Any] = {
            "model": source,
            "output": scratch / name / "model.onnx",
            "progress": scratch / f"{name}.share",
            "pixels": pixels,
            "preprocess": preprocess,
            "keep_float": tuple(sorted(keep)),
            "title": name,
        }
        made = Job(**{**usual, **changes})
        made.output.parent.mkdir(exist_ok=True)
        return made

    def scan() -> dict[str, Any]:
        one = job(
            "range scan", work="scan", output=scratch / "scan.ranges", settings={"percentile": options.percentile}
        )
        make_candidates(
            [one],
            model_bytes=model_bytes,
            tell=lambda message, share: context.tell(message, None),
            what="scanning ranges",
        )
        return dict(json.loads(one.output.read_bytes()))

    pairs, left = _attention(options, source, keep)
    settings: dict[str, Any] = {}
    if pairs:
        scan()
        settings = {"ranges": str(scratch / "scan.ranges"), "attention": [[one.scores, one.values] for one in pairs]}
    facts: dict[str, Any] = {"attention_left": left} if left else {}
    if options.precision == "int8":
        jobs = []
        kept = keep if options.scope == "all" else keep | set(attention_products(read_graph(source)))
        for alpha in options.alphas:
            strength = best_alpha(onnx.load(source), scan(), kept) if alpha == "auto" else alpha
            jobs.append(
                job(
                    f"alpha_{alpha}",
                    title="",
                    output=scratch / f"alpha_{alpha}.onnx",
                    alpha=strength,
                    symmetric=options.symmetric,
                    half_range=options.half_range,
                    transformer=is_transformer(read_graph(source)),
                    bias_correction=options.bias_correction,
                    keep_float=tuple(sorted(kept)),
                    settings=settings,
                )
            )
        free = {name for one in pairs for name in (one.scores, one.values)}
        return Rung(jobs, [f"alpha {alpha}" for alpha in options.alphas], kept - free, "int8", pairs=pairs, facts=facts)
    if options.precision == "int8_dynamic":
        one = job(options.precision, work="dynamic", settings={"linears_only": options.scope == "linears"})
        return Rung([one], [options.precision], keep, options.precision)
    if options.precision == "int8_weights":
        settings = {"precision": options.precision, "block": options.block}
        one = job(options.precision, work="linears", settings=settings)
        return Rung([one], [options.precision], keep | _unweighted(source, keep), options.precision)
    if options.precision == "fp8":
        scan()
        told = {"precision": options.precision, "ranges": str(scratch / "scan.ranges")}
        one = job("fp8", work="linears", settings={**settings, **told})
        free = {name for one in pairs for name in (one.scores, one.values)}
        kept = (keep | _unweighted(source, keep)) - free
        return Rung([one], ["fp8"], kept, "fp8", pairs=pairs, facts=facts)
    if options.precision == "bf16":
        return _half(options, job, source, keep, [], context)
    ranges = scan()
    risks = nodes_at_risk(onnx.load(source), ranges, share=options.largest_share)
    rung = _half(options, job, source, keep, risks, context)
    rung.facts["largest"] = max((one["largest"] for one in ranges["tensors"].values()), default=0.0)
    return rung


def _attention(options: "QuantizeOptions", source: Path, keep: set[str]) -> tuple[list[Pair], list[dict[str, str]]]:
    """The attentions to quantize, and those left in float with the reason."""
    if options.scope != "attention" or options.precision not in ("int8", "fp8"):
        return [], []
    model = onnx.load(source, load_external_data=False)
    pairs = attention_pairs(model.graph, keep)
    for_tensorrt = options.symmetric or options.precision == "fp8"
    why = outside_limits(model, pairs, options.precision) if for_tensorrt else {}
    if why:
        log.warning("%s: %d attentions stay in float: %s", options.precision, len(why), next(iter(why.values())))
    return [one for one in pairs if one.scores not in why], [{"node": name, "why": told} for name, told in why.items()]


def _half(
    options: "QuantizeOptions", job: Any, source: Path, keep: set[str], risks: list[Risk], context: StageContext
) -> Rung:
    """fp16 or bf16; judge by an emulation: most CPUs run an fp16 graph in fp32, and ONNX Runtime no bf16 graph on any.

    risks: nodes that would overflow, which stay fp32.
    """
    precision = options.precision
    kept = keep | {one.node for one in risks}
    if risks:
        log.warning(
            "%s: %d nodes would exceed %g of 65504 on the fit images and stay fp32: %s%s",
            precision,
            len(risks),
            options.largest_share,
            ", ".join(f"{one.node} ({one.largest:.0f})" for one in risks[:NAMED]),
            " and more" if len(risks) > NAMED else "",
        )
    without = nodes_without(onnx.load(source, load_external_data=False), HALVES[precision])
    if not {node.name for node in read_graph(source).node if node.op_type in WEIGHTED} - {*kept, *without}:
        raise InputError(
            f"ONNX has no {precision} for any matrix product of this graph in its operator set; "
            "export it with opset 22 or later, which has convolutions in bf16"
        )
    names = tuple(sorted(kept))
    settings = {"precision": precision, "emulate": False, "keep_io": options.io == "keep"}
    made = job(precision, work="half", keep_float=names, settings=settings)
    emulated = job(f"{precision}_emulated", work="half", keep_float=names, settings={**settings, "emulate": True})
    make_candidates([made], model_bytes=0, tell=lambda message, share: context.tell(message, None))
    facts = {
        "kept_float": [{"node": one.node, "what": one.what, "largest": one.largest} for one in risks],
        "without": [name for name in without if name not in kept],
        "io": options.io,
    }
    judged = f"emulation in fp32 that rounds weights and every tensor to {precision}"
    return Rung([emulated], [precision], kept | set(without), "fp32", judged, made.output, facts)


def _unweighted(source: Path, keep: set[str]) -> set[str]:
    """Products that are no layers with weights, which these precisions leave alone."""
    graph = read_graph(source)
    taken = {node.name for node in linears(graph, keep)}
    return {node.name for node in graph.node if node.op_type in WEIGHTED} - taken
