"""The choice among candidates: the fastest of those that answer like the source on `select`, by measurement.

The decision is kept with the engines it was made between, so a resumed build chooses as the interrupted one did.
Nothing here reads `evaluate`.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.answers import Tell, divergence, engine_answers, prefixed, usable_likeness
from pipeline.contest import decide
from pipeline.plan import Candidate
from pipeline.report.record import CandidateRow
from pipeline.search.pairs import Pair
from pipeline.slack import AGREEMENT_SLACK
from targets.errors import StageError
from targets.profile import Budget
from targets.record import Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.pixels import Pixels
    from pipeline.statistics import Booleans, Floats

DOUBTFUL_SLACK = 0.03
"""the same where the images are too few to tell the two apart (exact McNemar test)"""
SIGNIFICANT = 0.05


class Choice(Record):
    """Which candidate won, and why each other lost."""

    format: str = "vitrim.choice/1"
    winner: str
    rows: tuple[CandidateRow, ...]
    losses: dict[str, float] = {}
    """by candidate that agrees as well as the best: `divergence` of its answers from the source's"""

    def joined_with(self, unpruned: "Choice | None", searched: Mapping[str, str] | None = None) -> "Choice":
        """Return this choice with those that lost before, when unpruned engines were compared; None: as it is.

        searched: by candidate, why it lost although its shapes were searched, too.
        """
        if unpruned is None:
            return self
        told = searched or {}
        here = {name_of(row) for row in self.rows}
        lost = [
            row.model_copy(
                update={
                    "chosen": False,  # the first pair was, before another one lost less
                    "reason": told.get(name_of(row), f"of the unpruned engines: {row.reason}"),
                }
            )
            for row in unpruned.rows
            if name_of(row) not in here
        ]
        rows = self.rows
        if lost and len(rows) == 1:
            fastest = name_of(rows[0]) == unpruned.winner
            reason = "its unpruned engine is the fastest" if fastest else "it loses least at the same milliseconds"
            rows = (rows[0].model_copy(update={"reason": reason}),)
        return Choice(winner=self.winner, rows=(*rows, *lost), losses=self.losses)


def name_of(row: CandidateRow) -> str:
    """Name of a row's candidate."""
    return f"{row.runtime} {row.precision} {row.variant}".rstrip()


def pairs_of(choice: Choice) -> tuple[Pair, list[Pair]]:
    """The winner among unpruned engines, and the others that agree with the source about as well and were timed."""
    rows = {name_of(row): row for row in choice.rows}
    found = {name: Pair(name=name, p50_ms=rows[name].p50_ms or 0.0, loss=loss) for name, loss in choice.losses.items()}
    first = found.pop(choice.winner, Pair(name=choice.winner, p50_ms=0.0, loss=0.0))  # the only candidate is not timed
    return first, list(found.values())


def choose(
    candidates: Mapping[str, Candidate],
    engines: Mapping[str, Path],
    *,
    baseline: Path,
    reference: "Floats",
    pixels: "Pixels",
    baseline_pixels: "Pixels",
    has_head: bool,
    threads: int | None,
    sizes: Mapping[str, int],
    slack: float = AGREEMENT_SLACK,
    budget: Budget | None = None,
    tell: Tell,
) -> Choice:
    """Measure and decide. Order: preference. reference: the baseline's answers to `select`.

    pixels: images of `select` as the candidates read them, and as the baseline does. slack: see `pipeline.slack`.
    budget: whose limits go before speed, see `pipeline.contest`.
    """
    agreements, same, losses = {}, {}, {}
    for name, folder in engines.items():
        answers = engine_answers(folder, pixels, tell=prefixed(tell, name))
        losses[name] = divergence(reference, answers, has_head=has_head)
        agreements[name] = usable_likeness(reference, answers, has_head=has_head)
        if has_head:
            same[name] = answers.argmax(axis=1) == reference.argmax(axis=1)
    if len(candidates) == 1:
        ((name, only),) = candidates.items()
        if math.isnan(agreements[name]):
            raise StageError(f"the only candidate, {name}, gives answers that are not finite")
        row = _row(only, None, agreements[name], sizes[name], chosen=True, reason="the only candidate")
        return Choice(winner=name, rows=(row,))
    fit = as_good_as_the_best(agreements, same, slack=slack)
    made = _by_speed(
        candidates,
        engines,
        baseline,
        agreements,
        fit,
        pixels,
        baseline_pixels,
        threads,
        sizes,
        budget or Budget(),
        tell,
    )
    return made.replace(losses={name: losses[name] for name in fit})


def _by_speed(
    candidates: Mapping[str, Candidate],
    engines: Mapping[str, Path],
    baseline: Path,
    agreements: Mapping[str, float],
    fit: list[str],
    pixels: "Pixels",
    baseline_pixels: "Pixels",
    threads: int | None,
    sizes: Mapping[str, int],
    budget: Budget,
    tell: Tell,
) -> Choice:
    from pipeline.pixels import INPUTS
    from targets.measure.latency import EngineUnderTest, compare

    batch = next(iter(candidates.values())).batch
    count = max(INPUTS, batch)
    theirs = baseline_pixels.inputs(count)
    comparison = compare(
        {
            "baseline": EngineUnderTest(folder=baseline, batch=batch, threads=threads, inputs=theirs),
            **{name: EngineUnderTest(folder=one, batch=batch, threads=threads) for name, one in engines.items()},
        },
        pixels.inputs(count),
        level="quick",
        tell=tell,
    )
    winner, rows = decide(
        candidates,
        agreements=agreements,
        fit=fit,
        measured=comparison.measurements,
        sizes=sizes,
        budget=budget,
        layers=lambda name: _layers(engines[name], pixels.inputs(batch), threads=threads),
    )
    return Choice(winner=winner, rows=rows)


def _layers(engine: Path, inputs: "NDArray[Any]", *, threads: int | None) -> list[dict[str, Any]]:
    """What ran in an engine, layer by layer. inputs: one query."""
    from targets.worker import Worker

    with Worker(threads=threads) as worker:
        worker.load(engine)
        return worker.layers(inputs)


def as_good_as_the_best(
    agreements: Mapping[str, float], same: "Mapping[str, Booleans]", *, slack: float = AGREEMENT_SLACK
) -> list[str]:
    """Return those whose answers are near the best's, or not shown to be worse, in order.

    agreements: share or mean cosine in 0..1, NaN for answers that are not finite. same: per image, whether the source
    gives the same top-1; empty for models without a head.
    """
    from pipeline.statistics import count_changes, mcnemar

    finite = [name for name, share in agreements.items() if not math.isnan(share)]
    if not finite:
        return []
    best = max(finite, key=agreements.__getitem__)
    fit = []
    for name in finite:
        near = agreements[name] >= agreements[best] - slack
        if not near and same and agreements[name] >= agreements[best] - DOUBTFUL_SLACK:
            lost, gained, _ = count_changes(same[best], same[name])
            near = mcnemar(lost, gained) >= SIGNIFICANT
        if near:
            fit.append(name)
    return fit


def _row(
    candidate: Candidate, p50_ms: float | None, agreement: float, size: int, *, chosen: bool, reason: str
) -> CandidateRow:
    return CandidateRow(
        runtime=candidate.runtime,
        precision=candidate.precision,
        variant=candidate.variant,
        p50_ms=p50_ms,
        agreement=agreement,
        bytes=size,
        chosen=chosen,
        reason=reason,
    )
