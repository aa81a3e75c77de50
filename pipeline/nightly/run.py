"""A run: every cell of the matrix once. One thread builds, one per board measures what is built for it.

Every planned cell has a row before anything runs, and an outcome when the run is over, whatever happened meanwhile. A
run that was killed goes on where it stopped.
"""

import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory

from pipeline.nightly.bench import Bench
from pipeline.nightly.builder import Builder, Unit
from pipeline.nightly.cells import Planned, by_unit, plan_cells
from pipeline.nightly.finish import explain, missing_metrics
from pipeline.nightly.history import CellRow, HistoryStore, Run
from pipeline.nightly.history.history import How
from pipeline.nightly.judging import Judging, judge_run
from pipeline.nightly.matrix import Matrix, deadline_after, seconds_of
from pipeline.nightly.night import (
    GOOD,
    RERUN_METRICS,
    TONIGHT,
    Cell,
    Left,
    leave,
    rerun_of,
    without_values,
)
from pipeline.nightly.record import Night, Rerun, Series, Status, Verdict
from pipeline.nightly.repository import commit_of, vitrim_version
from pipeline.nightly.stop import Stop, StoppedError
from pipeline.store.locks import BusyError, locked, read_holder, write_holder
from stages.data.images import ImageSet, open_images
from stages.data.source import DataSource
from stages.stage import Role
from targets.errors import DeviceBusyError, DeviceLostError, InputError, VitrimError

Tell = Callable[[str], None]
OLDEST_TO_GO_ON = timedelta(hours=20)
"""a run that began longer ago is another night's"""


