"""The history: rows that are only ever added, in SQLite and in PostgreSQL; files by their content."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from pipeline.nightly.history import CellRow, HistoryStore, Objects, Run
from pipeline.nightly.record import Rerun, Verdict
from pipeline.nightly.rules import Policy
from pipeline.nightly.simulation import FIRST
from targets.errors import InputError, StoreError

RUN = Run(id="lab-1", matrix="lab", matrix_digest="0" * 64, started_at=FIRST, commit="c", vitrim="0.1")
CELL = CellRow(run="lab-1", cell="digits@red", recipe="digits", device="red", target="cpu", command="vitrim build")


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server of our own, on a unix socket."""
    programs = {name: _program(name) for name in ("initdb", "pg_ctl")}
    if None in programs.values():
        pytest.skip("no PostgreSQL server here: apt-get install postgresql (tests/system_packages.sh)")
    # Of its own, because pytest's folders are the user's alone and the server refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="vitrim-pg-"))
    said_file = folder.with_suffix(".txt")
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)

    def run(name: str, *words: str) -> None:
        with said_file.open("w") as said:  # a pipe would stay open with the server
            done = subprocess.run(
                [str(programs[name]), "-D", str(folder / "data"), *words],
                stdout=said,
                stderr=said,
                cwd="/",
                check=False,
                **who,
            )
        assert done.returncode == 0, said_file.read_text()

    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
    try:
        run("initdb", "-U", "vitrim", "--auth=trust", "-E", "UTF8", "--no-sync")
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        yield f"postgresql://vitrim@/postgres?host={folder}"
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            run("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
        said_file.unlink(missing_ok=True)


def _program(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'history.sqlite'}"
    server: str = request.getfixturevalue("postgres")
    name = f"t{abs(hash(str(tmp_path))):x}"
    with closing(
        create_engine(server.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT").connect()
    ) as one:
        one.execute(text(f"CREATE DATABASE {name}"))
        engine = one.engine
    engine.dispose()
    return server.replace("/postgres?", f"/{name}?")


@pytest.fixture
def store(url: str, tmp_path: Path) -> Iterator[HistoryStore]:
    with HistoryStore(url, tmp_path / "files") as opened:
        yield opened


def test_what_was_written_is_read_again_by_another_process_later(store: HistoryStore, url: str, night: Any) -> None:
    store.begin(RUN, [CELL])
    one = night(0, 10.0)
    rerun = Rerun(ratio=1.05, ratio_ci95=(1.04, 1.06), good_artifact="good")
    store.try_ended("lab-1", CELL.cell, status="device_lost", final=False, reason="gone")
    store.try_ended(
        "lab-1",
        CELL.cell,
        status="measured",
        final=True,
        nights=[one],
        reruns=[(one.series.key, rerun, "raw")],
        facts={"raw": "digest"},
    )
    store.add_verdicts([("lab-1", one.series.key, Verdict(kind="ok", sentence="ok"))], policy=Policy(), why="night")
    store.mark("pin", matrix="lab", run="lab-1", who="me", note="1.0")
    store.end("lab-1", "finished")

    with HistoryStore(url, store.files) as again:
        (run,) = again.runs("lab")
        assert (run.id, run.ended, run.started_at) == ("lab-1", "finished", FIRST)
        (row,) = again.cells("lab-1")
        assert (row.status, row.tries, row.facts) == ("measured", ("device_lost: gone",), {"raw": "digest"})
        assert again.nights(series=one.series.key) == [("lab-1", one)]
        assert again.reruns(one.series.key) == {"lab-1": [rerun]}
        assert again.verdicts()["lab-1", one.series.key].kind == "ok"
        assert [mark["note"] for mark in again.marks("pin", "lab")] == ["1.0"]


def test_the_last_judging_counts_and_the_earlier_ones_stay(store: HistoryStore) -> None:
    store.begin(RUN, [CELL])
    for kind in ("ok", "regression"):
        verdict = Verdict.model_validate({"kind": kind, "sentence": kind})
        store.add_verdicts([("lab-1", "series", verdict)], policy=Policy(), why="rejudge")

    assert store.verdicts()["lab-1", "series"].kind == "regression"
    with store._writing() as connection:
        assert connection.execute(text("SELECT count(*) FROM vitrim_verdicts")).scalar_one() == 2


@pytest.mark.parametrize(
    "statement", ["UPDATE vitrim_runs SET matrix = 'x'", "DELETE FROM vitrim_runs", "DELETE FROM vitrim_nights"]
)
def test_no_row_is_ever_changed(store: HistoryStore, statement: str, night: Any) -> None:
    store.begin(RUN, [CELL])
    store.try_ended("lab-1", CELL.cell, status="measured", final=True, nights=[night(0)])

    with pytest.raises(StoreError, match="append-only"), store._writing() as connection:
        connection.execute(text(statement))
    assert len(store.runs("lab")) == 1
    assert len(store.nights()) == 1


def test_a_try_leaves_all_of_it_or_nothing(store: HistoryStore, night: Any) -> None:
    store.begin(RUN, [CELL])
    twice = [night(0, 10.0), night(0, 11.0)]  # one series cannot have two nights in one run

    with pytest.raises(StoreError):
        store.try_ended("lab-1", CELL.cell, status="measured", final=True, nights=twice)
    assert store.nights() == []
    assert store.cells("lab-1")[0].status is None


def test_runs_are_found_by_how_their_ids_begin(store: HistoryStore) -> None:
    for index in (1, 2):
        run = Run(**{**vars(RUN), "id": f"lab-{index}", "started_at": FIRST + timedelta(days=index)})
        store.begin(run, [CellRow(**{**vars(CELL), "run": run.id})])

    assert store.run("lab").id == "lab-2"
    assert store.run("lab", "lab-1").id == "lab-1"
    with pytest.raises(InputError, match="more than one run 'lab'"):
        store.run("lab", "lab")
    with pytest.raises(InputError, match="no run 'x' in 'lab'; there are lab-1, lab-2"):
        store.run("lab", "x")
    with pytest.raises(InputError, match="has no run yet"):
        store.run("other")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:////no/such/folder/h.sqlite", "unable to open"),
        ("postgresql://nobody@/x?host=/no/such/folder", "No such file"),
        ("postgresql+nothing://x/y", "cannot be read"),
    ],
)
def test_a_database_that_cannot_be_reached_is_one_line(url: str, words: str, tmp_path: Path) -> None:
    with pytest.raises((InputError, StoreError), match=words) as caught:
        HistoryStore(url, tmp_path / "files")
    assert "\n" not in str(caught.value)


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        HistoryStore("postgresql://me:secret@/x?host=/no/such/folder", tmp_path / "files")
    assert "secret" not in str(caught.value)


