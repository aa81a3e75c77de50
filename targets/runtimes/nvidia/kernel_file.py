"""Files that hold what a GPU and a version found out: times of kernels (TensorRT), compiled kernels (TensorRT-RTX).

Each is kept with what it is of and its digest, `NAME.json` beside it. What is of another GPU or version, or not what
was written, is not read: foreign times choose slow or wrong kernels.
"""

import hashlib
import json
import os
import re
from pathlib import Path

from targets.atomic import write_atomic

FORMAT = "vitrim.kernels/1"
AUTO, NONE = "auto", "none"
"""what an option that names a folder may be besides a path: the user's cache, and no folder at all"""


def kernel_folder(asked: str | None) -> Path | None:
    """Folder that an option names: a path, `auto` or `none`. `auto`: $VITRIM_KERNELS, else the user's cache (XDG).

    None where there is to be no folder, and where the user has none.
    """
    if asked in (None, NONE):
        return None
    if asked != AUTO:
        return Path(str(asked))
    if given := os.environ.get("VITRIM_KERNELS"):
        return Path(given)
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no home
        return None
    return cache / "vitrim-kernels"


class KernelFile:
    """One file of a folder, for one set of facts: GPU, compute capability, versions."""

    def __init__(self, folder: Path, kind: str, facts: dict[str, str]) -> None:
        self._facts = facts
        words = "-".join([kind, *(facts[name] for name in sorted(facts))])
        self.path = folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', words)[:200]}.bin"

    def read(self) -> bytes:
        """Return the content, or nothing where there is none or it is of something else."""
        try:
            beside = json.loads(self._beside().read_text(encoding="utf-8"))
            content = self.path.read_bytes()
        except (OSError, ValueError):
            return b""
        expected = {"format": FORMAT, "facts": self._facts, "sha256": hashlib.sha256(content).hexdigest()}
        return content if beside == expected else b""

    def write(self, content: bytes) -> str:
        """Keep the content; returns its SHA-256."""
        digest = hashlib.sha256(content).hexdigest()
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # compiled kernels are code
        beside = {"format": FORMAT, "facts": self._facts, "sha256": digest}
        write_atomic(self.path, content)
        write_atomic(self._beside(), (json.dumps(beside, indent=1, sort_keys=True) + "\n").encode())
        return digest

    def _beside(self) -> Path:
        return self.path.with_name(self.path.name + ".json")
