"""HistoryStore: what nights measured, in a database, by rows that are only ever added.

One store is shared by the threads of a run; every method is one transaction.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal

from pipeline.nightly.history.objects import Objects
from pipeline.nightly.record import Night, Rerun, Verdict
from pipeline.nightly.rules import Policy
from targets.errors import InputError, StoreError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from pipeline.nightly.matrix import Matrix

MISSING_PACKAGE = "the history of nights needs SQLAlchemy: pip install 'vitrim[nightly]'"
How = Literal["finished", "deadline", "abandoned"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One night of a matrix."""

    id: str
    matrix: str
    matrix_digest: str
    started_at: datetime
    commit: str
    vitrim: str
    note: str = ""
    ended: How | None = None
    """None: it is not over"""


@dataclass(frozen=True, kw_only=True)
class CellRow:
    """A planned cell, and what became of it at last."""

    run: str
    cell: str
    recipe: str
    device: str
    target: str
    command: str
    status: str | None = None
    """None: not over"""
    reason: str = ""
    tries: tuple[str, ...] = ()
    """the reason of each earlier try"""
    seconds: float = 0.0
    facts: Mapping[str, Any] | None = None
    """digests of what it left: raw, report, bundle, answers"""


def open_history(matrix: "Matrix") -> "HistoryStore":
    """Open the history of a matrix, and make it where there is none."""
    files = matrix.history.files
    assert files is not None  # load_matrix fills it in
    assert matrix.history.url is not None
    return HistoryStore(matrix.history.url, files)


