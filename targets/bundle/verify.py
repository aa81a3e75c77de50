"""Is a bundle complete and unchanged? A folder or a zip, without unpacking, on any machine.

The same check that `run.py` makes before it runs, and more: the manifest's schema, and of a zip that it would unpack
into its own folder and nowhere else, with nothing in it twice and nothing that grows without measure.
"""

import hashlib
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from targets.bundle.archive import FIRST_DAY, Entry, is_canonical, ordered
from targets.bundle.manifest import BundleManifest
from targets.bundle.run import (
    FORMAT,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SUMS,
    BundleError,
    bundle_problems,
    contents_problems,
    parse_manifest,
    stream_facts,
)
from targets.errors import InputError
from targets.record import Record

MOST_ENTRIES = 10_000
MOST_RATIO = 100
"""how far a file may have been compressed; weights shrink by a tenth, text to a tenth"""
SMALL = 1 << 20
"""bytes below which the ratio does not matter"""
_MAGIC = b"PK\x03\x04"
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_FAMILY = FORMAT.partition("/")[0] + "/"


class BundleCheck(Record):
    """What was found."""

    bundle: str
    kind: str
    """folder or zip"""
    problems: tuple[str, ...]
    """one line each; empty: complete and unchanged"""
    manifest: BundleManifest | None
    """null where it cannot be read"""
    size_bytes: int
    """of all files"""
    sha256: str | None = None
    """of the zip"""
    as_packed: bool | None = None
    """whether a zip is, byte for byte, what `vitrim package` writes; false where another program packed it"""


def verify_bundle(folder: Path) -> list[str]:
    """What is missing, changed or extra in a bundle's folder, one line each; empty when all is well."""
    return list(_problems_of_folder(folder)[0])


def check_bundle(path: Path) -> BundleCheck:
    """Check a bundle, a folder or a zip. Raises InputError for what is none, or one of a version not known here."""
    if path.is_dir():
        _refuse_foreign_folder(path)
        problems, manifest = _problems_of_folder(path)
        size = sum(one.stat().st_size for one in path.rglob("*") if one.is_file() and not one.is_symlink())
        return BundleCheck(bundle=str(path), kind="folder", problems=problems, manifest=manifest, size_bytes=size)
    if path.exists() and not path.is_file():
        raise InputError(f"{str(path)!r} is neither a folder nor a file; give a bundle's folder or zip")
    try:
        with open(path, "rb") as file:
            begin = file.read(len(_MAGIC))
            file.seek(0)
            size, sha256 = stream_facts(file.read)
    except OSError as error:
        raise InputError(
            f"cannot read {str(path)!r}: {error.strerror or error}; give a bundle's folder or zip"
        ) from error
    found, manifest, as_packed = _problems_of_zip(path, begins_like_zip=begin == _MAGIC)
    return BundleCheck(
        bundle=str(path),
        kind="zip",
        problems=tuple(found),
        manifest=manifest,
        size_bytes=size,
        sha256=sha256,
        as_packed=as_packed,
    )


# Folders.


def _refuse_foreign_folder(folder: Path) -> None:
    """Raise InputError unless a folder is a bundle, whole or damaged."""
    file, sums = folder / MANIFEST, folder / SUMS
    listed = sums.read_bytes() if sums.is_file() and sums.stat().st_size <= MAX_MANIFEST_BYTES else b""
    if not file.is_file():
        if f"  {MANIFEST}\n".encode() in listed:
            return  # it was one
        raise InputError(
            f"{str(folder)!r} is not a bundle: it has no {MANIFEST}; give the folder or zip that vitrim wrote"
        )
    if file.stat().st_size <= MAX_MANIFEST_BYTES:
        data = file.read_bytes()
        if not listed or f"{hashlib.sha256(data).hexdigest()}  {MANIFEST}\n".encode() in listed:
            _refuse_foreign(str(folder), data)


def _refuse_foreign(where: str, data: bytes) -> None:
    """Raise InputError for a manifest of something else, or of a version not known here; what is broken passes."""
    try:
        parse_manifest(data)
    except BundleError as error:
        if "has format" in str(error):
            newer = "; update vitrim" if f'"{_FAMILY}'.encode() in data else ""
            raise InputError(f"{where!r} is not a bundle that can be read here: {error}{newer}") from error


def _problems_of_folder(folder: Path) -> tuple[tuple[str, ...], BundleManifest | None]:
    problems = bundle_problems(folder)
    try:
        manifest, more = _schema((folder / MANIFEST).read_bytes())
    except OSError:
        return tuple(problems), None
    return tuple(problems or more), manifest


def _schema(data: bytes) -> tuple[BundleManifest | None, list[str]]:
    try:
        return BundleManifest.model_validate_json(data), []
    except ValidationError as error:
        first = error.errors()[0]
        return None, [f"{MANIFEST!r} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}"]


# Archives.


