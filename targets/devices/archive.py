"""The agent as one file: a zip archive that Python runs, the same bytes for the same sources wherever it is made."""

import hashlib
import io
import zipfile
from functools import cache
from pathlib import Path

import targets

SOURCE = Path(targets.__file__).parent
CONTENTS = (
    "__init__.py",
    "atomic.py",
    "errors.py",
    "facts.py",
    "jetson.py",
    "nvidia.py",
    "worker.py",
    "agent",
    "runtimes",
    "measure/__init__.py",
    "measure/conditions.py",
    "measure/contender.py",
    "measure/energy.py",
    "measure/floor.py",
    "measure/procedure.py",
    "measure/sampler.py",
    "measure/sampling.py",
    "measure/watching.py",
    "measure/sources",
)
"""files and folders below `targets` that run on a board"""
MAIN = "import sys\n\nfrom targets.agent.__main__ import main\n\nsys.exit(main())\n"
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that zip knows


@cache
def agent_bytes() -> bytes:
    """Content of `vitrim-agent.pyz`. Runs as `python3 vitrim-agent.pyz COMMAND`, with Python 3.10 and numpy."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "__main__.py", MAIN.encode())
        for path in sources():
            _add(archive, f"targets/{path.relative_to(SOURCE).as_posix()}", path.read_bytes())
    return buffer.getvalue()


def agent_digest() -> str:
    """SHA-256 of the agent's file: its version."""
    return hashlib.sha256(agent_bytes()).hexdigest()


def sources() -> list[Path]:
    """Every file of ours in it, sorted."""
    found = []
    for name in CONTENTS:
        path = SOURCE / name
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return sorted(found)


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.create_system, entry.external_attr = 3, 0o644 << 16  # as if made on Unix
    archive.writestr(entry, data)
