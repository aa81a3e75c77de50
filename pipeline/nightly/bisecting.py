"""`vitrim nightly bisect`: what to bisect, out of the history, and on which board."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pipeline.keys import ROOT
from pipeline.nightly.bisect import Bisection, Bisector, code_of
from pipeline.nightly.boards import open_boards
from pipeline.nightly.builder import Builder, ProcessBuilder
from pipeline.nightly.cells import Planned, plan_cells
from pipeline.nightly.history import HistoryStore, open_history
from pipeline.nightly.matrix import Matrix, seconds_of
from pipeline.nightly.record import Metric, Night, Verdict
from pipeline.nightly.repository import bare
from stages.data.images import open_images
from stages.stage import Role
from targets.atomic import write_atomic
from targets.errors import InputError, UnknownNameError

Tell = Callable[[str], None]


def start_bisection(
    matrix: Matrix,
    folder: Path,
    *,
    cell: str | None,
    metric: str | None,
    good: str | None,
    bad: str | None,
    run: str | None,
    store: Path | None,
    tell: Tell,
) -> Bisection:
    """Bisect a regression of a run, or between two given commits; the outcome is also kept beside the history.

    Raises InputError where it is not clear what to bisect.
    """
    with open_history(matrix) as history:
        night, verdict = _regression(history, matrix, run, cell, metric, given=bool(good and bad))
        if night is not None:
            cell, metric = f"{night.series.recipe}@{night.series.device}", night.series.metric
        culprit = verdict.culprit if verdict else None
        good = good or (bare(culprit.last_good.commit) if culprit else "")
        bad = bad or (bare(culprit.first_bad.commit) if culprit else "")
        if not good or not bad:
            raise InputError("the nights of this change know no commits; give --good COMMIT --bad COMMIT")
        if good == bad:
            raise InputError(
                f"both nights are of commit {good[:12]}: no commit is to blame; see the hints of vitrim nightly report"
            )
        assert cell is not None
        device = cell.rpartition("@")[2]
        if device not in matrix.devices:
            raise UnknownNameError("device", device, matrix.devices)
        boards = open_boards(matrix, folder, [device])
        planned = _cell(matrix, folder, cell)
        images = None
        if planned.evaluate is not None:
            images = open_images(planned.evaluate, Role.EVALUATE, index_cache=history.files / "images.index")
        bisector = Bisector(
            folder=folder,
            board=boards[device],
            builder=lambda checkout: _builder(checkout, store),
            unit=planned.unit,
            cell=cell,
            metric=_metric(metric or "latency_p50_ms"),
            level=matrix.rerun_level,
            images=images,
            policy=matrix.policy,
            busy_wait=seconds_of(matrix.busy_wait),
            tell=tell,
        )
        found = bisector.run(good, bad, now=lambda: datetime.now(UTC))
        kept = history.files / "bisections"
        kept.mkdir(exist_ok=True)
        name = f"{found.finished_at:%Y-%m-%dT%H%M%S}-{cell}-{found.metric}.json"
        write_atomic(kept / name, (found.model_dump_json(indent=2) + "\n").encode())
    return found


def _builder(checkout: Path, store: Path | None) -> Builder:
    return ProcessBuilder(store=store, code=code_of(checkout, ROOT))


def _metric(name: str) -> Metric:
    known = Metric.__args__  # type: ignore[attr-defined]  # of a Literal
    if name not in known:
        raise UnknownNameError("metric", name, known)
    found: Metric = name  # type: ignore[assignment]
    return found


def _regression(
    history: HistoryStore, matrix: Matrix, run: str | None, cell: str | None, metric: str | None, *, given: bool
) -> tuple[Night | None, Verdict | None]:
    """The regression that is meant. given: the commits are known, so that none is needed."""
    if given:
        if cell is None:
            raise InputError("--good and --bad need --cell RECIPE@DEVICE")
        return None, None
    found = history.run(matrix.name, run)
    verdicts = history.verdicts(run=found.id)
    open_ones = []
    for _, night in history.nights(run=found.id):
        verdict = verdicts.get((found.id, night.series.key))
        own = f"{night.series.recipe}@{night.series.device}"
        if verdict is None or verdict.kind not in ("regression", "suspicious") or verdict.culprit is None:
            continue
        if cell in (None, own) and metric in (None, night.series.metric):
            open_ones.append((night, verdict))
    if not open_ones:
        raise InputError(f"run {found.id!r} has no regression to bisect; give --cell, --good and --bad")
    cells = sorted({f"{night.series.recipe}@{night.series.device}" for night, _ in open_ones})
    if len(cells) > 1:
        raise InputError(f"run {found.id!r} has regressions of {len(cells)} cells; give --cell: {', '.join(cells)}")
    # Of one cell, the median latency is measured best.
    return min(open_ones, key=lambda one: (one[0].series.metric != "latency_p50_ms", one[0].series.metric))


def _cell(matrix: Matrix, folder: Path, cell: str) -> Planned:
    devices = {name: None for row in matrix.recipes for name in row.devices or matrix.devices}
    cells = {one.cell.name: one for one in plan_cells(matrix, open_boards(matrix, folder, devices), folder=folder)}
    if cell not in cells:
        raise UnknownNameError("cell", cell, cells)
    return cells[cell]