def _problems_of_zip(path: Path, *, begins_like_zip: bool) -> tuple[list[str], BundleManifest | None, bool | None]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        if begins_like_zip:
            return [f"the zip is cut off or broken: {_one_line(error)}"], None, None
        raise InputError(f"{str(path)!r} is not a bundle: neither a folder nor a zip") from error
    with archive:
        infos = [one for one in archive.infolist() if not one.is_dir()]
        problems = _unsafe(archive.infolist(), path.stat().st_size)
        if problems:
            return problems, None, None
        root = _root(infos)
        if root is None and any(PurePosixPath(one.filename).name == SUMS for one in infos):
            return [f"{MANIFEST!r} is missing"], None, None  # it was a bundle
        if root is None:
            raise InputError(
                f"{str(path)!r} is not a bundle: it has no {MANIFEST} at its top; "
                "give the zip that `vitrim package` wrote"
            )
        by_name = {one.filename[len(root) :]: one for one in infos if one.filename.startswith(root)}
        outside = [f"{one.filename!r} is extra" for one in infos if not one.filename.startswith(root)]
        try:
            data = _read(archive, by_name[MANIFEST], MAX_MANIFEST_BYTES)
            sums = _read(archive, by_name[SUMS], MAX_MANIFEST_BYTES) if SUMS in by_name else None
            if not sums or f"{hashlib.sha256(data).hexdigest()}  {MANIFEST}\n".encode() in sums:
                _refuse_foreign(str(path), data)
            manifest = parse_manifest(data)
        except BundleError as error:
            return [str(error)], None, None
        found = {name: _facts_in(archive, info) for name, info in by_name.items()}
        digest = hashlib.sha256(data).hexdigest()
        problems = contents_problems(manifest, found, manifest_sha256=digest, sums=sums) + outside
        read, more = _schema(data)
    as_packed = [root + name for name in ordered(by_name)] == [one.filename for one in infos] and is_canonical(
        path, [Entry(one.filename, one.file_size, one.CRC) for one in infos]
    )
    ours = [one for one in infos if one.compress_type == zipfile.ZIP_STORED and one.date_time == FIRST_DAY]
    if not as_packed and not (problems or more) and 2 * len(ours) > len(infos):
        problems = ["the records between the files were changed: it is not byte for byte what `vitrim package` wrote"]
    return problems or more, read, as_packed


def _unsafe(infos: list[zipfile.ZipInfo], archive_bytes: int) -> list[str]:
    """Why an archive must not be unpacked, one line each."""
    if len(infos) > MOST_ENTRIES:
        return [f"the zip has {len(infos):,} entries, more than {MOST_ENTRIES:,}"]
    if sum(one.compress_size for one in infos) > archive_bytes:
        return ["the zip holds more than it has bytes: its files overlap"]
    problems = []
    seen: set[str] = set()
    for one in infos:
        name = one.orig_filename
        kind = stat.S_IFMT(one.external_attr >> 16)
        if _is_unsafe(name):
            problems.append(f"{name!r} is outside of the bundle")
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            problems.append(f"{name!r} is a link or a device")
        elif one.flag_bits & 1:
            problems.append(f"{name!r} is encrypted")
        elif one.compress_type not in _PACKED:
            problems.append(f"{name!r} is compressed in a way that is not read here (method {one.compress_type})")
        elif one.file_size > max(SMALL, MOST_RATIO * one.compress_size):
            problems.append(f"{name!r} was compressed {one.file_size // max(1, one.compress_size)} times: not unpacked")
        if name.casefold() in seen:
            problems.append(f"{name!r} is there twice")
        seen.add(name.casefold())
    return problems


def _is_unsafe(name: str) -> bool:
    """Absolute, upwards, of another drive, or with signs that other systems take for a separator or an end."""
    parts = name.removesuffix("/").split("/")
    return (
        not name
        or any(part in ("", ".", "..") for part in parts)
        or any(sign in '\\:*?"<>|' or ord(sign) < 32 or ord(sign) == 127 for sign in name)
    )


def _root(infos: list[zipfile.ZipInfo]) -> str | None:
    """Where the bundle is in an archive: at the top (empty), or in its one top folder, with a slash; None: nowhere."""
    names = {one.filename for one in infos}
    if MANIFEST in names:
        return ""
    tops = {PurePosixPath(name).parts[0] for name in names}
    roots = [f"{top}/" for top in sorted(tops) if f"{top}/{MANIFEST}" in names]
    return roots[0] if len(roots) == 1 else None


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """Content of a small file; raises BundleError."""
    try:
        with archive.open(info) as file:
            data = file.read(most + 1)
    except _BROKEN as error:
        raise BundleError(f"{info.filename!r} cannot be read: {_one_line(error)}") from error
    if len(data) > most:
        raise BundleError(f"{info.filename!r} has more than {most:,} bytes")
    return data


def _facts_in(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], tuple[int, str]]:
    def facts() -> tuple[int, str]:
        try:
            with archive.open(info) as file:
                return stream_facts(file.read)
        except _BROKEN:
            return -1, ""

    return facts


_BROKEN: tuple[type[BaseException], ...] = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)
"""what reading a damaged archive raises"""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def told(check: BundleCheck) -> dict[str, Any]:
    """A check as plain JSON, with one word for its state."""
    return {"state": "damaged" if check.problems else "complete", **check.model_dump(mode="json")}
