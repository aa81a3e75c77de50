"""What was shown of an engine, and what was not, in words: from the measurements and the facts of the compile step."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.report import figures
from pipeline.report.record import Accuracy, Latency, LayerRow, Parity, Proof
from stages.compile.stage import UNTOLD
from targets.board import COMPUTES
from targets.profile import Demands

if TYPE_CHECKING:
    from pipeline.plan import AwayPlan, Prepared


FUSED = ("scaleddotproductattention", "multiheadattention", "fmha", "mha_", "_mha", "groupqueryattention")
"""words in kinds or kernels of fused attention: OpenVINO, ONNX Runtime, TensorRT"""

HIDDEN_SHARE = 0.1
"""of the time, in layers of which nothing is told: where it is more, what they hold is not known"""


def proof_here(
    *, parity: Parity, accuracy: Accuracy | None, latency: Latency, compiled: Mapping[str, Any], conditions: str
) -> Proof:
    """Proof of an engine that ran on the target. compiled: facts of its compile step. conditions: where it ran."""
    proven = [
        "the engine that was measured is the one in the bundle: every file has the SHA-256 that engine.json names",
        *_answers(parity),
        *_products(
            compiled.get("matrix_products"),
            f"ran in {{}}, as {figures.runtime_name(str(compiled.get('runtime', '')))} tells",
        ),
        f"{latency.engine.queries:,} queries in {latency.engine.processes} processes on {conditions}, interleaved with "
        "the baseline and the unpruned engine",
    ]
    unproven = [*_untold(compiled)]
    if accuracy is not None:
        proven.append(f"{figures.metric_name(accuracy.metric)} of the engine itself, on {accuracy.images:,} images")
    else:
        unproven.append("accuracy: the recipe names no images to evaluate on")
    if latency.engine.p99 is None:
        unproven.append(f"the 99th percentile of latency: level {latency.level} asks too few queries")
    if not latency.engine.energy:
        unproven.append(f"power and energy: {latency.engine.energy_note or 'nothing tells power here'}")
    return Proof(engine="measured", proven=tuple(proven), unproven=tuple(unproven))


def proof_away(
    target: "AwayPlan",
    winner: "Prepared",
    *,
    parity: Parity,
    accuracy: Accuracy | None,
    compiled: Mapping[str, Any],
) -> Proof:
    """Proof of what was made for a target that is not at hand. compiled: facts of its compile step; empty: none."""
    proven = [*_answers(parity)]
    if accuracy is not None:
        proven.append(f"{figures.metric_name(accuracy.metric)} of {accuracy.proxy}, on {accuracy.images:,} images")
    unproven = ["that the engine loads on the board and answers like its graph"]
    if compiled:
        runtime = f"{figures.runtime_name(winner.runtime)} {compiled.get('version', '')}"
        where = f"compute capability {compiled.get('compute_capability', '')}"
        proven.append(
            f"{runtime} builds the engine for {where}, in {float(compiled['build_seconds']):.1f} s, without a GPU"
        )
        proven += _products(compiled.get("products_of_the_graph"), "are {} in the graph that was compiled")
        unproven.append(
            "in which precision each layer runs, and whether attention is fused: kernels are made on the GPU"
        )
    else:
        unproven.append(f"that {figures.runtime_name(winner.runtime)} builds the engine: none was built")
    unproven += ["accuracy of the engine itself", "latency, memory, power: nothing was measured on the target"]
    return Proof(
        engine="built ahead of time" if compiled else "not built",
        away=target.away,
        proven=tuple(proven),
        unproven=tuple(unproven),
        left=(winner.left, *(f"{one.name}: {one.left}" for one in target.candidates if one is not winner)),
    )


def proof_of_layers(layers: Sequence[LayerRow], *, attention: bool) -> dict[str, Any]:
    """Fields of Proof that follow from the layers. attention: whether the model has any."""
    if not layers:
        return {}
    time: dict[str, float] = {}
    macs: dict[str, float] = {}
    for one in layers:
        time[one.precision] = time.get(one.precision, 0.0) + one.share
        if one.macs:
            macs[one.precision] = macs.get(one.precision, 0.0) + one.macs
    whole = sum(macs.values())
    fused: bool | None = any(map(_is_fused, layers)) and not any(map(_is_a_softmax, layers))
    if not fused and time.get(UNTOLD, 0.0) > HIDDEN_SHARE:
        fused = None
    return {
        "layers": tuple(layers),
        "time_by_precision": dict(sorted(time.items(), key=lambda pair: -pair[1])),
        "macs_by_precision": {name: count / whole for name, count in sorted(macs.items(), key=lambda pair: -pair[1])},
        "fused_attention": fused if attention else None,
    }


def _is_fused(layer: LayerRow) -> bool:
    return any(word in text.lower() for text in (layer.operator, layer.kernel) for word in FUSED)


def _is_a_softmax(layer: LayerRow) -> bool:
    """Whether a layer is the softmax of an attention that was not fused."""
    return "softmax" in layer.operator.lower() and not _is_fused(layer)


def told_noise(snr_db: Mapping[str, float]) -> Iterator[str]:
    """The rounding of the graph, in one line; nothing where it was not measured."""
    if snr_db:
        worst = min(snr_db, key=snr_db.__getitem__)
        last = list(snr_db)[-1]
        yield (
            f"signal to noise of the graph against fp32: {snr_db[last]:.1f} dB at the end ({last}), "
            f"least {snr_db[worst]:.1f} dB in {worst}"
        )


def broken(demands: Demands, proof: Proof, precision: str) -> tuple[str, ...]:
    """What a profile demands and the layers do not show, in words; nothing where there are no layers to look at."""
    if not proof.layers:
        return ()
    found = []
    if demands.fused_attention and proof.fused_attention is False:
        found.append("attention is not fused, which the target demands")
    computes = COMPUTES.get(precision, precision)
    share = proof.macs_by_precision.get(computes, 0.0)
    if demands.least_macs_share is not None and told_macs(proof) and share < demands.least_macs_share:
        found.append(
            f"{figures.percent(share)} of the multiply-accumulates run in {computes}, the target demands "
            f"{figures.percent(demands.least_macs_share)}"
        )
    if demands.providers:
        others = {one.provider: one.name for one in proof.layers if one.provider not in demands.providers}
        found += [
            f"layer {name!r} ran on {provider!r}, the target allows {', '.join(demands.providers)}"
            for provider, name in sorted(others.items())
        ]
    return tuple(found)


def told_macs(proof: Proof) -> bool:
    """Whether the runtime tells in which precision the multiply-accumulates run."""
    return bool(set(proof.macs_by_precision) - {UNTOLD})


def undecided(demands: Demands, proof: Proof, precision: str, *, attention: bool) -> Iterator[str]:
    """What a profile demands and nothing tells of, one line each: neither proven nor broken. attention: it has some."""
    why = "the runtime does not tell" if proof.layers else "nothing ran"
    if demands.fused_attention and attention and proof.fused_attention is None:
        yield f"that attention is fused, which the target demands: {why}"
    if demands.least_macs_share is not None and not told_macs(proof):
        yield (
            f"that {figures.percent(demands.least_macs_share)} of the multiply-accumulates run in "
            f"{COMPUTES.get(precision, precision)}, which the target demands: {why}"
        )
    if demands.providers and not proof.layers:
        yield f"that all layers run on {' or '.join(demands.providers)}, which the target demands: {why}"


def told_layers(proof: Proof) -> Iterator[str]:
    """What the layers show, one line each."""
    if proof.macs_by_precision:
        yield f"multiply-accumulates: {_shares(proof.macs_by_precision)}"
    if proof.time_by_precision:
        yield f"time of layers, by what goes in: {_shares(proof.time_by_precision)}"
    if proof.fused_attention is not None:
        apart, fused = (sum(map(is_one, proof.layers)) for is_one in (_is_a_softmax, _is_fused))
        if proof.fused_attention:
            yield "attention runs as one kernel"
        elif fused and apart:
            yield f"attention runs as one kernel in {fused} layers, as separate kernels in {apart}"
        else:
            yield "attention runs as separate kernels"
    providers = sorted({one.provider for one in proof.layers})
    if providers:
        yield f"all {len(proof.layers):,} layers ran on {' and '.join(providers)}"


def _shares(found: Mapping[str, float]) -> str:
    return ", ".join(f"{figures.percent(share)} {name}" for name, share in found.items() if share >= 0.0005)


def never_ran(proof: Proof) -> str:
    """Why nothing was measured, as the verdict says it; empty where the engine ran."""
    return {
        "measured": "",
        "built ahead of time": "the engine was built ahead of time and never ran",
        "not built": "there is no engine yet, its board has to build it",
    }[proof.engine]


def _answers(parity: Parity) -> Iterator[str]:
    if parity.passed:
        who = f"{parity.proxy} answers" if parity.proxy else "the engine answers"
        yield f"{who} like {parity.reference} on {parity.images:,} images (cosine {figures.number(parity.cosine, 4)})"
        if parity.pairs:
            told = "; ".join(f"{one.one} like {one.other}: {figures.number(one.cosine, 4)}" for one in parity.pairs)
            yield f"cosine step by step: {told}"
    if parity.groups:
        worst = min(parity.groups, key=lambda one: one.snr_db)
        last = parity.groups[-1]
        yield (
            f"signal to noise against torch, by {parity.groups_by}: {last.snr_db:.1f} dB after the last block, "
            f"least {worst.snr_db:.1f} dB after {worst.name}"
        )


def _products(found: Any, words: str) -> Iterator[str]:
    """`72 matrix products ran in int8`, for each precision, most first."""
    if isinstance(found, Mapping):
        for precision, count in sorted(found.items(), key=lambda pair: -pair[1]):
            if precision != UNTOLD:
                yield f"{count:,} matrix products {words.format(precision)}"


def _untold(compiled: Mapping[str, Any]) -> Iterator[str]:
    """The products of which the runtime does not tell the precision, in one line; nothing where it tells all."""
    count = (compiled.get("matrix_products") or {}).get(UNTOLD, 0)
    if count:
        who = figures.runtime_name(str(compiled.get("runtime", "")))
        yield f"in which precision {count:,} matrix products ran: {who} does not tell"
