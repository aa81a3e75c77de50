"""Store: find finished artifacts by key, write new ones, keep small records."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.events import Event, Watcher, ignore
from pipeline.store.collect import collect, list_entries, list_problems, remove_outputs
from pipeline.store.contents import (
    Collected,
    EntryInfo,
    Problem,
    describe_files,
    read_entry,
    tree_bytes,
)
from pipeline.store.locks import BusyError, Waiting, lease, locked, write_holder
from pipeline.store.sealed import SEAL, DamagedError, read_sealed, sealed
from pipeline.store.trouble import explain, explained, free_bytes, no_space, ran_out_of_space
from stages.artifact import MANIFEST, Artifact, FileFacts, Format, Manifest
from targets.atomic import copy_atomic, sha256_of, sync_folder, sync_tree, write_atomic
from targets.errors import StageError, StoreError

KEY = re.compile(r"[0-9a-f]{64}")
KIND = re.compile(r"[a-z][a-z0-9_-]{0,63}")
HOLDER_FILE = "holder.json"
LOST = {errno.ENOENT, errno.ENOTDIR, errno.EIO}
"""what a damaged entry answers; anything else (no permission, no memory) is no fault of the entry"""
RESERVE_BYTES = 32 * 2**20
"""space that must be free before a step starts, whatever it expects to write"""
CACHE_TAG = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n# A cache of vitrim; backups may skip it (bford.info/cachedir).\n"
)


def default_store_root() -> Path:
    """Return $VITRIM_STORE, else `vitrim` in the user's cache folder (XDG)."""
    if given := os.environ.get("VITRIM_STORE"):
        return Path(given).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "vitrim"
    except RuntimeError as error:
        raise StoreError(
            "this user has no home folder for a cache; point VITRIM_STORE to a folder for the store"
        ) from error


class Writing:
    """One entry while it is being written, by the only process that may."""

    def __init__(self, store: "Store", key: str, *, finished: Artifact | None, replace: bool) -> None:
        self.finished = finished
        """set when another process finished the entry before this one got the lock: nothing is left to do"""
        self.scratch = store.root / "work" / key / "scratch"
        """for resuming: survives an interruption, removed on success"""
        self.output = store.root / "work" / key / f"output-{secrets.token_hex(8)}"
        """empty folder for the artifact's files"""
        self._store, self._key, self._replace = store, key, replace

    def commit(
        self,
        *,
        stage: str,
        holds: Format,
        facts: Mapping[str, Any],
        seconds: float,
        inputs: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
        bound_to: Mapping[str, str] | None = None,
    ) -> Artifact:
        """Make the output an entry: hash it, write its manifest last, make it durable, put it in place by one rename.

        StageError where the stage left nothing, links, or facts that are no JSON; StoreError where the disk refuses.
        """
        root = self._store.root
        entry = root / "entries" / self._key
        with explained(root, f"finish {stage}"):
            manifest = Manifest(
                key=self._key,
                stage=stage,
                holds=holds,
                files=_files_of(stage, self.output),
                facts=dict(facts),
                inputs=dict(inputs or {}),
                options=dict(options or {}),
                bound_to=dict(bound_to or {}),
                seconds=seconds,
                finished_at=datetime.now(UTC),
            )
            try:
                raw = sealed(manifest.model_dump(mode="json", exclude={SEAL}))
            except (ValueError, TypeError) as error:
                raise StageError(f"{stage} found facts that are not plain JSON: {error}") from error
            (self.output / MANIFEST).write_bytes(raw)
            sync_tree(self.output)
            if self._replace and entry.exists():
                entry.rename(self.output.with_name(f"{self.output.name}-replaced"))
            try:
                self.output.rename(entry)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                # Only where the lock did not hold (a filesystem without locks): what is there is as good as ours.
            sync_folder(entry.parent)
            artifact = self._store._find(self._key, locked_here=True)
        if artifact is None:
            raise StoreError(
                f"the entry of {stage} did not verify right after it was written: suspect the disk of {str(root)!r}"
            )
        self.finished = artifact.replace(cached=False)
        return self.finished


