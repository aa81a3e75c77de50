import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from store_process import content_of, fill, key_of, make

from pipeline.store import Store, Writing, default_store_root
from stages.artifact import Artifact, Format
from targets.errors import StageError, StoreError

KEY = key_of(1)
DAY = 86_400


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "store") as opened:
        yield opened


def commit(writing: Writing, **changes) -> Artifact:
    return writing.commit(**{"stage": "test", "holds": Format.VIT, "facts": {}, "seconds": 1.0, **changes})


def write(store: Store, work: Callable[[Writing], object], key: str = KEY) -> None:
    """Let a stage work on an entry."""
    with store.write(key) as writing:
        work(writing)


def names(folder: Path) -> set[str]:
    """Every file below a folder that is not a lock or a tag."""
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in files if not name.startswith("locks/") and name != "CACHEDIR.TAG"}


# --- find and write


def test_what_was_written_is_found_with_its_facts(store):
    with store.write(KEY) as writing:
        fill(writing, 1)
        made = commit(writing, facts={"accuracy": 0.1 + 0.2}, inputs={"source": "abc"}, bound_to={"cpu": "x"})

    found = Store(store.root).find(KEY)

    assert found is not None
    assert found.manifest == made.manifest
    assert found.manifest.facts == {"accuracy": 0.1 + 0.2}
    assert (found.cached, made.cached) == (True, False)
    assert set(found.manifest.files) == {"deep/model.bin", "vit.json"}
    assert (found.folder / "deep/model.bin").read_bytes() == content_of(1)


def test_nothing_is_found_in_a_store_that_does_not_exist_and_looking_does_not_create_it(store):
    assert store.find(KEY) is None
    assert store.get_record("validation", KEY) is None
    assert store.entries() == []
    assert store.verify() == []
    assert store.size() == 0
    assert store.gc().removed == ()
    assert not store.root.exists()


def test_a_success_leaves_nothing_but_the_entry(store):
    make(store, 1)

    assert names(store.root) == {f"entries/{KEY}/{name}" for name in ("manifest.json", "vit.json", "deep/model.bin")}


