"""What pydantic finds wrong with a recipe, as sentences with place, value, what is allowed and line."""

from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.recipe.text import Place, spell
from targets.strict_yaml import known_keys

_PLAINER = {
    "path_type": "must be a path",
    "tuple_type": "must be a list",
    "dict_type": "must be keys and values",
    "model_type": "must be keys and values",
    "model_attributes_type": "must be keys and values",
}
"""what pydantic says in Python's words"""


class Wording:
    """Words problems of one recipe: it knows the data, the lines and what the command line set."""

    def __init__(self, data: Any, lines: dict[Place, int], overridden: set[Place]) -> None:
        self._data, self._lines, self._overridden = data, lines, overridden

    def at(self, place: Place, text: str) -> str:
        """A sentence about a place, ending with where it stands."""
        return f"{spell(place) or 'all of it'}: {text}{self._origin(place)}"

    def of(self, error: ValidationError, model: type[BaseModel], prefix: Place = ()) -> list[str]:
        """Every problem of a validation, one sentence a place."""
        from targets.errors import suggest

        found: dict[Place, list[str]] = {}
        for one in error.errors():
            inside = self._real(one["loc"], prefix, absent=one["type"] in ("missing", "extra_forbidden"))
            if one["type"] == "extra_forbidden":
                text = f"unknown key; {suggest(str(inside[-1]), known_keys(model, inside[:-1]))}"
            elif one["type"] == "missing":
                text = "is missing"
            else:
                text = _PLAINER.get(one["type"], one["msg"].removeprefix("Value error, "))
                text = text[0].lower() + text[1:]
                if not isinstance(one["input"], dict) and repr(one["input"]) not in text:
                    text += f", got {_short(one['input'])}"
            texts = found.setdefault((*prefix, *inside), [])
            if text not in texts:
                texts.append(text)
        return [self.at(place, "; or ".join(texts)) for place, texts in found.items()]

    def _real(self, loc: tuple[int | str, ...], prefix: Place, *, absent: bool) -> Place:
        """A place without what pydantic adds: names of the branches of a union."""
        value = self._data
        for part in prefix:
            value = value[part] if _has(value, part) else None
        place: list[str | int] = []
        for position, part in enumerate(loc):
            if _has(value, part):
                value = value[part]
            elif not (absent and position == len(loc) - 1):
                continue
            place.append(part)
        return tuple(place)

    def _origin(self, place: Place) -> str:
        for length in range(len(place), 0, -1):
            if place[:length] in self._overridden:
                return " (--set)"
            if place[:length] in self._lines:
                return f" (line {self._lines[place[:length]]})"
        return ""


def _has(value: Any, part: int | str) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
