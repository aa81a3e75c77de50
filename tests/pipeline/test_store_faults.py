"""The store when the filesystem, the user or the kernel stops it at any point: complete or absent, never half."""

import builtins
import errno
import fcntl
import io
import itertools
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import store_process
from store_process import content_of, fill, key_of, make

from pipeline.store import Store, Writing
from pipeline.store import store as store_module
from targets.errors import StoreError, VitrimError

# An interruption right after a call loses what the call returned: an open file is then closed by the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CALLS = [
    (os, "open mkdir rename replace fsync scandir stat lstat utime unlink rmdir listdir sendfile"),
    (fcntl, "flock"),
    (io, "open"),
    (builtins, "open"),
]
FAULTS = {
    "ENOSPC": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "EIO": lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
    "EACCES": lambda: PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
    "MemoryError": MemoryError,
    "KeyboardInterrupt": KeyboardInterrupt,
    "KeyboardInterrupt right after": KeyboardInterrupt,
}


class FaultyCalls:
    """Raises at the k-th filesystem call, before it is done or right after (an interruption may come then)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.fault: Callable[[], BaseException] = MemoryError
        self.late = False
        self.fired = False
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow, and no test can see what it does
        for module, names in CALLS:
            for name in names.split():
                monkeypatch.setattr(module, name, self._wrap(getattr(module, name)))

    def _wrap(self, call):
        def wrapped(*args, **kwargs):
            now = False
            if self.left is not None and not self.fired:
                self.left -= 1
                now = self.fired = self.left == 0
            if now and not self.late:
                raise self.fault()
            result = call(*args, **kwargs)
            if now:
                raise self.fault()
            return result

        return wrapped

    def spare(self, call):
        """Let a call through: the stage's own files are the stage's business."""

        def spared(*args, **kwargs):
            left, self.left = self.left, None
            result = call(*args, **kwargs)
            self.left = left
            return result

        return spared

    @contextmanager
    def at(self, position: int, fault: Callable[[], BaseException], *, late: bool) -> Iterator[None]:
        self.left, self.fault, self.late, self.fired = position, fault, late, False
        try:
            yield
        finally:
            self.left = None


def invariants_hold(root: Path, *, mine: tuple[int, ...] = (), temporary_files: bool = False) -> None:
    """Everything visible is whole, no lock is stuck, nothing finished is lost, the collector cleans the rest."""
    with Store(root) as store:
        problems = [problem for problem in store.verify() if not problem.place.startswith("broken/")]
        assert problems == []
        for number in mine:
            assert store.find(key_of(number)) is not None
        for entry in store.entries():
            number = entry.manifest.facts["number"]
            assert entry.manifest.key == key_of(number)
            assert (store.find(key_of(number)).folder / "deep/model.bin").read_bytes() == content_of(number)
        store.gc()
    assert list(root.glob("work/*/output-*")) == []
    left = [*root.glob(".*.tmp"), *root.glob("records/*/.*.tmp")]
    assert temporary_files or left == []


def _use(store: Store, number: int) -> None:
    """Everything a build does with a store, once."""
    artifact, _ = make(store, number)
    store.materialise(artifact, "vit.json", store.root.parent / "copy.json")
    store.put_record("note", key_of(number), {"number": number})
    assert store.get_record("note", key_of(number)) in (None, {"number": number})
    store.gc(keep_days=1)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_at_any_filesystem_call_loses_nothing(tmp_path, monkeypatch, name):
    faulty = FaultyCalls(monkeypatch)
    monkeypatch.setattr(store_process, "fill", faulty.spare(fill))
    position = 0
    while True:
        position += 1
        root = tmp_path / str(position) / "store"
        make(Store(root), 0)
        store = Store(root)
        try:
            with faulty.at(position, FAULTS[name], late=name.endswith("after")):
                _use(store, 1)
        except (VitrimError, MemoryError, KeyboardInterrupt):
            pass
        store.close()
        invariants_hold(root, mine=(0,), temporary_files=True)
        with Store(root) as again:
            _use(again, 1)
        invariants_hold(root, mine=(0, 1), temporary_files=True)
        assert sorted(path.name for path in (root / "work").iterdir()) == []
        shutil.rmtree(root.parent)
        if not faulty.fired:
            break
    assert position > 40


@pytest.mark.parametrize("first", [1, *(pytest.param(first, marks=pytest.mark.slow) for first in range(2, 7))])
def test_an_interruption_at_any_line_loses_nothing(tmp_path, first):
    """Ctrl-C arrives between any two lines of the store's own code."""
    root = tmp_path / "store"
    make(Store(root), 0)
    sources = {str(path) for path in Path(store_module.__file__).parent.glob("*.py")}
    for line in itertools.count(first, 6):
        left = line

        def trace(frame, event, _argument):
            nonlocal left
            if frame.f_code.co_filename not in sources:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            return trace

        store = Store(root)
        interrupted = False
        sys.settrace(trace)
        try:
            make(store, line)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(None)
            store.close()
        if not interrupted:
            break
        assert make(store, line)[0].manifest.facts == {"number": line}
        store.close()
    invariants_hold(root, mine=(0,))
    assert line > 100