def test_a_failure_keeps_the_scratch_and_nothing_else(store):
    def fail(writing: Writing) -> None:
        fill(writing, 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write(store, fail)

    assert names(store.root) == {f"work/{KEY}/scratch/half"}
    assert store.find(KEY) is None


def test_the_next_writer_resumes_from_the_scratch_of_the_one_before(store):
    def stop(writing: Writing) -> None:
        (writing.scratch / "epoch").write_text("7")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(store, stop)

    with store.write(KEY) as writing:
        assert (writing.scratch / "epoch").read_text() == "7"
        assert list(writing.output.iterdir()) == []
        fill(writing, 1)
        commit(writing)
    assert not (store.root / "work" / KEY).exists()


def test_leaving_without_a_commit_stores_nothing(store):
    with store.write(KEY) as writing:
        fill(writing, 1)

    assert store.find(KEY) is None


def test_a_stage_must_leave_files(store):
    with pytest.raises(StageError, match="test left no files"):
        write(store, commit)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_stage_must_not_leave_links(store, tmp_path, link):
    (tmp_path / "elsewhere").write_text("x")

    def leave_a_link(writing: Writing) -> None:
        link(tmp_path / "elsewhere", writing.output / "model.onnx.data")
        commit(writing)

    with pytest.raises(StageError, match=r"test left 'model.onnx.data' is a .*link"):
        write(store, leave_a_link)


@pytest.mark.parametrize("facts", [{"path": object()}, {"name": "\udcff"}])
def test_facts_that_json_cannot_hold_are_refused_in_one_line(store, facts):
    def find_out(writing: Writing) -> None:
        fill(writing, 1)
        commit(writing, facts=facts)

    with pytest.raises(StageError, match="facts that are not plain JSON"):
        write(store, find_out)
    assert store.find(KEY) is None


def test_a_fact_that_is_no_number_is_kept_as_null(store):
    with store.write(KEY) as writing:
        fill(writing, 1)
        assert commit(writing, facts={"loss": float("nan")}).manifest.facts == {"loss": None}


@pytest.mark.parametrize("key", ["", "abc", "../" + "a" * 61, "A" * 64, "a" * 65, "a" * 64 + "\n"])
def test_a_key_that_is_no_digest_is_a_defect(store, key):
    with pytest.raises(ValueError, match="64 hex digits"):
        store.find(key)
    with pytest.raises(ValueError, match="64 hex digits"), store.write(key):
        pass
    with pytest.raises(ValueError, match="64 hex digits"):
        store.put_record("note", key, {})


def test_finding_records_the_use_and_leaves_the_content_alone(store):
    folder = make(store, 1)[0].folder
    os.utime(folder, (1e9, 1e9))
    before = {name: (folder / name).stat().st_mtime_ns for name in ("manifest.json", "vit.json")}

    store.find(KEY)

    assert time.time() - store.entries()[0].used_at.timestamp() < 60
    assert before == {name: (folder / name).stat().st_mtime_ns for name in before}


def test_an_entry_of_25_mb_is_found_fast(store):
    with store.write(KEY) as writing:
        (writing.output / "model.safetensors").write_bytes(os.urandom(25_000_000))
        commit(writing)

    begin = time.process_time()
    assert store.find(KEY) is not None
    seconds = time.process_time() - begin

    assert seconds < 0.5  # 0.02 s with the CPU's own SHA instructions, 0.1 s without


def test_names_of_files_may_be_odd(store):
    odd = ["-rf", "a b", "ü", "new\nline", "…/deep/\\back"]
    with store.write(KEY) as writing:
        for name in odd:
            (writing.output / name).parent.mkdir(parents=True, exist_ok=True)
            (writing.output / name).write_text(name)
        commit(writing)

    assert set(store.find(KEY).manifest.files) == set(odd)


def test_a_finished_entry_can_be_written_anew_and_stays_until_then(store):
    old = make(store, 1)[0]

    def fail(writing: Writing) -> None:
        assert writing.finished is None
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), store.write(KEY, replace=True) as writing:
        fail(writing)
    assert store.find(KEY).manifest == old.manifest
    with store.write(KEY, replace=True) as writing:
        fill(writing, 1)
        assert store.has(KEY)
        new = commit(writing, facts={"number": 7})

    assert store.find(KEY).manifest == new.manifest
    assert names(store.root) == {f"entries/{KEY}/{name}" for name in ("manifest.json", "vit.json", "deep/model.bin")}


# --- the collector


def _age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    for item in (path, *path.rglob("*")):
        os.utime(item, (then, then))


def test_the_collector_removes_what_was_not_used_for_long(store):
    for number in (1, 2):
        _age(make(store, number)[0].folder, days=40)
        store.put_record("note", key_of(number), {})
    _age(store.root / "records", days=40)
    store.close()
    store.find(key_of(2))
    store.get_record("note", key_of(2))
    store.close()

    planned = store.gc(keep_days=30, dry_run=True)
    assert len(store.entries()) == 2
    collected = store.gc(keep_days=30)

    assert collected.removed == planned.removed
    assert collected.kept_bytes == planned.kept_bytes == store.size()
    assert [(removal.what, removal.place[-64:].removesuffix(".json")[-59:]) for removal in collected.removed] == [
        ("record", KEY[-59:]),
        ("entry", KEY[-59:]),
    ]
    assert [entry.manifest.key for entry in store.entries()] == [key_of(2)]


def test_the_collector_keeps_the_store_below_a_size_and_drops_the_oldest_first(store):
    for number in range(5):
        _age(make(store, number)[0].folder, days=5 - number)
    store.close()
    room = store.size() - 2 * 64_000 + 10_000

    collected = store.gc(keep_days=None, max_bytes=room)

    assert [removal.place for removal in collected.removed] == [f"entries/{key_of(number)}" for number in (0, 1)]
    assert collected.entries == 2
    assert collected.bytes > 2 * 64_000
    assert store.size() <= room
    assert store.verify() == []


def test_the_collector_leaves_what_is_being_read_or_written(store):
    make(store, 1)
    other = Store(store.root)
    make(other, 2)
    other.close()
    with other.write(key_of(3)) as writing:
        (writing.output / "half").write_text("x")

        collected = store.gc(keep_days=0, max_bytes=0)

        assert (writing.output / "half").exists()
    assert collected.in_use == (KEY,)
    assert [entry.manifest.key for entry in store.entries()] == [KEY]
    store.close()
    assert store.gc(keep_days=0).in_use == ()
    assert store.entries() == []