class Store:
    """A folder of finished artifacts by key (64 hex digits).

    Several processes may use one store at once. Entries that were found are kept from the collector until `close`.
    Raises StoreError where the filesystem refuses; what is finished is never lost by it.
    """

    def __init__(self, root: Path, *, watch: Watcher = ignore) -> None:
        self.root = Path(root).expanduser().absolute()
        self._watch = watch
        self._leases: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the collector have the entries that were found. The end of the process does the same."""
        while self._leases:
            os.close(self._leases.popitem()[1])

    def find(self, key: str) -> Artifact | None:
        """Return the finished artifact with this key, every byte verified; None where there is none.

        A damaged entry is set aside with a warning and counts as missing.
        """
        with explained(self.root, f"read entry {_checked(key)[:12]}"):
            return self._find(key, locked_here=False)

    def has(self, key: str) -> bool:
        """Whether an entry with this key is there; nothing is verified, so that a plan is shown at once."""
        return (self.root / "entries" / _checked(key) / MANIFEST).is_file()

    @contextmanager
    def write(
        self, key: str, *, needs_bytes: int = 0, waiting: Waiting | None = None, replace: bool = False
    ) -> Iterator[Writing]:
        """Hold the key's lock and offer folders for its files; nothing is visible before `commit`.

        needs_bytes: what the step is expected to write, refused early when there is no room.
        waiting: called once with the holder when another process has the lock.
        replace: write anew even what is finished; without scratch, and the old entry stays until the new one is.
        """
        doing = f"write entry {_checked(key)[:12]}"
        work = self.root / "work" / key
        with ExitStack() as held:
            with explained(self.root, doing):
                self._make_root()
                lock = locked(self._lock(key), holder_file=work / HOLDER_FILE, waiting=waiting)
                held.enter_context(lock)
                finished = None if replace else self._find(key, locked_here=True)
                writing = Writing(self, key, finished=finished, replace=replace)
            try:
                if writing.finished is None:
                    with explained(self.root, doing):
                        if replace and work.exists():
                            shutil.rmtree(work)
                        self._prepare(writing, doing, needs_bytes)
                yield writing
            except Exception as error:
                if isinstance(error, StoreError) or not ran_out_of_space(error):
                    raise
                refusal = error if isinstance(error, OSError) else OSError(errno.ENOSPC, str(error))
                written = tree_bytes(writing.output)
                raise explain(refusal, root=self.root, doing=doing, written_bytes=written) from error
            finally:
                with suppress(OSError):  # what stays is the collector's
                    shutil.rmtree(work if writing.finished else writing.output)
                    (work / HOLDER_FILE).unlink()

    def materialise(self, artifact: Artifact, name: str, destination: Path) -> Path:
        """Copy one file of an artifact to a path, verified; returns the path. Never a link."""
        facts = artifact.manifest.files.get(name)
        if facts is None:
            raise KeyError(
                f"{artifact.manifest.stage} has no file {name!r}; it has {', '.join(artifact.manifest.files)}"
            )
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            copy_atomic(artifact.folder / name, destination)
            intact = sha256_of(destination) == facts.sha256
        except OSError as error:
            raise StoreError(f"cannot write {str(destination)!r}: {error.strerror or error}") from error
        if not intact:
            destination.unlink(missing_ok=True)
            raise StoreError(
                f"{name!r} of {artifact.manifest.stage} changed after it was verified; run the command again"
            )
        return destination

    def put_record(self, kind: str, key: str, data: Mapping[str, Any]) -> None:
        """Keep a small result (plain JSON) under a kind and a key; replaces what was there."""
        path = self._record(kind, key)
        with explained(self.root, f"write {kind} {key[:12]}"):
            self._make_root()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, sealed({"kind": kind, "key": key, "data": dict(data)}))

    def get_record(self, kind: str, key: str) -> dict[str, Any] | None:
        """Return a small result; None where there is none, or a damaged one."""
        path = self._record(kind, key)
        try:
            record = read_sealed(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except DamagedError as damage:
            self._warn(f"ignored a damaged record: {kind}/{key[:12]}: {damage}")
            return None
        except OSError as error:
            raise explain(error, root=self.root, doing=f"read {kind} {key[:12]}") from error
        if (record.get("kind"), record.get("key")) != (kind, key):
            return None
        with suppress(OSError):
            os.utime(path)
        return dict(record["data"])

    def entries(self) -> list[EntryInfo]:
        """List the entries, the one used longest ago first; unverified, and without those that cannot be read."""
        with explained(self.root, "list the store"):
            return list_entries(self.root)

    def size(self) -> int:
        """Bytes of everything in the store."""
        return tree_bytes(self.root)

    def verify(self) -> list[Problem]:
        """Check every byte of every entry and record; changes nothing."""
        with explained(self.root, "verify the store"):
            return list_problems(self.root)

    def gc(self, *, keep_days: float | None = 30, max_bytes: int | None = None, dry_run: bool = False) -> Collected:
        """Remove what nobody needs: leftovers of dead processes, damaged entries, old scratch, and entries and records.

        keep_days: remove entries and records not used for so long (None: none by age). max_bytes: then remove entries,
        the one used longest ago first, until the store is no larger. What another process uses or writes stays.
        """
        with explained(self.root, "clean the store"):
            return collect(self.root, keep_days=keep_days, max_bytes=max_bytes, dry_run=dry_run)

    def _find(self, key: str, *, locked_here: bool) -> Artifact | None:
        folder = self.root / "entries" / key
        try:
            if not self._lease(key, folder):
                return None
            manifest = read_entry(folder, key)
        except DamagedError as damage:
            self._set_aside(key, str(damage), locked_here=locked_here)
            return None
        except OSError as error:
            if error.errno not in LOST or not folder.parent.is_dir():
                raise
            self._set_aside(key, error.strerror or str(error), locked_here=locked_here)
            return None
        with suppress(OSError):  # a store on read-only media still serves
            os.utime(folder)
        return Artifact(folder=folder, manifest=manifest, cached=True)

    def _lease(self, key: str, folder: Path) -> bool:
        """Keep the collector away from an entry; the lease of an earlier find ends only when the new one holds."""
        descriptor = lease(folder)
        self._end_lease(key)
        if descriptor is not None:
            self._leases[key] = descriptor
        return descriptor is not None

    def _end_lease(self, key: str) -> None:
        if key in self._leases:
            os.close(self._leases.pop(key))

    def _set_aside(self, key: str, reason: str, *, locked_here: bool) -> None:
        """Move a damaged entry to `broken`, unless someone else is about to repair it."""
        self._end_lease(key)
        if not locked_here:
            try:
                with locked(self._lock(key), timeout_s=0):
                    self._find(key, locked_here=True)  # look again: it may have been repaired
            except (BusyError, OSError):
                pass  # its writer will look; or nothing can be moved in a store that cannot be written
            return
        self._warn(
            f"entry {key[:12]} is damaged ({reason}): set aside in {self.root / 'broken'}, it will be made again"
        )
        broken = self.root / "broken" / f"{key}-{secrets.token_hex(4)}"
        broken.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # collected meanwhile
            (self.root / "entries" / key).rename(broken)

    def _prepare(self, writing: Writing, doing: str, needs_bytes: int) -> None:
        """Make room and folders; what dead processes left of this key goes, but for the scratch folder."""
        work = writing.output.parent
        remove_outputs(work)
        needed = max(needs_bytes, RESERVE_BYTES)
        if free_bytes(self.root) < needed:
            raise no_space(self.root, doing=doing, needs_bytes=needed)
        writing.scratch.mkdir(parents=True, exist_ok=True)
        writing.output.mkdir()
        write_holder(work / HOLDER_FILE)

    def _make_root(self) -> None:
        for name in ("entries", "work", "locks", "records"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        tag = self.root / "CACHEDIR.TAG"
        if not tag.exists():
            write_atomic(tag, CACHE_TAG)

    def _lock(self, key: str) -> Path:
        return self.root / "locks" / f"{key}.lock"

    def _record(self, kind: str, key: str) -> Path:
        if not KIND.fullmatch(kind):
            raise ValueError(f"kind of record must be a lower-case word, got {kind!r}")
        return self.root / "records" / kind / f"{_checked(key)}.json"

    def _warn(self, message: str) -> None:
        self._watch(Event(kind="warning", message=message))


def _checked(key: str) -> str:
    if not KEY.fullmatch(key):
        raise ValueError(f"a key is 64 hex digits, got {key!r}")
    return key


def _files_of(stage: str, output: Path) -> dict[str, FileFacts]:
    try:
        files = describe_files(output)
    except ValueError as error:
        raise StageError(f"{stage} left {error}") from error
    if not files:
        raise StageError(f"{stage} left no files in its output folder")
    return files