class HistoryStore:
    """A database and a folder. Use it as a context manager."""

    def __init__(self, url: str, files: Path) -> None:
        """Open it. Raises InputError where it cannot be opened, StoreError where it is of another version."""
        self.files = files
        self.objects = Objects(files / "objects")
        self.url = url
        self._lock = RLock()
        try:
            files.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"history.files {str(files)!r} cannot be a folder: {error.strerror or error}") from error
        self._engine = _connect(url)
        self._prepare()

    def __enter__(self) -> "HistoryStore":
        """Nothing more to open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close all connections."""
        self._engine.dispose()

    # Runs.

    def begin(self, run: Run, cells: Sequence[CellRow]) -> None:
        """Write down a run and all that it plans, before anything runs."""
        from pipeline.nightly.history import tables

        with self._writing() as connection:
            connection.execute(
                tables.runs.insert(),
                {
                    "id": run.id,
                    "matrix": run.matrix,
                    "matrix_digest": run.matrix_digest,
                    "started_at": _text(run.started_at),
                    "commit": run.commit,
                    "vitrim": run.vitrim,
                    "note": run.note,
                },
            )
            connection.execute(
                tables.planned.insert(),
                [
                    {name: getattr(one, name) for name in ("run", "cell", "recipe", "device", "target", "command")}
                    for one in cells
                ],
            )

    def end(self, run: str, how: How) -> None:
        """Write down that a run is over."""
        from pipeline.nightly.history import tables

        self._insert(tables.ends, {"run": run, "at": _text(datetime.now(UTC)), "how": how})

    def runs(self, matrix: str) -> list[Run]:
        """Runs of a matrix, oldest first."""
        from sqlalchemy import select

        from pipeline.nightly.history import tables

        joined = tables.runs.outerjoin(tables.ends, tables.runs.c.id == tables.ends.c.run)
        asked = select(tables.runs, tables.ends.c.how).select_from(joined).where(tables.runs.c.matrix == matrix)
        rows = self._all(asked.order_by(tables.runs.c.started_at, tables.runs.c.id))
        return [
            Run(
                id=row["id"],
                matrix=row["matrix"],
                matrix_digest=row["matrix_digest"],
                started_at=datetime.fromisoformat(row["started_at"]),
                commit=row["commit"],
                vitrim=row["vitrim"],
                note=row["note"],
                ended=row["how"],
            )
            for row in rows
        ]

    def run(self, matrix: str, wanted: str | None = None) -> Run:
        """The last run of a matrix, or the one whose id begins so. Raises InputError where there is none or several."""
        every = self.runs(matrix)
        if not every:
            raise InputError(f"the history of {matrix!r} has no run yet: vitrim nightly run MATRIX")
        if wanted is None:
            return every[-1]
        found = [one for one in every if one.id.startswith(wanted)]
        if len(found) != 1:
            ids = ", ".join(one.id for one in (found or every)[-5:])
            raise InputError(f"{'no' if not found else 'more than one'} run {wanted!r} in {matrix!r}; there are {ids}")
        return found[0]

    # Cells.

    def try_ended(
        self,
        run: str,
        cell: str,
        *,
        status: str,
        final: bool,
        nights: Sequence[Night] = (),
        reruns: Sequence[tuple[str, Rerun, str]] = (),
        reason: str = "",
        seconds: float = 0.0,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Write down one try of a cell, with all it measured or nothing. final: no other try follows.

        reruns: (key of the series, re-run, digest of its raw samples).
        """
        from sqlalchemy import func, select

        from pipeline.nightly.history import tables

        with self._writing() as connection:
            tried = connection.execute(
                select(func.count())
                .select_from(tables.tries)
                .where(tables.tries.c.run == run, tables.tries.c.cell == cell)
            ).scalar_one()
            connection.execute(
                tables.tries.insert(),
                {
                    "run": run,
                    "cell": cell,
                    "number": tried + 1,
                    "at": _text(datetime.now(UTC)),
                    "status": status,
                    "final": int(final),
                    "reason": reason,
                    "seconds": seconds,
                    "facts": json.dumps(dict(facts or {}), sort_keys=True),
                },
            )
            if nights:
                connection.execute(
                    tables.nights.insert(),
                    [
                        {
                            "run": run,
                            "cell": cell,
                            "series": one.series.key,
                            "at": _text(one.at),
                            "record": one.canonical_json(),
                        }
                        for one in nights
                    ],
                )
            if reruns:
                connection.execute(
                    tables.reruns.insert(),
                    [
                        {"run": run, "series": series, "raw": raw, "record": rerun.canonical_json()}
                        for series, rerun, raw in reruns
                    ],
                )

    def cells(self, run: str) -> list[CellRow]:
        """All planned cells of a run, each with its outcome."""
        from sqlalchemy import select

        from pipeline.nightly.history import tables

        planned = self._all(select(tables.planned).where(tables.planned.c.run == run).order_by(tables.planned.c.cell))
        tried = self._all(select(tables.tries).where(tables.tries.c.run == run).order_by(tables.tries.c.number))
        found = []
        for row in planned:
            own = [one for one in tried if one["cell"] == row["cell"]]
            last = own[-1] if own and own[-1]["final"] else None
            earlier = tuple(f"{one['status']}: {one['reason']}" for one in own if one is not last)
            found.append(
                CellRow(
                    **row,
                    status=last["status"] if last else None,
                    reason=last["reason"] if last else "",
                    tries=earlier,
                    seconds=sum(one["seconds"] for one in own),
                    facts=json.loads(last["facts"]) if last else None,
                )
            )
        return found

    # Nights.

    def nights(
        self, *, run: str | None = None, cell: str | None = None, series: str | None = None
    ) -> list[tuple[str, Night]]:
        """Nights with the id of their run, oldest first."""
        from sqlalchemy import select

        from pipeline.nightly.history import tables

        asked = select(tables.nights.c.run, tables.nights.c.record)
        for column, value in (
            (tables.nights.c.run, run),
            (tables.nights.c.cell, cell),
            (tables.nights.c.series, series),
        ):
            asked = asked if value is None else asked.where(column == value)
        rows = self._all(asked.order_by(tables.nights.c.at, tables.nights.c.id))
        return [(row["run"], Night.model_validate_json(row["record"])) for row in rows]

    def reruns(self, series: str) -> dict[str, list[Rerun]]:
        """Re-runs of a series, by run."""
        from sqlalchemy import select

        from pipeline.nightly.history import tables

        rows = self._all(select(tables.reruns).where(tables.reruns.c.series == series).order_by(tables.reruns.c.id))
        found: dict[str, list[Rerun]] = {}
        for row in rows:
            found.setdefault(row["run"], []).append(Rerun.model_validate_json(row["record"]))
        return found

    def raw_of_reruns(self) -> set[str]:
        """Digests of the raw samples of all re-runs."""
        from sqlalchemy import select

        from pipeline.nightly.history import tables

        return {row["raw"] for row in self._all(select(tables.reruns.c.raw))}

    def only_matrix(self, matrix: str) -> bool:
        """Whether no other matrix shares this history."""
        from sqlalchemy import func, select

        from pipeline.nightly.history import tables

        (row,) = self._all(select(func.count().label("others")).where(tables.runs.c.matrix != matrix))
        return bool(row["others"] == 0)

    # Verdicts.

    def add_verdicts(self, found: Sequence[tuple[str, str, Verdict]], *, policy: Policy, why: str) -> None:
        """Write down a judging: (run, series, verdict). The last verdict of a night is the one that counts."""
        from pipeline.nightly.history import tables

        with self._writing() as connection:
            made = connection.execute(
                tables.judgings.insert().returning(tables.judgings.c.id),
                {"at": _text(datetime.now(UTC)), "policy": policy.canonical_json(), "why": why},
            ).scalar_one()
            if found:
                connection.execute(
                    tables.verdicts.insert(),
                    [
                        {"judging": made, "run": run, "series": series, "record": verdict.canonical_json()}
                        for run, series, verdict in found
                    ],
                )

    def verdicts(self, *, series: str | None = None, run: str | None = None) -> dict[tuple[str, str], Verdict]:
        """The verdicts that count, by (run, series)."""
        from sqlalchemy import select

        from pipeline.nightly.history import tables

        asked = select(tables.verdicts)
        asked = asked if series is None else asked.where(tables.verdicts.c.series == series)
        asked = asked if run is None else asked.where(tables.verdicts.c.run == run)
        rows = self._all(asked.order_by(tables.verdicts.c.id))
        last = {(row["run"], row["series"]): row["record"] for row in rows}
        return {place: Verdict.model_validate_json(record) for place, record in last.items()}

    # Pins and acceptances.

    def mark(
        self, what: Literal["pin", "accept"], *, matrix: str, run: str, series: str = "", who: str, note: str
    ) -> None:
        """Write down that somebody pinned a run as the release, or accepted a change."""
        from pipeline.nightly.history import tables

        row = {"what": what, "matrix": matrix, "run": run, "series": series, "who": who, "note": note}
        self._insert(tables.marks, {"at": _text(datetime.now(UTC)), **row})

    def marks(self, what: Literal["pin", "accept"], matrix: str) -> list[dict[str, Any]]:
        """Pins or acceptances, oldest first: at, run, series, who, note."""
        from sqlalchemy import select

        from pipeline.nightly.history import tables

        asked = select(tables.marks).where(tables.marks.c.what == what, tables.marks.c.matrix == matrix)
        return self._all(asked.order_by(tables.marks.c.id))

    # Inside.

    def _prepare(self) -> None:
        from sqlalchemy import insert, select

        from pipeline.nightly.history import tables

        with self._writing() as connection:
            tables.metadata.create_all(connection)
            found = connection.execute(select(tables.versions.c.version)).scalar_one_or_none()
            if found is None:
                connection.execute(insert(tables.versions), {"version": tables.VERSION})
        if found is not None and found != tables.VERSION:
            raise StoreError(f"the history {self.url!r} is of version {found}, this vitrim writes {tables.VERSION}")

    def _insert(self, table: Any, row: Mapping[str, Any]) -> None:
        with self._writing() as connection:
            connection.execute(table.insert(), dict(row))

    def _all(self, asked: Any) -> list[dict[str, Any]]:
        with self._writing() as connection:
            return [dict(row._mapping) for row in connection.execute(asked)]

    @contextmanager
    def _writing(self) -> "Iterator[Connection]":
        from sqlalchemy.exc import DBAPIError, SQLAlchemyError

        with self._lock:
            try:
                with self._engine.begin() as connection:
                    yield connection
            except DBAPIError as error:
                raise StoreError(
                    f"the history {shown(self.url)!r}: {str(error.orig).strip().splitlines()[0]}"
                ) from error
            except SQLAlchemyError as error:
                raise StoreError(f"the history {shown(self.url)!r}: {error}") from error


def shown(url: str) -> str:
    """A URL without its password."""
    from sqlalchemy.engine import make_url

    return make_url(url).render_as_string(hide_password=True)


def _connect(url: str) -> "Engine":
    try:
        from sqlalchemy import create_engine, event
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    except ImportError as error:
        raise InputError(MISSING_PACKAGE) from error
    try:
        parsed = make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() == "sqlite":
            from sqlalchemy.pool import StaticPool

            engine = create_engine(
                parsed, poolclass=StaticPool, connect_args={"check_same_thread": False, "timeout": 60}
            )
            event.listen(engine, "connect", _harden_sqlite)
            return engine
        return create_engine(parsed, pool_pre_ping=True, pool_size=1, max_overflow=0)
    except (ArgumentError, NoSuchModuleError) as error:
        raise InputError(f"history.url {url!r} cannot be read: {error}") from error
    except ImportError as error:
        raise InputError(f"history.url {shown(url)!r} needs {error.name}: pip install 'vitrim[nightly]'") from error


def _harden_sqlite(connection: Any, _: object) -> None:
    """A row that was written survives a power cut."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _text(moment: datetime) -> str:
    """A time that sorts as text: UTC, with microseconds."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
