"""Tables of the history. Rows are only ever added: triggers refuse the rest, whoever tries it.

What was measured is one JSON record a row, with the columns beside it that are looked up.
"""

from sqlalchemy import (
    DDL,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
)

VERSION = 1

metadata = MetaData()


def _id() -> Column[int]:
    return Column("id", Integer, primary_key=True, autoincrement=True)


versions = Table("vitrim_history", metadata, Column("version", Integer, primary_key=True))
runs = Table(
    "vitrim_runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("matrix", String(64), nullable=False),
    Column("matrix_digest", String(64), nullable=False),
    Column("started_at", String(40), nullable=False),
    Column("commit", String(64), nullable=False),
    Column("vitrim", String(80), nullable=False),
    Column("note", Text, nullable=False),
)
ends = Table(
    "vitrim_ends",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("at", String(40), nullable=False),
    Column("how", String(20), nullable=False),  # finished, deadline, abandoned
)
planned = Table(
    "vitrim_planned",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("cell", String(160), primary_key=True),
    Column("recipe", String(64), nullable=False),
    Column("device", String(64), nullable=False),
    Column("target", Text, nullable=False),
    Column("command", Text, nullable=False),
)
tries = Table(
    "vitrim_tries",
    metadata,
    _id(),
    Column("run", String(64), nullable=False),
    Column("cell", String(160), nullable=False),
    Column("number", Integer, nullable=False),
    Column("at", String(40), nullable=False),
    Column("status", String(20), nullable=False),
    Column("final", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("facts", Text, nullable=False),
    UniqueConstraint("run", "cell", "number"),
)
nights = Table(
    "vitrim_nights",
    metadata,
    _id(),
    Column("run", String(64), nullable=False),
    Column("cell", String(160), nullable=False),
    Column("series", String(64), nullable=False),
    Column("at", String(40), nullable=False),
    Column("record", Text, nullable=False),
    UniqueConstraint("run", "series"),
)
Index("vitrim_nights_of_series", nights.c.series, nights.c.id)
reruns = Table(
    "vitrim_reruns",
    metadata,
    _id(),
    Column("run", String(64), nullable=False),
    Column("series", String(64), nullable=False),
    Column("raw", String(64), nullable=False),
    Column("record", Text, nullable=False),
)
judgings = Table(
    "vitrim_judgings",
    metadata,
    _id(),
    Column("at", String(40), nullable=False),
    Column("policy", Text, nullable=False),
    Column("why", String(20), nullable=False),  # night, rejudge
)
verdicts = Table(
    "vitrim_verdicts",
    metadata,
    _id(),
    Column("judging", Integer, nullable=False),
    Column("run", String(64), nullable=False),
    Column("series", String(64), nullable=False),
    Column("record", Text, nullable=False),
)
Index("vitrim_verdicts_of_series", verdicts.c.series, verdicts.c.run, verdicts.c.id)
marks = Table(
    "vitrim_marks",
    metadata,
    _id(),
    Column("at", String(40), nullable=False),
    Column("what", String(20), nullable=False),  # pin, accept
    Column("matrix", String(64), nullable=False),
    Column("run", String(64), nullable=False),
    Column("series", String(64), nullable=False),  # empty: all
    Column("who", Text, nullable=False),
    Column("note", Text, nullable=False),
)

REFUSAL = "the history is append-only"
for _table in metadata.sorted_tables:
    for _what in ("UPDATE", "DELETE"):
        _name = f"no_{_what.lower()}_of_{_table.name}"
        event.listen(
            _table,
            "after_create",
            DDL(  # type: ignore[no-untyped-call]  # SQLAlchemy's own
                f"CREATE TRIGGER {_name} BEFORE {_what} ON {_table.name} BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
            ).execute_if(dialect="sqlite"),
        )
    event.listen(
        _table,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]
            "CREATE OR REPLACE FUNCTION vitrim_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{REFUSAL}'; END $$"
        ).execute_if(dialect="postgresql"),
    )
    event.listen(
        _table,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {_table.name} "
            "FOR EACH STATEMENT EXECUTE FUNCTION vitrim_append_only()"
        ).execute_if(dialect="postgresql"),
    )
