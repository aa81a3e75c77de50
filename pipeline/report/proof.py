"""What was shown of an engine, and what was not, in words: from the measurements and the facts of the compile step."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.report import figures
from pipeline.report.record import Accuracy, Latency, Parity, Proof

if TYPE_CHECKING:
    from pipeline.plan import AwayPlan, Prepared


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
    unproven = []
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
        yield f"{who} like torch on {parity.images:,} images (cosine {figures.number(parity.cosine, 4)})"


def _products(found: Any, words: str) -> Iterator[str]:
    """`72 matrix products ran in int8`, for each precision, most first."""
    if isinstance(found, Mapping):
        for precision, count in sorted(found.items(), key=lambda pair: -pair[1]):
            yield f"{count:,} matrix products {words.format(precision)}"