def test_a_history_of_another_version_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'history.sqlite'}"
    with HistoryStore(url, tmp_path) as store, store._writing() as connection:
        connection.execute(text("DROP TRIGGER no_update_of_vitrim_history"))
        connection.execute(text("UPDATE vitrim_history SET version = 99"))

    with pytest.raises(StoreError, match="is of version 99"):
        HistoryStore(url, tmp_path)


# Files.


@given(st.binary(max_size=200))
def test_objects_come_back_as_they_went(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        objects = Objects(Path(folder))
        digest = objects.put(data)

        assert objects.get(digest) == data
        assert objects.put(data) == digest


def test_arrays_and_folders_come_back(tmp_path: Path) -> None:
    objects = Objects(tmp_path / "objects")
    arrays = {"values": np.arange(6, dtype=np.float32).reshape(2, 3), "labels": np.array([1, 2])}
    folder = tmp_path / "bundle"
    (folder / "engine").mkdir(parents=True)
    (folder / "engine" / "model.bin").write_bytes(b"x" * 1000)
    (folder / "manifest.json").write_text("{}")

    again = objects.get_arrays(objects.put_arrays(arrays))
    taken = objects.take_folder(objects.put_folder(folder), tmp_path / "taken")

    assert all(np.array_equal(again[name], array) for name, array in arrays.items())
    assert (taken / "engine" / "model.bin").read_bytes() == b"x" * 1000
    assert (taken / "engine" / "model.bin").stat().st_nlink == 1


def test_a_damaged_object_is_never_used(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    digest = objects.put(b"what was measured")
    (path,) = tmp_path.rglob("*.z")
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(StoreError, match=r"damaged|lacks"):
            objects.get(digest)
    path.write_bytes(whole[:-3])
    with pytest.raises(StoreError, match="damaged"):
        objects.get(digest)


def test_files_that_are_shared_stay_while_one_needs_them(tmp_path: Path) -> None:
    objects = Objects(tmp_path / "objects")
    for name, content in (("one", b"1"), ("two", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shared").write_bytes(b"graph")
        (tmp_path / name / "own").write_bytes(content)
    one, two = objects.put_folder(tmp_path / "one"), objects.put_folder(tmp_path / "two")
    answers = objects.put_arrays({"values": np.zeros(3)})

    assert objects.remove_except([two], [answers]) > 0
    assert not objects.has(one)
    assert objects.has_folder(two)
    assert len(objects.get_arrays(answers)["values"]) == 3
