"""Paths in a recipe: `${NAME}` is filled in, `~` is the home folder, relative ones become absolute."""

import os
import re
from pathlib import Path
from typing import Any

from targets.problems import Schema, allowed_at
from targets.profile import names_file
from targets.strict_yaml import COMMAND_LINE, Document, Place, show

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}$]*))?\}")


def make_absolute(document: Document, schema: Schema, folder: Path) -> None:
    """Replace every text that the schema calls a path, and every target that is a file; tells what cannot be.

    A relative path starts at the folder, but at the current one where the command line set it.
    """

    def walk(value: Any, place: Place) -> Any:
        if isinstance(value, dict):
            return {key: walk(one, (*place, key)) for key, one in value.items()}
        if isinstance(value, list):
            return [walk(one, (*place, index)) for index, one in enumerate(value)]
        if not isinstance(value, str):
            return value
        is_path = any(kind.get("format") == "path" for kind in allowed_at(schema, place))
        if not is_path and not (place[0] == "targets" and names_file(value)):
            return value
        base = Path.cwd() if document.line(place) == COMMAND_LINE else folder
        try:
            found = os.path.abspath(base / os.path.expanduser(_fill_in(value)))
            if not _is_text(found):
                raise ValueError(f"the name {show(found)} is not UTF-8; rename that file or folder")
        except ValueError as error:
            document.tell(place, str(error))
            document.unreadable.add(place)
            found = value
        return Path(found) if is_path else found

    document.data = walk(document.data, ())


def _is_text(path: str) -> bool:
    """Whether a path can stand in a report; bytes of a name that are no UTF-8 are half characters in Python."""
    return not any("\ud800" <= character <= "\udfff" for character in path)


def _fill_in(text: str) -> str:
    """Replace `${NAME}` and `${NAME:-default}`; an empty variable counts as unset. ValueError where one is unset."""
    if "${" in _VARIABLE.sub("", text):
        raise ValueError(f"a variable is written ${{NAME}} or ${{NAME:-default}}, got {show(text)}")

    def value_of(match: re.Match[str]) -> str:
        name, default = match.groups()
        value = os.environ.get(name) or default
        if value is None:
            shown = name if len(name) <= 60 else f"{name[:57]}..."
            raise ValueError(f"the environment variable {shown} is not set; set it, or write ${{{shown}:-default}}")
        return str(value)

    filled = _VARIABLE.sub(value_of, text)
    if not filled:
        raise ValueError("is an empty path; name a file or folder, or remove the key")
    return filled
