"""YAML text → plain data with line numbers: safe, bounded, no key twice.

Scalars follow YAML 1.2, so that they mean what they look like: `no` is a word, `12:30` is a text, `1e3` is a number.
(PyYAML's YAML 1.1 makes them False, 750 and a text.)
"""

import re
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import yaml

from targets.errors import InputError

Place = tuple[str | int, ...]
"""where a value stands: keys and positions from the top"""

MAX_BYTES = 256 * 2**10
MAX_VALUES = 20_000
"""once aliases are written out: a few lines of them can stand for billions"""
MAX_DEPTH = 40
TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Tells scalars apart by the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema)."""

    yaml_implicit_resolvers: dict[str, Any] = {}


for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+(?:_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(TAG + _kind, re.compile(rf"^(?:{_pattern})$"), _first)


@dataclass
class Document:
    """What a YAML text holds."""

    data: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    """first line of every value, 1-based"""
    problems: list[str] = field(default_factory=list)
    """what is wrong although it could be read"""
    values: int = 0


def read_document(text: str, *, origin: str) -> Document:
    """Read one YAML document; raises InputError, beginning with the origin, where it cannot be read at all."""
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise InputError(f"{origin} has more than {MAX_BYTES // 1024} KiB; a recipe is a page of text")
    document = Document()
    try:
        node = yaml.compose(text, Loader=_Loader)
        document.data = _value(node, (), document) if node is not None else None
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{origin} is not valid YAML: {_explain(error)}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise InputError(f"{origin} is not valid YAML: it is nested without end") from error
    except _TooMuchError as error:
        raise InputError(f"{origin} {error}") from error
    return document


def read_value(text: str) -> Any:
    """Read one value as it would stand in a recipe; ValueError where it is not valid YAML."""
    try:
        document = read_document(text, origin="it")
    except InputError as error:
        raise ValueError(str(error)) from error
    if document.problems:
        raise ValueError(document.problems[0])
    return document.data


def spell(place: Place) -> str:
    """Write a place as people do: `steps[1].prune_mlp.keep`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


class _TooMuchError(Exception):
    """The document is larger than any recipe."""


def _value(node: yaml.Node, place: Place, document: Document) -> Any:
    document.lines.setdefault(place, node.start_mark.line + 1)
    document.values += 1
    if document.values > MAX_VALUES:
        raise _TooMuchError(f"holds more than {MAX_VALUES:,} values once its aliases are written out")
    if len(place) > MAX_DEPTH:  # an alias to what it stands in never ends
        raise _TooMuchError(f"is nested more than {MAX_DEPTH} levels deep")
    if isinstance(node, yaml.MappingNode) and node.tag == f"{TAG}map":
        return _mapping(node, place, document)
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{TAG}seq":
        return [_value(item, (*place, index), document) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        try:
            return _scalar(node.tag.removeprefix(TAG), node.value)
        except ValueError as error:
            document.problems.append(f"{spell(place) or 'all of it'}: {error} (line {node.start_mark.line + 1})")
            return None
    problem = f"{spell(place) or 'all of it'}: a recipe has no values of kind {node.tag.removeprefix(TAG)!r}"
    document.problems.append(f"{problem} (line {node.start_mark.line + 1})")
    return None


def _mapping(node: yaml.MappingNode, place: Place, document: Document) -> dict[str, Any]:
    found: dict[str, Any] = {}
    first: dict[str, int] = {}
    where = spell(place) or "top level"
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            document.problems.append(f"{where}: a key must be a word (line {line})")
            continue
        key = key_node.value
        if key == "<<":
            document.problems.append(f"{where}: '<<' is not understood; write the values out (line {line})")
        elif key in found:
            document.problems.append(f"{where}: key {key!r} stands twice (lines {first[key]} and {line})")
        else:
            first[key] = line
            document.lines[(*place, key)] = line
            found[key] = _value(value_node, (*place, key), document)
    return found


def _scalar(kind: str, text: str) -> Any:
    """Make a value of a scalar; ValueError where its tag does not fit it."""
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind == "int":
        return int(text, base={"0o": 8, "0x": 16}.get(text[:2], 10))
    if kind == "float":
        return _number(text.lower())
    if kind != "str":
        raise ValueError(f"a recipe has no values of kind {kind!r}")
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("has characters that are no text")
    return text


def _number(text: str) -> int | float:
    """A number with a point or an exponent; `1e3` without a point is the whole number 1000."""
    value = float(text.replace(".inf", "inf").replace(".nan", "nan"))
    return int(value) if "." not in text and isfinite(value) and value.is_integer() and abs(value) < 2**53 else value


def _explain(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "it cannot be read"
    mark = error.problem_mark or error.context_mark
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    if "'\\t'" in problem:
        problem = "a tab; YAML indents with spaces"
    elif problem.startswith("mapping values are not allowed"):
        problem += "; a text with a colon needs quotes, and the keys of one mapping the same indentation"
    elif "expected a single document" in (error.context or ""):
        problem = "a second document begins; a recipe is one"
    return problem + place
