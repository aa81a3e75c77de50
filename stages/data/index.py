"""What the listed images contain: their content hashes, and whether they can be decoded; and what a tar lists.

All need every byte once. The optional cache (one SQLite file) remembers them by real path, size, times and inode, so
an unchanged folder is not read again. A broken or locked cache is never an error: it only costs the time.
"""

import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TypeVar

import PIL
from PIL import features

from stages.data.place import File, Listed, Place
from targets.bundle.pixels import UnreadableImageError, decode

log = logging.getLogger("vitrim.data")

Tell = Callable[[str, float | None], None]
Stamp = tuple[int, int, int, int]
"""size, mtime_ns, ctime_ns, inode: what changes when a file does"""

SETTLED_NS = 2_000_000_000
"""a file changed less than this ago is not remembered: it could change again within one tick of the clock"""

_TABLES = """
create table if not exists content (
  root blob, name blob, size integer, mtime integer, ctime integer, inode integer, sha256 text,
  primary key (root, name)) without rowid;
create table if not exists listing (
  root blob, size integer, mtime integer, ctime integer, inode integer, content text,
  primary key (root)) without rowid;
create table if not exists verdict (
  decoder text, sha256 text, problem text,
  primary key (decoder, sha256)) without rowid;
"""

T = TypeVar("T")
R = TypeVar("R")


def hash_contents(
    root: Path, listed: Sequence[Listed], *, cache: Path | None, tell: Tell
) -> tuple[dict[str, str], dict[str, str]]:
    """SHA-256 of the bytes of each image of one folder or zip: ({id: sha256}, {id: why it cannot be read})."""
    key = os.fsencode(root.resolve())
    remembered = _remembered(cache, key)
    hashes: dict[str, str] = {}
    problems: dict[str, str] = {}
    fresh: list[tuple[bytes, bytes, int, int, int, int, str]] = []
    unread: list[tuple[Listed, Stamp | None]] = []
    archive = _stamp(root) if root.is_file() else None
    for image in listed:
        stamp = archive or (_stamp(image.place.path) if isinstance(image.place, File) else None)
        known = remembered.get(_key(image.place, str(root)))
        if stamp is not None and known is not None and known[0] == stamp:
            hashes[image.id] = known[1]
        else:
            unread.append((image, stamp))
    settled = time.time_ns() - SETTLED_NS
    results = in_threads(lambda pair: _hash(pair[0].place), unread)
    for done, ((image, stamp), (sha256, problem)) in enumerate(zip(unread, results, strict=True)):
        if sha256 is None:
            problems[image.id] = problem
            continue
        hashes[image.id] = sha256
        if stamp is not None and max(stamp[1], stamp[2]) < settled:
            fresh.append((key, _key(image.place, str(root)), *stamp, sha256))
        if done % 500 == 0:
            tell(f"reading {root.name}", done / len(unread))
    changed = archive is not None and _stamp(root) != archive
    if not changed:
        _remember(cache, "insert or replace into content values (?, ?, ?, ?, ?, ?, ?)", fresh)
    return hashes, problems


def recall_listing(root: Path, *, cache: Path | None, make: Callable[[], list[T]]) -> list[T]:
    """What `make` found in an archive, plain JSON: remembered while the archive is the same file, else made anew."""
    key, stamp = os.fsencode(root.resolve()), _stamp(root)
    query = "select size, mtime, ctime, inode, content from listing where root = ?"
    for *known, content in _rows(cache, query, (key,)):
        if tuple(known) == stamp:
            found: list[T] = json.loads(content)
            return found
    made = make()
    if stamp is not None and stamp == _stamp(root) and max(stamp[1], stamp[2]) < time.time_ns() - SETTLED_NS:
        content = json.dumps(made, separators=(",", ":"))
        _remember(cache, "insert or replace into listing values (?, ?, ?, ?, ?, ?)", [(key, *stamp, content)])
    return made


