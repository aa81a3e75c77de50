"""`extends` of a target: the values of another profile, with one's own in their place.

Mappings are merged key by key; lists, single values, figures and facts are replaced whole, so that no value comes with
another's source. `name`, `summary` and `verified` are never taken over: they are true of one profile only.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from targets.errors import InputError
from targets.strict_yaml import Document, read_document, read_file

OWN = ("name", "summary", "verified")
"""keys that every profile says for itself"""


def read_target(path: Path, find: Callable[[str, Path], Path]) -> tuple[Document, Path | None]:
    """Read a profile's file with what it extends merged in; returns also the file that it extends.

    find: the file of a target's name or path, as it stands in a file of the folder. The document keeps the lines of
    the profile's own values. Raises InputError where either file cannot be read, or the other one extends a third.
    """
    document = _read(path)
    given = document.data.get("extends")
    if not isinstance(given, str):
        return document, None  # null, or wrong: the record tells
    try:
        origin = find(given, path.parent)
    except InputError as error:
        document.tell(("extends",), str(error))
        document.refuse_problems()
        raise
    base = _read(origin).data
    if base.get("extends") is not None:
        raise InputError(
            f"target {str(path)!r} extends {given!r}, which extends {base['extends']!r} itself; "
            "one level is allowed: extend that one, and write the values between out"
        )
    kept = {key: value for key, value in base.items() if key not in OWN}
    document.data = merge(kept, {key: value for key, value in document.data.items() if key != "extends"})
    return document, origin


def merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Put one's own values in place of the base's; null takes a value away."""
    merged = dict(base)
    for key, value in own.items():
        below = base.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and "value" not in {*value, *below}:
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def _read(path: Path) -> Document:
    return read_document(read_file(path, what="target"), origin=f"target {str(path)!r}")