def test_a_second_find_never_lets_go_of_the_entry(store, monkeypatch):
    from pipeline.store import store as module

    make(store, 1)
    seen = []

    def lease_and_collect(folder: Path, lease=module.lease) -> int | None:
        seen.append(Store(store.root).gc(max_bytes=0).in_use)
        return lease(folder)

    monkeypatch.setattr(module, "lease", lease_and_collect)

    assert store.find(KEY) is not None
    assert seen == [(KEY,)]


def test_the_collector_removes_leftovers_of_dead_processes_but_keeps_fresh_scratch(store):
    make(store, 1)
    dead = store.root / "work" / key_of(2)
    (dead / "output-dead").mkdir(parents=True)
    (dead / "output-dead" / "model.bin").write_bytes(b"x" * 1000)
    (dead / "scratch").mkdir()
    (dead / "scratch" / "epoch").write_text("7")
    torn = store.root / "records" / "note" / ".0123.tmp"
    torn.parent.mkdir()
    torn.write_text("{")
    os.utime(torn, (1e9, 1e9))

    collected = store.gc()

    assert {(removal.what, removal.size_bytes) for removal in collected.removed} == {
        ("leftover", 1000),
        ("leftover", 1),
    }
    assert (dead / "scratch" / "epoch").exists()
    _age(dead, days=40)
    assert [removal.what for removal in store.gc().removed] == ["scratch"]
    assert not dead.exists()


def test_a_reader_that_comes_while_an_entry_is_collected_finds_all_or_nothing(store):
    for number in range(20):
        make(store, number)
    store.close()
    reader = Store(store.root)
    held = [number for number in range(20) if number % 3 == 0 and reader.find(key_of(number))]

    store.gc(max_bytes=0, keep_days=None)

    assert [number for number in range(20) if Store(store.root).find(key_of(number))] == held
    assert store.verify() == []


# --- where the store is


def test_the_store_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("VITRIM_STORE", str(tmp_path / "mine"))
    assert default_store_root() == tmp_path / "mine"
    monkeypatch.delenv("VITRIM_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_store_root() == tmp_path / "vitrim"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative is ignored")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_store_root() == tmp_path / "home" / ".cache" / "vitrim"


def test_a_root_that_is_a_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        store = Store(root)
        with pytest.raises(StoreError, match=r"is a file where the store .* needs a folder; point VITRIM_STORE"):
            store.find(KEY)
        with pytest.raises(StoreError, match="is a file"), store.write(KEY):
            pass
        with pytest.raises(StoreError, match="is a file"):
            store.put_record("note", KEY, {})
    assert (tmp_path / "file").read_text() == "x"


def test_a_store_is_tagged_so_that_backups_skip_it(store):
    make(store, 1)

    assert (store.root / "CACHEDIR.TAG").read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")


def test_what_is_on_disk_can_be_read_by_people(store):
    folder = make(store, 1)[0].folder

    manifest = json.loads((folder / "manifest.json").read_text())

    assert manifest["stage"] == "test"
    assert len(manifest["seal"]) == 64


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_inside_a_stage_is_explained_whatever_type_the_library_raises(store, number):
    class LibraryError(Exception):
        pass

    def run_out(writing: Writing) -> None:
        (writing.output / "half").write_bytes(b"x" * 3000)
        raise LibraryError(f"I/O error: {os.strerror(number)} (os error {number})")

    with pytest.raises(StoreError) as caught:
        write(store, run_out)

    assert "no space left to write entry" in str(caught.value)
    assert "2.9 KiB of this step" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_of_the_stage_stays_what_it_is(store):
    with pytest.raises(FileNotFoundError, match="picture"), store.write(KEY):
        raise FileNotFoundError(errno.ENOENT, "no such file", "picture.jpg")


def test_a_step_that_cannot_fit_is_refused_before_it_starts(store):
    with (
        pytest.raises(StoreError, match=r"needs about 1048576\.0 TiB, has .* free, .* missing"),
        store.write(KEY, needs_bytes=2**60),
    ):
        pytest.fail("must not start")
