"""Protocol buffers' text format, as Triton's config.pbtxt needs it."""

from collections.abc import Iterator, Mapping
from typing import Any


class Word(str):
    """A name that stands without quotes: a value of an enumeration."""


def to_text(message: Mapping[str, Any]) -> str:
    """Write a message. Values: Word, text, whole number, truth, mapping (a message), list (of any of these)."""
    return "".join(f"{line}\n" for line in _lines(message))


def entries(pairs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A map field, which is spelled as a list of messages with key and value."""
    return [{"key": key, "value": value} for key, value in pairs.items()]


def _lines(message: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for name, value in message.items():
        if isinstance(value, list) and all(isinstance(one, int) for one in value):
            yield f"{indent}{name}: [ {', '.join(map(str, value))} ]"
            continue
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                yield f"{indent}{name} {{"
                yield from _lines(one, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(one)}"


def _scalar(value: Any) -> str:
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return f'"{"".join(map(_escaped, value.encode()))}"'
    raise TypeError(f"no spelling for {type(value).__name__}")


def _escaped(byte: int) -> str:
    sign = chr(byte)
    return sign if 32 <= byte < 127 and sign not in '"\\' else f"\\{byte:03o}"
