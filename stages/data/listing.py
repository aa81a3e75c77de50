"""Which image files there are in folders and zips, and how to read one. Zips are untrusted and checked before use."""

import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from targets.bundle.pixels import MAX_FILE_BYTES
from targets.errors import InputError

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
MAX_MEMBERS = 5_000_000
MAX_RATIO = 200
"""uncompressed / compressed, for members over a mebibyte; images hardly compress, zip bombs reach 1,000"""


@dataclass(frozen=True, slots=True)
class File:
    """An image that is a file of its own."""

    path: str

    def read(self) -> bytes:
        """All bytes; raises OSError."""
        status = os.stat(self.path)  # before opening: a pipe would block
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise OSError(f"it has {status.st_size:,} bytes, more than {MAX_FILE_BYTES:,}")
        with open(self.path, "rb") as file:
            return file.read()


@dataclass(frozen=True, slots=True)
class Member:
    """An image inside a zip."""

    archive: str
    name: str

    def read(self) -> bytes:
        """All bytes, checked against the zip's CRC; raises OSError."""
        status = os.stat(self.archive)
        try:
            return _open(self.archive, (status.st_ino, status.st_size, status.st_mtime_ns), os.getpid()).read(self.name)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, KeyError) as error:
            raise OSError(str(error) or f"damaged in the zip: {type(error).__name__}") from error
        except Exception as error:  # zlib.error, lzma.LZMAError: damaged compressed data
            raise OSError(f"damaged in the zip: {error}") from error


Place = File | Member


@dataclass(frozen=True, slots=True)
class Listed:
    """An image that was found, not read yet."""

    id: str
    """path below its folder or zip, with that one's name in front where there are several"""
    name: str
    """path below its folder or zip"""
    place: Place


def list_images(paths: Sequence[Path]) -> list[tuple[Path, list[Listed]]]:
    """Find the images of each folder and zip; hidden files and files with other suffixes do not count.

    A folder without images but with zips stands for these. Raises InputError: nothing there, unsafe zips, mixtures.
    """
    roots = [root for path in paths for root in _expand(path)]
    names = _distinct_names(roots)
    found = []
    for root, prefix in zip(roots, names, strict=True):
        listed = _zip_members(root, prefix) if root.is_file() else _folder_files(root, prefix)
        if not listed:
            raise InputError(
                f"no images in {str(root)!r}; an image ends in {', '.join(sorted(SUFFIXES))}{_instead(root)}"
            )
        found.append((root, listed))
    return found


def _expand(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"no folder or zip at {str(path)!r}; relative paths start at the recipe's folder")
    if path.is_file():
        if not zipfile.is_zipfile(path):
            raise InputError(f"{str(path)!r} is neither a folder nor a complete zip; give a folder or a zip of images")
        return [path]
    if not path.is_dir():
        raise InputError(f"{str(path)!r} is neither a folder nor a zip")
    try:
        zips = sorted(entry for entry in path.iterdir() if entry.suffix.lower() == ".zip" and entry.is_file())
    except OSError as error:
        raise InputError(f"cannot list {str(path)!r}: {error.strerror}") from error
    if not zips:
        return [path]
    if next(_walk(path), None) is not None:
        raise InputError(f"{str(path)!r} holds both images and zips ({zips[0].name!r}); name what is meant one by one")
    return [zipped for folder in zips for zipped in _expand(folder)]


def _distinct_names(roots: Sequence[Path]) -> list[str]:
    """A prefix for the ids of each root: none for a single one, else its name, numbered where names repeat."""
    resolved = [root.resolve() for root in roots]
    if len(set(resolved)) < len(resolved):
        twice = next(root for root, count in Counter(resolved).items() if count > 1)
        raise InputError(f"{str(twice)!r} is named twice in images")
    if len(roots) == 1:
        return [""]
    seen: Counter[str] = Counter()
    names = []
    for root in resolved:
        seen[root.name] += 1
        names.append(f"{root.name}/" if seen[root.name] == 1 else f"{root.name}#{seen[root.name]}/")
    return names


def _folder_files(root: Path, prefix: str) -> list[Listed]:
    listed = []
    for path in _walk(root):
        name = _printable(path.removeprefix(str(root)).replace(os.sep, "/").lstrip("/"))
        listed.append(Listed(prefix + name, name, File(path)))
    return listed


def _walk(root: Path) -> Iterator[str]:
    """Image files below a folder; links are followed, a folder is entered once."""

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot list {str(error.filename)!r}: {error.strerror}") from error

    entered: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not _hidden(name)]
        yield from (os.path.join(folder, name) for name in files if _is_image_name(name))


def _zip_members(root: Path, prefix: str) -> list[Listed]:
    try:
        with zipfile.ZipFile(root) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"cannot read the zip {str(root)!r}: {error}") from error
    if len(members) > MAX_MEMBERS:
        raise InputError(f"{str(root)!r} has {len(members):,} members, at most {MAX_MEMBERS:,} are read; split it")
    images: dict[str, Listed] = {}
    for member in members:
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if reason := _unsafe(member) or ("is there twice" if str(path) in images else None):
            raise InputError(f"{str(root)!r}: member {member.orig_filename!r} {reason}; pack the zip anew without it")
        if not member.is_dir() and _is_image_name(path.name) and not any(_hidden(part) for part in path.parts):
            name = _printable(str(path))
            images[str(path)] = Listed(prefix + name, name, Member(str(root), member.filename))
    if sum(member.compress_size for member in members) > root.stat().st_size:
        raise InputError(f"{str(root)!r}: its members overlap, as in a zip bomb; pack the zip anew")
    return list(images.values())


def _unsafe(member: zipfile.ZipInfo) -> str | None:
    """Why a member is refused, or None."""
    path = PurePosixPath(member.orig_filename.replace("\\", "/"))
    if path.is_absolute() or (path.parts and path.parts[0][1:2] == ":"):
        return "has an absolute path"
    if ".." in path.parts:
        return "leaves the zip"
    if "\0" in member.orig_filename or not path.parts:
        return "has no usable name"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a symbolic link"
    if member.flag_bits & 0x1:
        return "is encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {member.compress_type} (only stored and deflated are read)"
    if member.file_size > MAX_FILE_BYTES:
        return f"has {member.file_size:,} bytes, more than {MAX_FILE_BYTES:,}"
    if member.file_size > 2**20 and member.file_size > MAX_RATIO * member.compress_size:
        return f"grows more than {MAX_RATIO} times when unpacked, as in a zip bomb"
    return None


@lru_cache(maxsize=64)
def _open(path: str, version: tuple[int, int, int], process: int) -> zipfile.ZipFile:
    """One open zip per version of the file and process: a forked process must not share the file's position."""
    return zipfile.ZipFile(path)


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not _hidden(name)


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _printable(name: str) -> str:
    """The name as valid Unicode: bytes that are no UTF-8 are written out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _instead(root: Path) -> str:
    """What a folder holds in place of images, for the message."""
    if not root.is_dir():
        return ""
    suffixes = Counter(path.suffix.lower() or "no suffix" for path in root.rglob("*") if path.is_file())
    return (
        "; it holds " + ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(3)) if suffixes else ""
    )