@dataclass(kw_only=True)
class NightRun:
    """One run of a matrix."""

    matrix: Matrix
    folder: Path
    """of the matrix: its repository is the one whose commits are named"""
    boards: Mapping[str, Bench]
    builder: Builder
    store: HistoryStore
    tell: Tell = lambda message: None
    fresh: bool = False
    """begin a new run even where one could go on"""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    """what the history calls the time; deadlines use the clock"""
    commit: str | None = None
    """of the repository; None: asked from git"""
    stop: Stop = field(default_factory=Stop)

    def go(self) -> str:
        """Run every cell, judge, and return the run's id. Raises InputError where another run is under way.

        Ctrl-C gives up what is under way and leaves the run open: the next one goes on.
        """
        lock = self.store.files / f"{self.matrix.name}.lock"
        holder = lock.with_suffix(".holder")
        try:
            with locked(lock, holder_file=holder, timeout_s=0):
                write_holder(holder)
                return self._run()
        except BusyError:
            who = read_holder(holder)
            raise InputError(f"a run of {self.matrix.name!r} is under way: {who or 'by somebody else'}") from None

    def _run(self) -> str:
        commit = commit_of(self.folder) if self.commit is None else self.commit
        cells = plan_cells(self.matrix, self.boards, folder=self.folder, commit=commit, vitrim=vitrim_version())
        run = self._begin(cells, commit)
        self.stop.deadline = deadline_after(self.matrix.deadline, datetime.now(UTC))
        over = {row.cell for row in self.store.cells(run.id) if row.status is not None}
        left = [one for one in cells if one.cell.name not in over]
        if over:
            self.tell(f"run {run.id} goes on: {len(over)} of {len(cells)} cells are done")
        else:
            self.tell(f"run {run.id}: {len(cells)} cells on {len(self.matrix.devices)} devices")
        if left:
            _Working(self, run, left).work()
        return self._finish(run)

    def _begin(self, cells: Sequence[Planned], commit: str) -> Run:
        """The run that goes on, or a new one; those that can never go on are closed."""
        now, vitrim = self.now(), vitrim_version()
        found: Run | None = None
        for one in self.store.runs(self.matrix.name):
            if one.ended is not None:
                continue
            same = (one.matrix_digest, one.commit, one.vitrim) == (self.matrix.digest(), commit, vitrim)
            if same and not self.fresh and now - one.started_at < OLDEST_TO_GO_ON:
                found = one
            else:
                self.tell(f"run {one.id} was never finished; its missing cells count as failures")
                self._close(one, "abandoned", "the run was interrupted and never went on")
        if found is not None:
            return found
        run = Run(
            id=self._new_id(now),
            matrix=self.matrix.name,
            matrix_digest=self.matrix.digest(),
            started_at=now,
            commit=commit,
            vitrim=vitrim,
        )
        rows = [
            CellRow(
                run=run.id,
                cell=one.cell.name,
                recipe=one.cell.recipe,
                device=one.cell.device,
                target=one.cell.target,
                command=one.command,
            )
            for one in cells
        ]
        self.store.begin(run, rows)
        return run

    def _new_id(self, now: datetime) -> str:
        """`2026-11-27`, and `2026-11-27.2` for a second run of the day, with the matrix' name where others share."""
        day = now.astimezone().strftime("%Y-%m-%d")
        taken = {one.id for one in self.store.runs(self.matrix.name)}
        stem = f"{self.matrix.name}-{day}"
        return next(id_ for id_ in (stem, *(f"{stem}.{count}" for count in range(2, 10_000))) if id_ not in taken)

    def _finish(self, run: Run) -> str:
        rows = self.store.cells(run.id)
        late = any(row.status is None for row in rows)
        reason = self.stop.reason if late else ""
        self._close(run, "deadline" if late else "finished", reason)
        self._remove_old_engines()
        return run.id

    def _close(self, run: Run, how: How, reason: str) -> None:
        """Give every cell of a run an outcome, judge it, and say that it is over."""
        for row in self.store.cells(run.id):
            if row.status is None:
                cell = _cell_of(row, run)
                nights = without_values(
                    cell, known_series(self.store, row.cell), status="missing", reason=reason, at=run.started_at
                )
                self.store.try_ended(run.id, row.cell, status="missing", final=True, nights=nights, reason=reason)
        judging = self.judging()
        judge_run(judging, run.id, explain(judging, run.id, repository=self.folder))
        self.store.end(run.id, how)

    def judging(self, series: Sequence[str] | None = None) -> Judging:
        """The history as it is. series: only these are asked for."""
        verdicts = self.store.verdicts() if series is None else {}
        for key in series or ():
            verdicts |= self.store.verdicts(series=key)
        return Judging(
            store=self.store,
            matrix=self.matrix.name,
            policy=self.matrix.policy,
            release=self.matrix.release,
            verdicts=verdicts,
        )

    def _remove_old_engines(self) -> None:
        """Engines of old nights go; those that a pin or an open regression needs stay."""
        from pipeline.nightly.finish import remove_old_engines

        freed = remove_old_engines(self.judging(), keep=self.matrix.history.keep_engines)
        if freed:
            self.tell(
                f"removed {freed / 1e6:.1f} MB of engines that are older than {self.matrix.history.keep_engines} nights"
            )


def known_series(store: HistoryStore, cell: str) -> list[Series]:
    """Series of the last night on which a cell was measured."""
    nights = [(run, night) for run, night in store.nights(cell=cell) if night.status == "measured"]
    return [night.series for run, night in nights if run == nights[-1][0]]


