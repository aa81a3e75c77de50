"""Files by the digest of their content, compressed: raw samples, answers, and folders (engines with their bundle).

A folder is a list of its files, so that nights with the same graph or engine share it. Every read checks the digest.
"""

import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from targets.atomic import sync_folder, write_atomic
from targets.errors import StoreError
from targets.record import canonical_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL = 6
SUFFIX = ".z"
TREE = "vitrim.tree/1"


class Objects:
    """A folder of compressed files, named by the SHA-256 of what they hold."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, data: bytes) -> str:
        """Keep some bytes; returns their digest."""
        import hashlib

        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        if not path.exists():
            try:
                if not path.parent.is_dir():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    sync_folder(path.parent.parent)
                write_atomic(path, zlib.compress(data, LEVEL))
            except OSError as error:
                raise StoreError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
        return digest

    def get(self, digest: str) -> bytes:
        """Read what was kept. Raises StoreError where it is gone or damaged."""
        import hashlib

        path = self._path(digest)
        try:
            data = zlib.decompress(path.read_bytes())
        except (OSError, zlib.error) as error:
            why = error.strerror if isinstance(error, OSError) else "damaged"
            raise StoreError(f"the history lacks {str(path)!r}: {why}") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise StoreError(f"the history is damaged: {str(path)!r} is not what its name says; remove it")
        return data

    def has(self, digest: str) -> bool:
        """Whether it is there."""
        return bool(digest) and self._path(digest).is_file()

    def put_json(self, value: Any) -> str:
        """Keep plain data."""
        return self.put(canonical_json(value).encode())

    def get_json(self, digest: str) -> Any:
        """Read plain data."""
        return json.loads(self.get(digest))

    def put_arrays(self, arrays: "dict[str, NDArray[Any]]") -> str:
        """Keep named arrays; equal ones have one digest."""
        import numpy as np

        parts = {}
        for name, array in arrays.items():
            file = io.BytesIO()
            np.save(file, array, allow_pickle=False)
            parts[name] = self.put(file.getvalue())
        return self.put_json({"format": "vitrim.arrays/1", "arrays": parts})

    def get_arrays(self, digest: str) -> "dict[str, NDArray[Any]]":
        """Read named arrays."""
        import numpy as np

        listed = self.get_json(digest)
        return {name: np.load(io.BytesIO(self.get(one)), allow_pickle=False) for name, one in listed["arrays"].items()}

    def put_folder(self, folder: Path) -> str:
        """Keep every file below a folder; returns the digest of the list of them."""
        files = {
            path.relative_to(folder).as_posix(): self.put(path.read_bytes())
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.is_symlink()
        }
        return self.put_json({"format": TREE, "files": files})

    def has_folder(self, digest: str) -> bool:
        """Whether a folder is there with all its files."""
        if not self.has(digest):
            return False
        return all(self.has(one) for one in self.get_json(digest)["files"].values())

    def take_folder(self, digest: str, folder: Path) -> Path:
        """Write a kept folder out again, as files of its own: parsers of ONNX refuse linked ones."""
        for name, one in self.get_json(digest)["files"].items():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise StoreError(f"the history is damaged: a folder in it holds {name!r}")
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.get(one))
        return folder

    def remove_except(self, trees: Iterable[str], others: Iterable[str]) -> int:
        """Remove all that is neither in these folders nor among these digests; returns the bytes that became free.

        Call it while nothing is written.
        """
        kept = set(others)
        for tree in trees:
            if self.has(tree):
                kept |= {tree, *self.get_json(tree)["files"].values()}
        for digest in list(kept):
            if self._is_list_of_arrays(digest):
                kept |= set(self.get_json(digest)["arrays"].values())
        freed = 0
        for path in self._all():
            if path.name.removesuffix(SUFFIX) not in kept:
                freed += path.stat().st_size
                path.unlink()
        return freed

    def _is_list_of_arrays(self, digest: str) -> bool:
        if not self.has(digest):
            return False
        data = self.get(digest)
        return data.startswith(b'{"arrays"')

    def _all(self) -> Iterator[Path]:
        yield from self.root.glob(f"??/*{SUFFIX}")

    def _path(self, digest: str) -> Path:
        return self.root / digest[:2] / f"{digest}{SUFFIX}"
