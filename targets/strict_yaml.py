"""Read YAML that a person wrote: safe, bounded, no key twice; values with their lines; every problem at once.

Scalars follow YAML 1.2, so that they mean what they look like: `no` is a word, `12:30` is a text, `1e3` is a number.
(PyYAML's YAML 1.1 makes them False, 750 and a text.)
"""

import re
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from targets.errors import InputError, RecipeError

Place = tuple[str | int, ...]
"""where a value stands: keys and positions from the top"""

COMMAND_LINE = 0
"""line of a value that stands in no line, because `--set` wrote it"""
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
    """What a YAML text holds, and what is wrong with it."""

    origin: str
    """for messages: `recipe 'a.yaml'`"""
    data: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    """first line of every value, 1-based"""
    problems: list[tuple[int, str]] = field(default_factory=list)
    """line and sentence"""
    unreadable: set[Place] = field(default_factory=set)
    """values that are told already and stand as None: nothing more is said of them"""
    values: int = 0

    def line(self, place: Place) -> int | None:
        """Line of a value, or of the nearest one around it; None where there is none but the whole."""
        return next((self.lines[place[:end]] for end in range(len(place), 0, -1) if place[:end] in self.lines), None)

    def tell(self, place: Place, problem: str, *, line: int | None = None) -> None:
        """Note a problem of one value."""
        if place in self.unreadable:
            return
        line = self.line(place) if line is None else line
        stands = "" if line is None else " (--set)" if line == COMMAND_LINE else f" (line {line})"
        self.problems.append((line or 0, f"{spell(place) or 'all of it'}: {problem}{stands}"))

    def refuse_problems(self) -> None:
        """Raise RecipeError with all problems, in the order of their lines, where there are any."""
        if self.problems:
            raise RecipeError(self.origin, [sentence for _, sentence in sorted(self.problems, key=lambda one: one[0])])


def read_file(path: Path, *, what: str, hint: str = "") -> str:
    """Return the text of a YAML file; raises InputError. what: for messages, e.g. `target`; hint: how to get a file."""
    origin = f"{what} {str(path)!r}"
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode("utf-8", errors="strict" if len(raw) <= MAX_BYTES else "replace")
    except OSError as error:
        raise InputError(f"{origin} cannot be read: {error.strerror or error}{hint}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{origin} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    return text


def read_document(text: str, *, origin: str) -> Document:
    """Read keys and values from one YAML document; raises InputError, beginning with the origin, where it has none."""
    document = _read(text, origin)
    if not isinstance(document.data, dict):
        document.refuse_problems()
        held = "nothing" if document.data is None else show(document.data)
        raise InputError(f"{origin} must hold keys and values, it holds {held}")
    return document


def read_value(text: str) -> Any:
    """Read one value as it would stand in a file; ValueError where it is not valid YAML."""
    try:
        document = _read(text, "the value")
    except InputError as error:
        raise ValueError(str(error)) from error
    if document.problems:
        raise ValueError(document.problems[0][1].removeprefix("all of it: "))
    return document.data


def spell(place: Place) -> str:
    """Write a place as people do: `steps[1].prune_mlp.keep`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{_word(part)}" for part in place)
    return text.removeprefix(".")


def show(value: Any) -> str:
    """Write a value for a message, in one line of at most 80 characters: as YAML, with quotes around texts.

    The middle of a longer one is left out: a path says most at its end.
    """
    text = _flow(value)
    return text if len(text) <= 80 else f"{text[:39]} ... {text[-36:]}"


def _word(key: str) -> str:
    """A key for a message: as it is, unless it would break the line or hide in it."""
    return key if key.isprintable() and 0 < len(key) <= 60 else show(key)


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_word(key)}: {_flow(one)}' for key, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(str(value) if isinstance(value, Path) else value)


class _TooMuchError(Exception):
    """The document is larger than anything a person writes."""


def _read(text: str, origin: str) -> Document:
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise InputError(f"{origin} has more than {MAX_BYTES // 1024} KiB; a page of text is expected")
    document = Document(origin)
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


def _value(node: yaml.Node, place: Place, document: Document) -> Any:
    line = node.start_mark.line + 1
    document.lines.setdefault(place, line)  # a key's line, where it has one
    document.values += 1
    if document.values > MAX_VALUES:
        raise _TooMuchError(f"holds more than {MAX_VALUES:,} values once its aliases are written out")
    if len(place) > MAX_DEPTH:  # an alias to what it stands in never ends
        raise _TooMuchError(f"is nested more than {MAX_DEPTH} levels deep")
    kind = node.tag.removeprefix(TAG)
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _mapping(node, place, document)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_value(item, (*place, index), document) for index, item in enumerate(node.value)]
    try:
        return _scalar(kind, node)
    except ValueError as error:
        document.tell(place, str(error), line=line)
        document.unreadable.add(place)
        return None


def _mapping(node: yaml.MappingNode, place: Place, document: Document) -> dict[str, Any]:
    found: dict[str, Any] = {}
    first: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        try:
            key = _text(key_node.value)
        except ValueError as error:
            document.tell(place, f"a key {error}", line=line)
            continue
        if key == "<<":
            document.tell(place, "'<<' is not understood; write the values out", line=line)
        elif key in found:
            document.tell(place, f"key {show(key)} stands twice, first in line {first[key]}", line=line)
        else:
            first[key] = line
            document.lines[(*place, key)] = line
            found[key] = _value(value_node, (*place, key), document)
    return found


def _scalar(kind: str, node: yaml.Node) -> Any:
    """Make a value of a scalar; ValueError where its tag does not fit it."""
    text = node.value
    if not isinstance(node, yaml.ScalarNode) or kind not in ("null", "bool", "int", "float", "str"):
        raise ValueError(f"values of kind {kind!r} are not understood; write plain text, numbers, lists and keys")
    try:
        match kind:
            case "null":
                return None
            case "bool":
                return {"true": True, "false": False}[text.lower()]
            case "int":
                return int(text, base={"0o": 8, "0x": 16}.get(text[:2], 10))
            case "float":
                return _number(text.lower())
    except (KeyError, ValueError):  # `!!int abc`, or thousands of digits
        raise ValueError(f"cannot be read as {kind}: {show(text)}") from None
    return _text(text)


def _text(given: Any) -> str:
    """A text, with the two halves that JSON writes for one character joined; ValueError where it is none."""
    if not isinstance(given, str) or "\0" in given:
        raise ValueError("must be a text")
    try:
        return given.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError(f"has half a character: {given!r:.60}") from None


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
        problem = "a second document begins; one is expected"
    return problem + place