# --- processes


def _start(root: Path, first: int, count: int, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, store_process.__file__, str(root), str(first), str(count), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_that_race_for_the_same_keys_make_each_once(tmp_path):
    processes = [_start(tmp_path / "store", 0, 12, "--slow") for _ in range(4)]
    lines = [line for process in processes for line in process.communicate(timeout=120)[0].splitlines()]

    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(line for line in lines if line.startswith("made")) == sorted(f"made {number}" for number in range(12))
    assert len(lines) == 4 * 12
    invariants_hold(tmp_path / "store", mine=tuple(range(12)))


def test_processes_with_different_keys_do_not_wait_for_each_other(tmp_path):
    store = Store(tmp_path / "store")
    with store.write(key_of(100)):
        processes = [_start(tmp_path / "store", first, 6) for first in (0, 6)]
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    invariants_hold(tmp_path / "store", mine=tuple(range(12)))


def test_who_waits_is_told_who_holds_the_lock_and_then_finds_the_work_done(tmp_path):
    root = tmp_path / "store"
    code = (
        f"import sys, time; sys.path.insert(0, {str(Path(store_process.__file__).parent)!r})\n"
        "from store_process import *\n"
        f"with Store(Path({str(root)!r})).write(key_of(1)) as writing:\n"
        "    print('mine', flush=True); sys.stdin.readline(); fill(writing, 1)\n"
        "    writing.commit(stage='test', holds=Format.VIT, facts={'number': 1}, seconds=0)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "mine\n"
    told = []

    def waiting(who) -> None:
        told.append(who)
        holder.stdin.write("go on\n")
        holder.stdin.flush()

    with Store(root).write(key_of(1), waiting=waiting) as writing:
        assert writing.finished is not None
        assert writing.finished.manifest.facts == {"number": 1}
    holder.communicate()
    assert [who.pid for who in told] == [holder.pid]
    assert str(told[0]).startswith(f"process {holder.pid} on {os.uname().nodename}, since 20")


def _kill_at_random(root: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    started = time.monotonic()
    process = _start(root, 0, 40)
    process.communicate(timeout=120)
    whole = time.monotonic() - started
    for round_number in range(kills):
        first = 1000 * (round_number + 1)
        process = _start(root, first, 40)
        begun = ""
        if round_number % 2:  # from the first entry on, not while Python starts
            begun = process.stdout.readline()
            time.sleep(chance.uniform(0, 0.1))
        else:
            time.sleep(chance.uniform(0.3 * whole, whole))
        process.kill()
        *lines, _torn = (begun + process.communicate()[0]).split("\n")
        done = [int(line.split()[1]) for line in lines]
        resumed = _start(root, first, len(done) + 1)
        assert resumed.wait(timeout=60) == 0
        answers = resumed.communicate()[0].splitlines()
        assert answers[: len(done)] == [f"found {number}" for number in done]
    invariants_hold(root, temporary_files=True)


def test_a_process_killed_at_any_moment_leaves_a_store_that_goes_on(tmp_path):
    _kill_at_random(tmp_path / "store", kills=5, seed=1)


@pytest.mark.slow
def test_a_process_killed_at_a_hundred_moments_leaves_a_store_that_goes_on(tmp_path):
    _kill_at_random(tmp_path / "store", kills=100, seed=2)


def test_a_killed_writer_frees_its_lock_and_its_leftovers_go_with_the_next_writer(tmp_path):
    root = tmp_path / "store"
    code = (
        f"import sys; sys.path.insert(0, {str(Path(store_process.__file__).parent)!r})\n"
        "from store_process import *\n"
        f"with Store(Path({str(root)!r})).write(key_of(1)) as writing:\n"
        "    fill(writing, 1); print('mine', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    assert Store(root).gc().removed == ()  # it lives: nothing of it is a leftover
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(list(root.glob("work/*/output-*"))) == 1

    told = []
    with Store(root).write(key_of(1), waiting=told.append) as writing:
        assert (writing.scratch / "half").exists()
        assert len(list(root.glob("work/*/output-*"))) == 1
        assert list(writing.output.iterdir()) == []

    assert told == []
    invariants_hold(root)


# --- disks


def _write(store: Store, work: Callable[[Writing], object]) -> None:
    with store.write(key_of(1)) as writing:
        work(writing)


def _note(store: Store, number: int) -> None:
    store.put_record("note", key_of(number), {"x": "y" * 9000})


@contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    mounted = os.getuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small disk needs root and the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_really_full_disk_is_explained_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "RESERVE_BYTES", 0)
    with _mounted(tmp_path / "small", "size=2m") as disk:
        store = Store(disk / "store")
        make(store, 0)

        def fill_the_disk(writing: Writing) -> None:
            for part in range(10):
                (writing.output / f"part{part}").write_bytes(b"x" * 300_000)

        with pytest.raises(StoreError) as caught:
            _write(store, fill_the_disk)
        assert re.search(r"no space left to write entry .* free after 1\.\d MiB of this step", str(caught.value))
        assert "vitrim store gc" in str(caught.value)

        refusals = []
        for number in range(1, 60):  # small entries, until manifests, records and folders do not fit either
            for action in (make, _note):
                try:
                    action(store, number)
                except StoreError as error:
                    refusals.append(str(error))
        assert len(refusals) > 20
        assert all("no space left" in refusal and "\n" not in refusal for refusal in refusals)
        invariants_hold(disk / "store", mine=tuple(entry.manifest.facts["number"] for entry in store.entries()))
        store.close()
        store.gc(keep_days=None, max_bytes=500_000)
        make(store, 1)
        invariants_hold(disk / "store", mine=(1,))


def test_a_file_size_limit_is_explained(tmp_path):
    store = Store(tmp_path / "store")
    make(store, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        with pytest.raises(StoreError, match="no space left"):
            make(store, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)

    assert store.find(key_of(1)) is None
    invariants_hold(store.root, mine=(0,))


def test_a_read_only_store_still_serves_and_says_why_it_cannot_be_written(tmp_path):
    with _mounted(tmp_path / "disk", "size=64m") as disk:
        store = Store(disk / "store")
        make(store, 0)
        store.put_record("note", key_of(0), {"a": 1})
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

        assert store.find(key_of(0)) is not None
        assert store.get_record("note", key_of(0)) == {"a": 1}
        assert store.verify() == []
        for attempt in (lambda: make(store, 1), lambda: _note(store, 1), lambda: store.gc(max_bytes=0)):
            with pytest.raises(StoreError, match="read-only filesystem; point VITRIM_STORE to a folder that can be"):
                attempt()


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that belongs to root, seen by a user without rights."""
    if os.getuid() != 0:
        pytest.skip("becoming another user needs root")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        make(Store(Path(folder, "store")), 0)
        os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)


def test_a_store_of_another_user_serves_and_says_why_it_cannot_be_written(as_nobody):
    store = Store(as_nobody / "store")

    assert store.find(key_of(0)) is not None
    for attempt in (lambda: make(store, 1), lambda: _note(store, 1)):
        with pytest.raises(StoreError, match=r"no permission for '.*' \(user id 0\); point VITRIM_STORE"):
            attempt()


def test_a_root_that_cannot_be_made_is_explained(as_nobody):
    with pytest.raises(StoreError, match="no permission for"):
        make(Store(as_nobody / "other"), 1)


def test_a_full_disk_while_another_library_writes_is_told_from_its_text(tmp_path):
    from safetensors import SafetensorError

    def raising(text: str) -> Callable[[Writing], None]:
        def work(writing: Writing) -> None:
            raise SafetensorError(text)

        return work

    store = Store(tmp_path / "store")
    with pytest.raises(StoreError, match="no space left"):
        _write(store, raising("Error while serializing: I/O error: No space left on device (os error 28)"))
    with pytest.raises(SafetensorError):
        _write(store, raising("Error while deserializing header: HeaderTooLarge"))
