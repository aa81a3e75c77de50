"""Options of a runtime in one table, checked strictly. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from targets.errors import InputError, suggest

BUILD, LOAD = "build", "load"


@dataclass(frozen=True)
class Option:
    """One option: what it may be, where it counts, what it means."""

    default: Any
    meaning: str
    whole: tuple[int, int] | None = None
    """least and most, where it is a whole number"""
    choices: tuple[str, ...] = ()
    boolean: bool = False
    text: bool = False
    several: bool = False
    """a text, or a list of them"""
    runtimes: tuple[str, ...] = ()
    """empty: all of its table"""
    when: tuple[str, ...] = (BUILD,)


def table_of(runtimes: tuple[str, ...], options: Mapping[str, Option]) -> dict[str, Option]:
    """Options of several runtimes; one that names none is of all of them."""
    return {name: replace(one, runtimes=one.runtimes or runtimes) for name, one in options.items()}


_OURS = {"optimized": (LOAD,), "batch": (LOAD,), "precision": (LOAD,)}
"""what the agent adds at loading, where it says nothing to an engine"""


def read_table(table: Mapping[str, Option], runtime: str, when: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of a build or a load; returns all that apply, defaults filled in. Raises InputError."""
    known = {name: one for name, one in table.items() if runtime in one.runtimes and when in one.when}
    for name in given:
        if name not in known and when not in _OURS.get(name, ()):
            raise InputError(_unknown(table, runtime, when, name, list(known)))
    found = {}
    for name, option in known.items():
        value = given.get(name)
        found[name] = option.default if value is None else _checked(name, option, value)
    return found


def _unknown(table: Mapping[str, Option], runtime: str, when: str, name: str, known: list[str]) -> str:
    if name not in table:
        return f"runtime {runtime!r} has no option {name!r} at {when}; {suggest(name, known)}"
    option = table[name]
    if runtime not in option.runtimes:
        return f"option {name!r} is one of runtime {option.runtimes[0]!r}, not of {runtime!r}; leave it out"
    return f"option {name!r} counts at {option.when[0]}, not at {when}; give it there"


def _checked(name: str, option: Option, value: Any) -> Any:
    if option.boolean:
        if not isinstance(value, bool):
            raise InputError(f"option {name!r} is true or false, got {value!r}")
    elif option.choices:
        if value not in option.choices:
            raise InputError(f"option {name!r} is one of {', '.join(option.choices)}, got {value!r}")
    elif option.whole:
        least, most = option.whole
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InputError(f"option {name!r} is a whole number from {least} to {most}, got {value!r}")
    elif option.several:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, (list, tuple)) or not values or not all(isinstance(one, str) for one in values):
            raise InputError(f"option {name!r} is a text like '8.6' or a list of such, got {value!r}")
        return list(dict.fromkeys(values))
    elif not isinstance(value, str) or not value:
        raise InputError(f"option {name!r} is a path, got {value!r}")
    return value
