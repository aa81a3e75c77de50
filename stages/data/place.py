"""Where the bytes of an image are, and what was listed there: light values that may be pickled, forked and threaded."""

import os
import stat
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

from targets.bundle.pixels import MAX_FILE_BYTES

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})

Label = int | str
"""a number, or the name of a class"""


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


@dataclass(frozen=True, slots=True)
class Slice:
    """An image whose bytes lie one after the other in a larger file: a tar, an Arrow file, a table's copy."""

    archive: str
    name: str
    """of the image within it"""
    offset: int
    size: int

    def read(self) -> bytes:
        """All bytes; raises OSError."""
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) != self.size:
            raise OSError(f"{os.path.basename(self.archive)} ends too early: it was changed")
        return content


Place = File | Member | Slice


@dataclass(frozen=True, slots=True)
class Listed:
    """An image that was found, not read yet."""

    id: str
    """path below its folder or archive, with that one's name in front where there are several"""
    name: str
    """path below its folder or archive"""
    place: Place
    label: Label | None = None
    """what stands beside it in its archive"""
    classes: tuple[str, ...] | None = None
    """names of the classes that its archive knows"""


@lru_cache(maxsize=64)
def _open(path: str, version: tuple[int, int, int], process: int) -> zipfile.ZipFile:
    """One open zip per version of the file and process: a forked process must not share the file's position."""
    return zipfile.ZipFile(path)


def is_image_name(name: str) -> bool:
    """Whether a file counts as an image, by its suffix."""
    name = os.path.basename(name)
    return os.path.splitext(name)[1].lower() in SUFFIXES and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether one part of a path is hidden, or what macOS leaves in archives."""
    return name.startswith((".", "__MACOSX"))


def printable(name: str) -> str:
    """The name as valid Unicode: bytes that are no UTF-8 are written out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def unsafe_name(name: str, archive: str) -> str | None:
    """Why the name of a member is refused, or None. archive: what the message calls the file it is in."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or (path.parts and path.parts[0][1:2] == ":"):
        return "has an absolute path"
    if ".." in path.parts:
        return f"leaves the {archive}"
    if "\0" in name or (not path.parts and name not in (".", "./")):
        return "has no usable name"
    return None
