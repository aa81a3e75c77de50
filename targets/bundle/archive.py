"""One zip of files whose bytes depend on names and contents alone: one order, no times, no modes, no compression.

Nothing is compressed: weights gain a few percent, and the bytes would depend on the version of zlib. Written by hand
from PKWARE's APPNOTE 6.3.10, so that they do not depend on Python's version either, and so that a reader can tell
whether an archive is the one that was written. Sizes and places of 4 GiB and more, and more than 65,534 files, take
zip64 records.
"""

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from targets.bundle.run import MANIFEST

LIMIT = 0xFFFFFFFF
"""32 bits that say: look into the zip64 record"""
MOST_FILES = 0xFFFF
CHUNK = 1 << 20
_UNIX, _PLAIN, _ZIP64 = 3, 20, 45
"""system that made it; versions that are needed to read it"""
FIRST_DAY = (1980, 1, 1, 0, 0, 0)
_FIRST_DAY = 1 << 5 | 1
"""the first day that a zip can tell"""
_UTF8 = 0x800


@dataclass(frozen=True)
class Entry:
    """A file of an archive."""

    name: str
    """with the top folder, separated by /"""
    size: int
    crc: int


@dataclass(frozen=True)
class Source:
    """A file to pack."""

    name: str
    sha256: str
    open: Callable[[], AbstractContextManager[IO[bytes]]]


class ChangedError(Exception):
    """A file is not, or no longer, what it was said to be."""


def ordered(names: Iterable[str]) -> list[str]:
    """The order of files in an archive: the manifest first, so that a reader knows at once what it has."""
    return sorted(names, key=lambda name: (name != MANIFEST, name))


def write_archive(file: BinaryIO, sources: Sequence[Source], root: str) -> None:
    """Write files below one top folder; each is read twice, since its checksum stands before it.

    Raises ChangedError where a file is not the one of its digest, both times.
    """
    by_name = {one.name: one for one in sources}
    entries, offsets = [], []
    for name in ordered(by_name):
        entry = _entry(by_name[name], root)
        entries.append(entry)
        offsets.append(file.tell())
        file.write(local_header(entry))
        left, crc = entry.size, 0
        with by_name[name].open() as content:
            while chunk := content.read(CHUNK):
                left, crc = left - len(chunk), zlib.crc32(chunk, crc)
                file.write(chunk)
        if left or crc != entry.crc:
            raise ChangedError(f"{name!r} changed while it was packed")
    file.write(b"".join(central_records(entries, offsets)))


def is_canonical(path: Path, entries: Sequence[Entry]) -> bool:
    """Whether an archive is, byte for byte outside of its files' contents, what `write_archive` writes for them."""
    with open(path, "rb") as file:
        offsets, place = [], 0
        for entry in entries:
            header = local_header(entry)
            file.seek(place)
            if file.read(len(header)) != header:
                return False
            offsets.append(place)
            place += len(header) + entry.size
        file.seek(place)
        end = b"".join(central_records(entries, offsets))
        return file.read(len(end) + 1) == end


def local_header(entry: Entry) -> bytes:
    """What stands before a file."""
    name = entry.name.encode()
    large = entry.size >= LIMIT
    extra = struct.pack("<HHQQ", 1, 16, entry.size, entry.size) if large else b""
    size = LIMIT if large else entry.size
    return (
        struct.pack(
            "<4sHHHHHLLLHH",
            b"PK\x03\x04",
            _ZIP64 if large else _PLAIN,
            _flags(name),
            0,  # stored
            0,
            _FIRST_DAY,
            entry.crc,
            size,
            size,
            len(name),
            len(extra),
        )
        + name
        + extra
    )


def central_records(entries: Sequence[Entry], offsets: Sequence[int]) -> Iterator[bytes]:
    """What stands after all files. offsets: where the headers of each begin."""
    start = offsets[-1] + len(local_header(entries[-1])) + entries[-1].size if entries else 0
    length = 0
    for entry, offset in zip(entries, offsets, strict=True):
        record = _central(entry, offset)
        length += len(record)
        yield record
    count = len(entries)
    if count >= MOST_FILES or length >= LIMIT or start >= LIMIT:
        end64 = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, _ZIP64, _ZIP64, 0, 0, count, count, length, start)
        yield end64
        yield struct.pack("<4sLQL", b"PK\x06\x07", 0, start + length, 1)
    few, short, near = min(count, MOST_FILES), min(length, LIMIT), min(start, LIMIT)
    yield struct.pack("<4sHHHHLLH", b"PK\x05\x06", 0, 0, few, few, short, near, 0)


def _central(entry: Entry, offset: int) -> bytes:
    name = entry.name.encode()
    wide = [value for value in (entry.size, entry.size, offset) if value >= LIMIT]
    extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    size = min(entry.size, LIMIT)
    version = _ZIP64 if wide else _PLAIN
    packed = struct.pack(
        "<4sBBHHHHHLLLHHHHHLL",
        b"PK\x01\x02",
        version,
        _UNIX,
        version,
        _flags(name),
        0,  # stored
        0,
        _FIRST_DAY,
        entry.crc,
        size,
        size,
        len(name),
        len(extra),
        0,
        0,
        0,
        _mode(entry.name) << 16,
        min(offset, LIMIT),
    )
    return packed + name + extra


def _mode(name: str) -> int:
    """By the name, not by the file system: a umask must not change the archive."""
    return 0o100755 if name.endswith((".sh", "/run.py")) else 0o100644


def _flags(name: bytes) -> int:
    return 0 if name.isascii() else _UTF8


def _entry(source: Source, root: str) -> Entry:
    size, crc, digest = 0, 0, hashlib.sha256()
    with source.open() as content:
        while chunk := content.read(CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
            digest.update(chunk)
    if digest.hexdigest() != source.sha256:
        raise ChangedError(f"{source.name!r} is not the file that the manifest lists")
    return Entry(f"{root}/{source.name}", size, crc)


def slug(text: str) -> str:
    """A name that every file system takes."""
    kept = "".join(sign if sign.isascii() and (sign.isalnum() or sign in "._-") else "-" for sign in text)
    parts = [part for part in kept.lower().strip("-._").split("-") if part]
    return "-".join(parts)[:80] or "bundle"
