"""Values that say where something is: `${NAME}` is filled in, and relative paths become absolute."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.recipe.text import Place
from targets.record import Record

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def fill_in(value: Any, place: Place = (), environment: Mapping[str, str] = os.environ) -> tuple[Any, dict[Place, str]]:
    """Replace `${NAME}` and `${NAME:-default}` in every text; returns the value and what is wrong by place.

    As in a shell, an empty variable counts as unset where there is a default.
    """
    problems: dict[Place, str] = {}

    def text_of(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        found = environment.get(name)
        if found or (found is not None and default is None):
            return found
        if default is None:
            problems[place] = f"the environment variable {name} is not set; set it, or write ${{{name}:-default}}"
            return match.group(0)
        return str(default)

    if isinstance(value, str):
        return _VARIABLE.sub(text_of, value), problems
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        filled = {}
        for key, one in inner:
            filled[key], found = fill_in(one, (*place, key), environment)
            problems |= found
        return (filled if isinstance(value, dict) else list(filled.values())), problems
    return value, problems


class Bases:
    """What relative paths are relative to: the recipe's folder, or the current one for what the command line set."""

    def __init__(self, folder: Path, overridden: set[Place]) -> None:
        self._folder, self._overridden = folder, overridden

    def absolute(self, path: Path, place: Place) -> Path:
        """A path made absolute; `~` is the home folder."""
        here = any(place[:length] in self._overridden for length in range(1, len(place) + 1))
        base = Path.cwd() if here else self._folder
        return Path(os.path.abspath(base / path.expanduser()))

    def within(self, record: Record, place: Place) -> dict[str, Any]:
        """The fields of a record whose paths change, with absolute paths."""
        changed: dict[str, Any] = {}
        for name, field in type(record).model_fields.items():
            value, inside = getattr(record, name), (*place, name)
            if isinstance(value, Path):
                changed[name] = self.absolute(value, inside)
            elif isinstance(value, tuple) and any(isinstance(one, Path) for one in value):
                changed[name] = tuple(self.absolute(one, inside) for one in value)
            elif isinstance(value, str) and _says_path(field.json_schema_extra):
                changed[name] = str(self.absolute(Path(value), inside))
            elif isinstance(value, BaseModel) and isinstance(value, Record):
                inner = self.within(value, inside)
                if inner:
                    changed[name] = value.model_copy(update=inner)
        return changed


def _says_path(extra: Any) -> bool:
    return isinstance(extra, dict) and extra.get("format") == "path"
