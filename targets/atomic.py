"""Files that are either complete or absent, whatever happens while they are written.

As Git and PostgreSQL do it: write to a temporary file in the same folder, fsync it, rename it, fsync the folder.
A failed fsync is final: the kernel may have dropped the pages, so trying again would succeed falsely.
In Python 3.10: the agent on a board writes its results with it.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".tmp"
"""suffix of files that are being written; they begin with a dot"""


def write_atomic(path: Path, data: bytes) -> None:
    """Put a file in place in one step; a reader sees the old content or the new one."""
    with _replacing(path) as temporary, open(temporary, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def copy_atomic(source: Path, destination: Path) -> None:
    """Copy a file's content (never a link: ONNX refuses linked external data) in one step."""
    with _replacing(destination) as temporary:
        shutil.copyfile(source, temporary)
        _sync(temporary, os.O_RDWR)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def sync_tree(folder: Path) -> None:
    """Make every file and folder below durable, and the folder itself last."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(parent, name), os.O_RDONLY)
        sync_folder(Path(parent))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, streamed, 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    temporary = path.parent / f".{secrets.token_hex(8)}{TEMPORARY}"
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
