"""Hashing: every byte counts, and the cache remembers what did not change, nothing else."""

import hashlib
import logging
import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from stages.data import index
from stages.data.index import find_undecodable, hash_contents, in_threads
from stages.data.listing import list_images
from stages.data.place import File, Member


def silent(message: str, share: float | None) -> None:
    pass


def hashes(root: Path, cache: Path | None) -> dict[str, str]:
    [(_, listed)] = list_images([root])
    found, problems = hash_contents(root, listed, cache=cache, tell=silent)
    assert problems == {}
    return found


def settle(*paths: Path) -> None:
    """Make files look as old as files usually are; ctime cannot be set, so the cache's patience is shortened."""
    for path in paths:
        os.utime(path, ns=(10**18, 10**18))


@pytest.fixture
def reads(monkeypatch):
    """Names of the images that were read."""
    names = []
    for kind in (File, Member):
        read = kind.read

        def counted(self, read=read):
            names.append(os.path.basename(self.path if isinstance(self, File) else self.name))
            return read(self)

        monkeypatch.setattr(kind, "read", counted)
    return names


@pytest.fixture
def patient(monkeypatch):
    monkeypatch.setattr(index, "SETTLED_NS", -(10**12))


def test_the_hash_is_of_the_bytes(folder, zipped):
    root = folder({"a.png": b"one", "d/b.png": b"two"})
    packed = zipped([("a.png", b"one"), ("d/b.png", b"two")])
    expected = {"a.png": hashlib.sha256(b"one").hexdigest(), "d/b.png": hashlib.sha256(b"two").hexdigest()}

    assert hashes(root, None) == expected
    assert hashes(packed, None) == expected


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_did_not_change_is_not_read_again(kind, folder, zipped, tmp_path, reads):
    files = {"a.png": 0, "b.png": 1}
    root = folder(files) if kind == "folder" else zipped(files.items())
    cache = tmp_path / "cache" / "index.sqlite"

    first = hashes(root, cache)
    assert sorted(reads) == ["a.png", "b.png"]
    reads.clear()

    assert hashes(root, cache) == first
    assert reads == []


@pytest.mark.usefixtures("patient")
def test_a_changed_file_is_read_again_even_with_its_old_size_and_time(folder, tmp_path, reads):
    root, cache = folder({"a.png": b"old", "b.png": b"same"}), tmp_path / "index.sqlite"
    settle(root / "a.png")
    hashes(root, cache)
    reads.clear()

    (root / "a.png").write_bytes(b"new")
    settle(root / "a.png")

    assert hashes(root, cache)["a.png"] == hashlib.sha256(b"new").hexdigest()
    assert reads == ["a.png"]


@pytest.mark.usefixtures("patient")
def test_a_replaced_zip_is_read_again(zipped, tmp_path):
    cache = tmp_path / "index.sqlite"
    hashes(zipped([("a.png", b"old")]), cache)

    changed = hashes(zipped([("a.png", b"new")]), cache)

    assert changed["a.png"] == hashlib.sha256(b"new").hexdigest()


def test_a_file_that_changed_just_now_is_not_remembered(folder, tmp_path, reads):
    root, cache = folder({"a.png": 0}), tmp_path / "index.sqlite"

    hashes(root, cache)
    hashes(root, cache)

    assert reads == ["a.png", "a.png"]


@pytest.mark.usefixtures("patient")
def test_two_folders_with_the_same_names_are_told_apart(folder, tmp_path):
    cache = tmp_path / "index.sqlite"

    assert hashes(folder({"a.png": b"1"}, "x"), cache) != hashes(folder({"a.png": b"2"}, "y"), cache)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_broken_cache_is_replaced(folder, tmp_path, content, reads):
    root, cache = folder({"a.png": 0}), tmp_path / "index.sqlite"
    cache.write_bytes(content)

    first = hashes(root, cache)
    reads.clear()

    assert hashes(root, cache) == first
    assert reads == []


def test_a_cache_that_cannot_be_written_is_no_error(folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(index, "SETTLED_NS", -(10**12))
    (tmp_path / "file").write_bytes(b"")

    with caplog.at_level(logging.WARNING, logger="vitrim.data"):
        assert hashes(folder({"a.png": 0}), tmp_path / "file" / "index.sqlite")

    assert "cannot be written" in caplog.text


@pytest.mark.usefixtures("patient")
def test_many_processes_share_a_cache(folder, tmp_path):
    root, cache = folder({f"{i}.png": i for i in range(20)}), tmp_path / "index.sqlite"
    expected = hashes(root, None)
    results = []
    threads = [threading.Thread(target=lambda: results.append(hashes(root, cache))) for _ in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == [expected] * 8
    with sqlite3.connect(cache) as database:
        assert database.execute("select count(*) from content").fetchone() == (20,)
    database.close()


def test_a_file_that_cannot_be_read_is_a_problem(folder):
    root = folder({"a.png": 0})
    (root / "gone.png").symlink_to("nowhere")
    [(_, listed)] = list_images([root])

    found, problems = hash_contents(root, listed, cache=None, tell=silent)

    assert set(found) == {"a.png"}
    assert problems == {"gone.png": "No such file or directory"}


def test_undecodable_images_are_found_once(folder, tmp_path, reads):
    root = folder({"a.png": 0, "b.png": b"no image", "c.png": b""})
    places = {name: File(str(root / name)) for name in ("a.png", "b.png", "c.png")}
    cache = tmp_path / "index.sqlite"

    problems = find_undecodable(places, cache=cache, tell=silent)
    assert set(problems) == {"b.png", "c.png"}
    assert problems["c.png"] == "the file is empty"
    reads.clear()

    assert find_undecodable(places, cache=cache, tell=silent) == problems
    assert reads == []


def test_threads_keep_the_order_and_do_not_run_ahead():
    taken = []

    def values():
        for i in range(1000):
            taken.append(i)
            yield i

    def slowly(i: int) -> int:
        time.sleep(0.001 * (i % 3))
        return i * i

    results = in_threads(slowly, values())

    assert [next(results) for _ in range(10)] == [i * i for i in range(10)]
    assert len(taken) < 100
    assert list(results) == [i * i for i in range(10, 1000)]


def test_an_error_in_a_thread_reaches_the_caller():
    def fail(i: int) -> int:
        raise ValueError(i)

    with pytest.raises(ValueError, match="0"):
        list(in_threads(fail, range(100)))
