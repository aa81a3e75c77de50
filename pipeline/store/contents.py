"""What lies in a store, and how an entry's folder is described and checked. Reads only."""

import os
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pipeline.store.sealed import DamagedError, read_sealed
from stages.artifact import MANIFEST, FileFacts, Manifest
from targets.atomic import sha256_of
from targets.record import Record

ARTIFACT_FORMAT = Manifest.model_fields["format"].default


class EntryInfo(Record):
    """One entry, as listed (its files are not verified)."""

    manifest: Manifest
    size_bytes: int
    used_at: datetime


class Problem(Record):
    """Something in the store that is not as it was written."""

    place: str
    """path below the store's root"""
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class Removal(Record):
    """Something that the collector removed, or would remove."""

    what: Literal["entry", "leftover", "scratch", "broken", "record", "cache"]
    place: str
    size_bytes: int


class Collected(Record):
    """What the collector did."""

    removed: tuple[Removal, ...]
    kept_bytes: int
    in_use: tuple[str, ...]
    """keys of entries that were due, but in use"""
    dry_run: bool

    @property
    def bytes(self) -> int:
        """Bytes of all that was removed."""
        return sum(removal.size_bytes for removal in self.removed)

    @property
    def entries(self) -> int:
        """How many finished artifacts were removed."""
        return sum(removal.what == "entry" for removal in self.removed)


def describe_files(folder: Path) -> dict[str, FileFacts]:
    """Size and SHA-256 of every file below a folder but its manifest; ValueError for a link or a special file."""
    return {
        name: FileFacts(sha256=sha256_of(folder / name), size_bytes=facts.st_size)
        for name, facts in sorted(_plain_files(folder))
        if name != MANIFEST
    }


def read_entry(folder: Path, key: str) -> Manifest:
    """Read and verify an entry: each listed file has its size and SHA-256, there is no other; else DamagedError."""
    manifest = read_manifest(folder, key)
    try:
        sizes = {name: facts.st_size for name, facts in _plain_files(folder) if name != MANIFEST}
    except ValueError as error:
        raise DamagedError(str(error)) from error
    if missing := sorted(manifest.files.keys() - sizes.keys()):
        raise DamagedError(f"{missing[0]!r} is missing")
    if unlisted := sorted(sizes.keys() - manifest.files.keys()):
        raise DamagedError(f"{unlisted[0]!r} is not listed in {MANIFEST}")
    for name, facts in manifest.files.items():
        if sizes[name] != facts.size_bytes:
            raise DamagedError(f"{name!r} has {sizes[name]} bytes, {MANIFEST} says {facts.size_bytes}")
        if sha256_of(folder / name) != facts.sha256:
            raise DamagedError(f"{name!r} has changed: its sha256 is not the one in {MANIFEST}")
    return manifest


def read_manifest(folder: Path, key: str) -> Manifest:
    """Read an entry's manifest without looking at its files; DamagedError where it is not this key's."""
    try:
        manifest = Manifest.model_validate(read_sealed(folder / MANIFEST))
    except FileNotFoundError as error:
        raise DamagedError(f"{MANIFEST} is missing") from error
    except ValidationError as error:
        raise DamagedError(f"{MANIFEST} is not a manifest") from error
    if manifest.format != ARTIFACT_FORMAT:
        raise DamagedError(f"{MANIFEST} has format {manifest.format!r}, not {ARTIFACT_FORMAT!r}")
    if manifest.key != key:
        raise DamagedError(f"{MANIFEST} is that of {manifest.key[:12]}")
    return manifest


def tree_bytes(folder: Path) -> int:
    """Bytes of all files below; 0 for what is not there or vanishes meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(Path(parent, name)).st_size
            except FileNotFoundError:  # removed by another process since it was listed
                continue
    return total


def _plain_files(folder: Path, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as items:
        for item in items:
            name, facts = prefix + item.name, item.stat(follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode):
                yield from _plain_files(folder / item.name, f"{name}/")
                continue
            if not stat.S_ISREG(facts.st_mode):
                raise ValueError(f"{name!r} is a link or a special file, not a plain file")
            if facts.st_nlink > 1:
                raise ValueError(f"{name!r} is a hard link: another name could change it, and ONNX refuses such files")
            yield name, facts
