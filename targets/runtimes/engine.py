"""The folder of an engine: `engine.json` and the files that a runtime built. Standard library only.

An engine is code for one machine. Before one is loaded, its files are compared with the digests in `engine.json`, and
the machine and the runtime with what it was built for.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from targets.errors import InputError

FORMAT = "vitrim.engine/1"
ENGINE_FILE = "engine.json"
_TYPES = {
    "format": str,
    "runtime": str,
    "version": str,
    "precision": str,
    "batch": int,
    "files": dict,
    "inputs": list,
    "outputs": list,
    "options": dict,
    "bound_to": dict,
}


def write_engine(folder: Path, *, files: list[str], **facts: Any) -> dict[str, Any]:
    """Write `engine.json` beside files that a runtime built and return it; the first file is the one to load."""
    listed = {name: {"sha256": _sha256(folder / name), "size_bytes": (folder / name).stat().st_size} for name in files}
    engine = {"format": FORMAT, **facts, "load": files[0], "files": listed}
    _check(engine, folder)
    (folder / ENGINE_FILE).write_text(json.dumps(engine, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return engine


def read_engine(folder: Path) -> dict[str, Any]:
    """Read `engine.json` without looking at the files; raises InputError."""
    try:
        engine = json.loads((folder / ENGINE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{str(folder)!r} is not an engine: it has no {ENGINE_FILE}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{str(folder / ENGINE_FILE)!r} cannot be read: {error}") from error
    _check(engine, folder)
    return dict(engine)


def verify_files(folder: Path, engine: dict[str, Any]) -> None:
    """Compare every file with its digest; raises InputError for the first that differs."""
    for name, expected in engine["files"].items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"engine {str(folder)!r} lacks its file {name!r}; build it again")
        if path.stat().st_size != expected["size_bytes"] or _sha256(path) != expected["sha256"]:
            raise InputError(f"file {name!r} of engine {str(folder)!r} is not the one that was built; build it again")


def check_binding(engine: dict[str, Any], here: dict[str, str]) -> None:
    """Raise InputError where an engine was built for another machine or runtime than this one.

    A fact of `bound_to` with several values that will do has ` or ` between them.
    """
    bound = engine["bound_to"]
    differing = [name for name in sorted(bound) if here.get(name) not in str(bound[name]).split(" or ")]
    if differing:
        facts = "; ".join(f"{name} {bound[name]!r}, here {here.get(name)!r}" for name in differing)
        raise InputError(f"the engine was built for {facts}; build it again on this machine")


def engine_digest(folder: Path) -> str:
    """SHA-256 of `engine.json`, which holds the digests of all files: the engine's identity."""
    return _sha256(folder / ENGINE_FILE)


def _check(engine: Any, folder: Path) -> None:
    if not isinstance(engine, dict) or engine.get("format") != FORMAT:
        found = engine.get("format") if isinstance(engine, dict) else type(engine).__name__
        raise InputError(f"{str(folder / ENGINE_FILE)!r} has format {found!r}, this program reads {FORMAT!r}")
    for name, kind in _TYPES.items():
        if not isinstance(engine.get(name), kind):
            raise InputError(f"{str(folder / ENGINE_FILE)!r} is damaged: {name} is {engine.get(name)!r}")
    if engine.get("load") not in engine["files"]:
        raise InputError(f"{str(folder / ENGINE_FILE)!r} is damaged: load is {engine.get('load')!r}")
    for name, file in engine["files"].items():
        inside = name == Path(name).name and name not in ("", ".", "..")
        if not inside or not isinstance(file, dict) or {"sha256", "size_bytes"} - file.keys():
            raise InputError(f"{str(folder / ENGINE_FILE)!r} is damaged: file {name!r}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