class _Working:
    """The threads of one run."""

    def __init__(self, night: NightRun, run: Run, cells: Sequence[Planned]) -> None:
        self.night, self.run = night, run
        self.units = by_unit(cells)
        self.queues: dict[str, Queue[tuple[Planned, Path] | None]] = {one.cell.device: Queue() for one in cells}
        self.host = threading.Lock()
        """held by whoever builds on this machine, or measures on it"""
        self.images: dict[str, ImageSet | None] = {}
        self.images_lock = threading.Lock()
        self.defects: list[BaseException] = []

    def work(self) -> None:
        with TemporaryDirectory(prefix=".work-", dir=self.night.store.files) as folder:
            self.scratch = Path(folder)
            threads = [threading.Thread(target=self._guarded, args=(self._build_all,), name="builder")]
            threads += [
                threading.Thread(target=self._guarded, args=(self._board, name), name=name) for name in self.queues
            ]
            for one in threads:
                one.start()
            try:
                for one in threads:
                    while one.is_alive():
                        one.join(0.2)
            except BaseException:
                self.night.stop.ask()
                for one in threads:
                    one.join()
                raise
        if self.defects:
            raise self.defects[0]

    def _guarded(self, work: Callable[..., None], *arguments: str) -> None:
        """A defect in one thread ends the run, and is raised where the run was asked for."""
        try:
            work(*arguments)
        except BaseException as error:
            self.defects.append(error)
            self.night.stop.ask()

    # The builder.

    def _build_all(self) -> None:
        try:
            for unit, cells in self.units.items():
                if self.night.stop.over:
                    return
                self._build(unit, cells)
        finally:
            for queue in self.queues.values():
                queue.put(None)

    def _build(self, unit: Unit, cells: Sequence[Planned]) -> None:
        output = self.scratch / f"{unit.name}-{len(list(self.scratch.iterdir()))}"
        began = time.monotonic()
        self.night.tell(f"building {unit.name} for {unit.target}")
        try:
            with self.host:
                built = self.night.builder.build(
                    unit, output, stop=self.night.stop, tell=lambda text: self.night.tell(f"{unit.name}: {text}")
                )
        except StoppedError:
            return
        except VitrimError as error:
            for one in cells:
                self._failed(one, str(error), seconds=time.monotonic() - began)
            return
        for one in cells:
            self.queues[one.cell.device].put((one, built))

    # The boards.

    def _board(self, name: str) -> None:
        while (job := self.queues[name].get()) is not None:
            planned, built = job
            if not self.night.stop.over:
                with suppress(StoppedError):
                    self._cell(self.night.boards[name], planned, built)

    def _cell(self, board: Bench, planned: Planned, built: Path) -> None:
        """Measure one cell, again where its board was lost; one board's failure is no other's."""
        wait = seconds_of(self.night.matrix.retry_wait)
        for number in range(self.night.matrix.retries + 1):
            began = time.monotonic()
            last = number == self.night.matrix.retries
            try:
                left, reruns = self._measure(board, planned, built)
            except DeviceLostError as error:
                self._lost(planned, str(error), seconds=time.monotonic() - began, final=last)
                if last or self.night.stop.wait(wait * 2**number):
                    return
                continue
            except StoppedError:
                raise
            except DeviceBusyError as error:
                self._failed(planned, str(error), status="missing", seconds=time.monotonic() - began)
                return
            except VitrimError as error:
                self._failed(planned, str(error), seconds=time.monotonic() - began)
                return
            self.night.store.try_ended(
                self.run.id,
                planned.cell.name,
                status="measured",
                final=True,
                nights=[*left.nights, *missing_metrics(self.night.store, planned.cell, left.nights, self.night.now())],
                reruns=reruns,
                seconds=time.monotonic() - began,
                facts=left.facts,
            )
            value = next((one.value for one in left.nights if one.valid), None)
            shown = "" if value is None else f", {left.nights[0].series.metric} {value:,.4g}"
            self.night.tell(f"{planned.cell.name}: measured{shown}")
            return

    def _measure(self, board: Bench, planned: Planned, built: Path) -> tuple[Left, list[tuple[str, Rerun, str]]]:
        """Measure a cell, and again beside the last good engine where that is what a suspicion asks for."""
        night = self.night
        images = self._images(planned.evaluate)

        def tell(message: str, share: float | None) -> None:
            if night.stop.asked:
                night.stop.check()

        with ExitStack() as held, TemporaryDirectory(prefix="cell-", dir=self.scratch) as scratch:
            if board.shares_host:
                held.enter_context(self.host)
            held.enter_context(board.open(wait_seconds=seconds_of(night.matrix.busy_wait)))
            measured = board.measure(
                {TONIGHT: built / "bundle"},
                images=images,
                level=night.matrix.level,
                answers=images is not None,
                scratch=Path(scratch),
                tell=tell,
            )
            left = leave(planned.cell, measured, built, at=night.now(), images=images, objects=night.store.objects)
            shelf = self._shelf(planned.cell.name)
            wanted = self._suspicions(left, shelf)
            reruns: list[tuple[str, Rerun, str]] = []
            for artifact, series in wanted.items():
                if night.stop.over:
                    break
                night.tell(f"{planned.cell.name}: measured again, beside the last good engine")
                good = night.store.objects.take_folder(shelf[artifact], Path(scratch, "good"))
                again = board.measure(
                    {TONIGHT: built / "bundle", GOOD: good},
                    images=images,
                    level=night.matrix.rerun_level,
                    answers=False,
                    scratch=Path(scratch),
                    tell=tell,
                )
                shutil.rmtree(good)
                raw = night.store.objects.put_json(again.comparison.model_dump(mode="json"))
                for one in series:
                    found = rerun_of(again, one.metric, artifact)
                    if found is not None:
                        reruns.append((one.key, found, raw))
        return left, reruns

    def _suspicions(self, left: Left, shelf: Mapping[str, str]) -> dict[str, list[Series]]:
        """Series that want a re-run, by the good artifact they want it beside."""
        judging = self.night.judging([one.series.key for one in left.nights])
        found: dict[str, list[Series]] = {}
        for one in left.nights:
            if one.series.metric not in RERUN_METRICS:
                continue
            verdict: Verdict = judging.value(self.run.id, one, kept=shelf)
            if verdict.rerun_wanted and verdict.culprit is not None:
                found.setdefault(verdict.culprit.last_good.artifact, []).append(one.series)
        return found

    def _shelf(self, cell: str) -> dict[str, str]:
        """Bundles of earlier nights of a cell that are still there, by the engine's digest."""
        from pipeline.nightly.finish import shelf_of

        return shelf_of(self.night.store, self.night.matrix.name, cell)

    def _images(self, source: DataSource | None) -> ImageSet | None:
        if source is None:
            return None
        key = source.digest()
        with self.images_lock:
            if key not in self.images:
                self.images[key] = open_images(
                    source, Role.EVALUATE, index_cache=self.night.store.files / "images.index"
                )
            return self.images[key]

    # Outcomes without values.

    def _lost(self, planned: Planned, reason: str, *, seconds: float, final: bool) -> None:
        self.night.tell(f"{planned.cell.name}: the board was lost: {reason}")
        nights = self._without(planned, "device_lost", reason) if final else []
        self.night.store.try_ended(
            self.run.id,
            planned.cell.name,
            status="device_lost",
            final=final,
            nights=nights,
            reason=reason,
            seconds=seconds,
        )

    def _failed(self, planned: Planned, reason: str, *, seconds: float, status: Status = "failed") -> None:
        self.night.tell(f"{planned.cell.name}: {status}: {reason}")
        self.night.store.try_ended(
            self.run.id,
            planned.cell.name,
            status=status,
            final=True,
            nights=self._without(planned, status, reason),
            reason=reason,
            seconds=seconds,
        )

    def _without(self, planned: Planned, status: Status, reason: str) -> list[Night]:
        known = known_series(self.night.store, planned.cell.name)
        return without_values(planned.cell, known, status=status, reason=reason, at=self.night.now())


def _cell_of(row: CellRow, run: Run) -> Cell:
    return Cell(
        name=row.cell, recipe=row.recipe, device=row.device, target=row.target, commit=run.commit, vitrim=run.vitrim
    )
