"""Check plain data against a record, and say in one sentence per value what is wrong, what is allowed and what stands.

What is allowed is read from the record's JSON Schema, so that a limit is written once, at the field.
"""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from targets.errors import suggest
from targets.strict_yaml import Document, Place, read_document, read_file, show

Schema = dict[str, Any]
"""a JSON Schema, or a part of one"""

M = TypeVar("M", bound=BaseModel)


def load_record(model: type[M], path: Path, *, what: str) -> M:
    """Read a record from a YAML file; raises RecipeError with every problem. what: for messages, e.g. `target`."""
    document = read_document(read_file(path, what=what), origin=f"{what} {str(path)!r}")
    record = check(model, document.data, document)
    document.refuse_problems()
    assert record is not None  # else a problem was told
    return record


def check(
    model: type[M], data: Any, document: Document, *, place: Place = (), schema: Schema | None = None
) -> M | None:
    """Make a record of plain data that stands at a place of a document; tells the document what is wrong.

    Types are taken at their word: `"3"` and `true` are no numbers. schema: in place of the model's own.
    """
    try:
        return model.model_validate(_frozen(data), strict=True)
    except ValidationError as error:
        _tell(error, data, document, place, schema or model.model_json_schema())
        return None


def allowed_at(schema: Schema, place: Place) -> list[Schema]:
    """Parts of a schema that say what may stand at a place, one for each kind of value."""
    found = _kinds(schema, schema)
    for part in place:
        inner = [one for kind in found for one in _inside(kind, part)]
        found = [kind for one in inner for kind in _kinds(one, schema)]
    return found


def describe(kinds: list[Schema]) -> str:
    """Say what is allowed: `'auto', or a number at least 0`."""
    texts = dict.fromkeys(_describe(kind) for kind in sorted(kinds, key=lambda kind: kind.get("type") == "null"))
    return ", or ".join(texts) or "something else"


def _frozen(data: Any) -> Any:
    """Lists as tuples, which is what records hold."""
    if isinstance(data, dict):
        return {key: _frozen(value) for key, value in data.items()}
    return tuple(_frozen(value) for value in data) if isinstance(data, list) else data


def _tell(error: ValidationError, data: Any, document: Document, prefix: Place, schema: Schema) -> None:
    found: dict[Place, str] = {}
    for one in error.errors():
        place = _real(one["loc"], data, absent=one["type"] == "missing")
        allowed = describe(allowed_at(schema, place))
        if one["type"] == "extra_forbidden":
            keys = {key for kind in allowed_at(schema, place[:-1]) for key in kind.get("properties", ())}
            text = f"unknown key; {suggest(str(place[-1]), keys)}"
        elif one["type"] == "missing" and isinstance(one["loc"][-1], str):  # else a list is too short
            text = f"is missing; it must be {allowed}"
        elif one["type"] == "value_error":
            text = one["msg"].removeprefix("Value error, ")
            if ", got " not in text and not isinstance(one["input"], dict):
                text += f", got {show(one['input'])}"
        else:
            text = f"must be {allowed}, got {show(one['input'])}"
        found[place] = text
    for place, text in found.items():
        # A wrong element is told, and not that the list around it is, besides, no number.
        if not any(other[: len(place)] == place for other in found if len(other) > len(place)):
            document.tell((*prefix, *place), text)


def _real(loc: tuple[int | str, ...], data: Any, *, absent: bool) -> Place:
    """A place without what pydantic adds to it: names of the branches of a union."""
    place: list[str | int] = []
    for position, part in enumerate(loc):
        if isinstance(data, dict) and (part in data or (absent and position == len(loc) - 1)):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            continue
        place.append(part)
    return tuple(place)


def _kinds(schema: Schema, root: Schema) -> list[Schema]:
    """The alternatives of a schema, with references followed."""
    if "$ref" in schema:
        return _kinds(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    parts = (
        schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    )  # pydantic before 2.10 wraps a reference into allOf
    return [kind for one in parts for kind in _kinds(one, root)] if parts else [schema]


def _inside(kind: Schema, part: str | int) -> list[Schema]:
    """What a schema allows for one of its keys or elements."""
    if isinstance(part, int):
        fixed = kind.get("prefixItems", [])
        return [fixed[part]] if part < len(fixed) else [kind["items"]] if isinstance(kind.get("items"), dict) else []
    inner = kind.get("properties", {}).get(part, kind.get("additionalProperties"))
    return [inner] if isinstance(inner, dict) else []


def _describe(kind: Schema) -> str:
    if "const" in kind:
        return repr(kind["const"])
    if "enum" in kind:
        return " or ".join(repr(value) for value in kind["enum"])
    match kind.get("type"):
        case "object":
            return "keys and values"
        case "array":
            return _describe_list(kind)
        case "string":
            if kind.get("format") == "path":
                return "a path"
            return f"a text that matches {kind['pattern']}" if "pattern" in kind else "a text"
        case "integer" | "number" as numeric:
            return f"a {'whole ' * (numeric == 'integer')}number{_limits(kind)}"
        case "boolean":
            return "true or false"
    return "null" if kind.get("type") == "null" else "any value"


def _describe_list(kind: Schema) -> str:
    if "prefixItems" in kind:
        return f"[{', '.join(_describe(one) for one in kind['prefixItems'])}]"
    least = kind.get("minItems", 0)
    return f"a list of at least {least}" if least else "a list"


def _limits(kind: Schema) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    parts = [f"{word} {kind[name]:.12g}" for name, word in words.items() if name in kind]
    return f" {' and '.join(parts)}" if parts else ""