def find_undecodable(places: Mapping[str, Place], *, cache: Path | None, tell: Tell) -> dict[str, str]:
    """Decode each image, given by content hash, once: {sha256: why it cannot be decoded}."""
    decoder = decoder_version()
    verdicts = {sha256: problem for sha256, problem in _verdicts(cache, decoder).items() if sha256 in places}
    unseen = [(sha256, place) for sha256, place in places.items() if sha256 not in verdicts]
    fresh: list[tuple[str, str, str]] = []
    results = in_threads(lambda pair: _problem(pair[1]), unseen)
    for done, ((sha256, _), problem) in enumerate(zip(unseen, results, strict=True)):
        fresh.append((decoder, sha256, problem))
        verdicts[sha256] = problem
        if done % 500 == 0:
            tell("checking images", done / len(unseen))
    _remember(cache, "insert or replace into verdict values (?, ?, ?)", fresh)
    return {sha256: problem for sha256, problem in verdicts.items() if problem}


def decoder_version() -> str:
    """What decides the pixels besides an image's bytes; raise the number when `decode` changes."""
    return f"1, Pillow {PIL.__version__}, jpeg {features.version('jpg')}"


def in_threads(function: Callable[[T], R], values: Iterable[T]) -> Iterator[R]:
    """Apply a function in threads, results in order; a bounded number of values is under way."""
    workers = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    remaining = iter(values)
    with ThreadPoolExecutor(workers, thread_name_prefix="images") as pool:
        under_way = [pool.submit(function, value) for value in islice(remaining, 4 * workers)]
        try:
            while under_way:
                result = under_way.pop(0).result()
                under_way += [pool.submit(function, value) for value in islice(remaining, 1)]
                yield result
        finally:
            for future in under_way:
                future.cancel()


def _hash(place: Place) -> tuple[str | None, str]:
    try:
        return hashlib.sha256(place.read()).hexdigest(), ""
    except OSError as error:
        return None, error.strerror or str(error)


def _problem(place: Place) -> str:
    try:
        decode(place.read(), draft=True)
    except UnreadableImageError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _key(place: Place, root: str) -> bytes:
    return os.fsencode(place.path.removeprefix(root) if isinstance(place, File) else place.name)


def _stamp(path: str | Path) -> Stamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _remembered(cache: Path | None, root: bytes) -> dict[bytes, tuple[Stamp, str]]:
    rows = _rows(cache, "select name, size, mtime, ctime, inode, sha256 from content where root = ?", (root,))
    return {name: ((size, mtime, ctime, inode), sha256) for name, size, mtime, ctime, inode, sha256 in rows}


def _verdicts(cache: Path | None, decoder: str) -> dict[str, str]:
    return dict(_rows(cache, "select sha256, problem from verdict where decoder = ?", (decoder,)))


def _rows(cache: Path | None, query: str, values: tuple[object, ...]) -> list[tuple]:  # type: ignore[type-arg]  # of any columns
    if cache is None or not cache.exists():
        return []
    try:
        with closing(_connect(cache)) as database:
            return database.execute(query, values).fetchall()
    except sqlite3.Error as error:
        log.warning("index cache %s is not usable (%s); images are read again", cache, error)
        return []


def _remember(cache: Path | None, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
    if cache is None or not rows:
        return
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(cache, statement, rows)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:  # it is no database (any more): start anew
            cache.unlink()
            _write(cache, statement, rows)
    except (sqlite3.Error, OSError) as error:
        log.warning("index cache %s cannot be written (%s); the next run reads the images again", cache, error)


def _write(cache: Path, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
    with closing(_connect(cache)) as database, database:
        database.executemany(statement, rows)


def _connect(cache: Path) -> sqlite3.Connection:
    database = sqlite3.connect(cache, timeout=30)
    try:
        database.executescript(_TABLES)
    except sqlite3.Error:
        database.close()
        raise
    return database
