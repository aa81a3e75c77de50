"""What is in the store, what is wrong with it, and the collector that removes what nobody needs."""

import os
import secrets
import shutil
import time
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

from pipeline.store.contents import Collected, EntryInfo, Problem, Removal, read_entry, read_manifest, tree_bytes
from pipeline.store.locks import BusyError, locked, unleased
from pipeline.store.sealed import DamagedError, read_sealed
from targets.atomic import TEMPORARY

DAY_SECONDS = 86_400
WRITING_SECONDS = 3_600
"""a temporary file of a record this old belongs to no living process"""


def list_entries(root: Path) -> list[EntryInfo]:
    """List the entries with a readable manifest, the one used longest ago first."""
    found = []
    for folder in _inside(root / "entries"):
        try:
            manifest = read_manifest(folder, folder.name)
            used_at = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
        except (DamagedError, FileNotFoundError, NotADirectoryError):
            continue
        found.append(EntryInfo(manifest=manifest, size_bytes=tree_bytes(folder), used_at=used_at))
    return sorted(found, key=lambda entry: (entry.used_at, entry.manifest.key))


def list_problems(root: Path) -> list[Problem]:
    """Read every byte of every entry and record, and list what is not as it was written."""
    problems = []
    for folder in _inside(root / "entries"):
        try:
            read_entry(folder, folder.name)
        except (DamagedError, OSError) as damage:
            if folder.exists():  # else it was collected meanwhile
                problems.append(Problem(place=f"entries/{folder.name}", reason=str(damage)))
    for record in _records(root):
        try:
            read_sealed(record)
        except FileNotFoundError:
            continue
        except (DamagedError, OSError) as damage:
            problems.append(Problem(place=str(record.relative_to(root)), reason=str(damage)))
    problems += [Problem(place=f"broken/{folder.name}", reason="was set aside") for folder in _inside(root / "broken")]
    return problems


def collect(root: Path, *, keep_days: float | None, max_bytes: int | None, dry_run: bool) -> Collected:
    """Remove leftovers, damaged entries, old scratch folders, and entries and records by age and total size."""
    collector = _Collector(root, dry_run)
    oldest = time.time() - keep_days * DAY_SECONDS if keep_days is not None else float("-inf")
    for folder in _inside(root / "broken"):
        collector.remove("broken", folder)
    for work in _inside(root / "work"):
        collector.tidy(work, oldest)
    for temporary in sorted([*root.glob(f".*{TEMPORARY}"), *root.glob(f"records/*/.*{TEMPORARY}")]):
        if _used(temporary) < time.time() - WRITING_SECONDS:
            collector.remove("leftover", temporary)
    for record in _records(root):
        if _used(record) < oldest:
            collector.remove("record", record)
    for file in sorted(root.glob("pixels/*")):
        if _used(file) < min(oldest, time.time() - DAY_SECONDS):  # a build that runs now may be about to open it
            collector.remove("cache", file)
    total = tree_bytes(root) - (sum(removal.size_bytes for removal in collector.removed) if dry_run else 0)
    for folder in sorted(_inside(root / "entries"), key=lambda entry: (_used(entry), entry.name)):
        if _used(folder) < oldest or (max_bytes is not None and total > max_bytes):
            total -= collector.remove_entry(folder)
    return Collected(
        removed=tuple(collector.removed), kept_bytes=total, in_use=tuple(collector.in_use), dry_run=dry_run
    )


def remove_outputs(work: Path) -> None:
    """Remove what dead processes were writing under a key; the caller holds its lock."""
    for output in work.glob("output-*"):
        shutil.rmtree(output, ignore_errors=True)


class _Collector:
    def __init__(self, root: Path, dry_run: bool) -> None:
        self.root, self.dry_run = root, dry_run
        self.removed: list[Removal] = []
        self.in_use: list[str] = []

    def remove(self, what: str, path: Path, *, place: Path | None = None) -> int:
        """Remove a file or folder and note it; returns its size."""
        size = tree_bytes(path) if path.is_dir() else _size(path)
        if not self.dry_run:
            with suppress(FileNotFoundError):  # another collector was faster
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.removed.append(
            Removal.model_validate(
                {"what": what, "place": str((place or path).relative_to(self.root)), "size_bytes": size}
            )
        )
        return size

    def tidy(self, work: Path, oldest: float) -> None:
        """Remove what a dead process was writing, and scratch that is finished with or old."""
        with ExitStack() as held:
            try:
                held.enter_context(self._lock(work.name))
            except BusyError:
                return
            if (self.root / "entries" / work.name).exists() or _used(work) < oldest:
                self.remove("scratch", work)
                return
            for output in sorted(work.glob("output-*")):
                self.remove("leftover", output)

    def remove_entry(self, folder: Path) -> int:
        """Remove an entry unless somebody writes or reads it; returns the bytes freed."""
        with ExitStack() as held:
            try:
                held.enter_context(self._lock(folder.name))
                held.enter_context(unleased(folder))
            except BusyError:
                self.in_use.append(folder.name)
                return 0
            except (FileNotFoundError, NotADirectoryError):
                return 0
            if self.dry_run:
                return self.remove("entry", folder)
            doomed = self.root / "work" / folder.name / f"output-{secrets.token_hex(8)}"
            doomed.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(doomed)  # in one step, so that nobody finds half of it
            size = self.remove("entry", doomed, place=folder)
            if not any(doomed.parent.iterdir()):
                doomed.parent.rmdir()
            return size

    def _lock(self, key: str) -> AbstractContextManager[None]:
        return locked(self.root / "locks" / f"{key}.lock", timeout_s=0)


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _records(root: Path) -> list[Path]:
    return [path for kind in _inside(root / "records") for path in _inside(kind) if path.suffix != TEMPORARY]


def _used(path: Path) -> float:
    """Time of last use; for a work folder, of the last change below it."""
    newest = 0.0
    for item in (path, *path.rglob("*")) if path.parent.name == "work" else (path,):
        try:
            newest = max(newest, os.lstat(item).st_mtime)
        except FileNotFoundError:
            continue
    return newest


def _size(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return 0
