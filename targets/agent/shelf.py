"""Shelf: the files of a board, by content. Objects are single files; a tree is a folder, told by a list of objects.

objects/SHA256   as it was received or made: complete, or absent
trees/SHA256/    the folder that the object of this digest lists, put together from copies
jobs/KEY/        job, process, events, log and result of one job
engines/KEY/     engines that were built here
"""

import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from targets.atomic import copy_atomic, sha256_of, sync_tree
from targets.errors import InputError, WorkerError

TREE = "vitrim.tree/1"
KEPT_SECONDS = 30 * 86400
"""what was not used for so long is removed when the board is locked the next time"""
PART_SECONDS = 3 * 86400
"""the same for a transfer that was never finished"""
_DIGITS = set("0123456789abcdef")


class Shelf:
    """The folder of one board."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("objects", "trees", "jobs", "engines"):
            (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def object(self, digest: str) -> Path:
        """Path of an object, whether or not it is there. Raises InputError for what is no digest."""
        return self.folder / "objects" / check_digest(digest)

    def has(self, digest: str) -> bool:
        """Whether an object is there; what is there was verified when it came."""
        path = self.object(digest)
        with suppress(OSError):
            os.utime(path)  # it is in use
            return True
        return False

    def add(self, path: Path) -> dict[str, Any]:
        """Keep a file as an object: {"digest", "size_bytes"}."""
        digest = sha256_of(path)
        if not self.has(digest):
            copy_atomic(path, self.object(digest))
        return {"digest": digest, "size_bytes": path.stat().st_size}

    def tree(self, digest: str) -> Path:
        """Folder of a tree, every file verified; put together where it is not there or not as it should be."""
        if not self.has(digest) or sha256_of(self.object(digest)) != digest:
            raise WorkerError(f"the board has no tree {digest[:12]}; push it again")
        listed = json.loads(self.object(digest).read_bytes())
        if listed.get("format") != TREE:
            raise InputError(f"object {digest[:12]} is no tree, it has format {listed.get('format')!r}")
        folder = self.folder / "trees" / digest
        if not self._is_complete(folder, listed["files"]):
            self._put_together(folder, listed["files"])
        os.utime(folder)
        return folder

    def tidy(self) -> int:
        """Remove what was not used for long; returns how many entries. Only who holds the board's lock may."""
        now, removed = time.time(), 0
        for name in ("objects", "trees", "jobs", "engines"):
            for entry in list((self.folder / name).iterdir()):
                limit = PART_SECONDS if entry.suffix in (".part", ".tmp") else KEPT_SECONDS
                with suppress(OSError):
                    if now - entry.stat().st_mtime > limit:
                        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
                        removed += 1
        return removed

    def _is_complete(self, folder: Path, files: dict[str, Any]) -> bool:
        if not folder.is_dir():
            return False
        found = {one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()}
        return found == set(files) and all(sha256_of(folder / name) == one["sha256"] for name, one in files.items())

    def _put_together(self, folder: Path, files: dict[str, Any]) -> None:
        new = folder.with_name(f"{folder.name}.tmp")
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        for name, one in files.items():
            path = new / name
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise InputError(f"the tree names {name!r}, which is outside of it")
            path.parent.mkdir(parents=True, exist_ok=True)
            source = self.object(one["sha256"])
            if not self.has(one["sha256"]) or sha256_of(source) != one["sha256"]:
                with suppress(OSError):
                    source.unlink()  # it is taken for absent, and pushed again
                raise WorkerError(f"the board's copy of {name!r} is damaged or gone; push it again")
            shutil.copyfile(source, path)  # no link: ONNX refuses linked external data
        new.mkdir(parents=True, exist_ok=True)
        sync_tree(new)
        os.replace(new, folder)


def check_digest(text: str) -> str:
    """Raise InputError for what is not 64 hex digits: it becomes the name of a file."""
    if len(text) != 64 or not set(text) <= _DIGITS:
        raise InputError(f"a digest has 64 hex digits, got {text!r}")
    return text
