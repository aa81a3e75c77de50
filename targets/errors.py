"""All errors that vitrim raises on purpose.

VitrimError
├── InputError        the user's input is wrong: exit 2, one line, no traceback
│   ├── RecipeError       several problems of one recipe at once
│   └── UnknownNameError  a name that is not known, with the nearest known ones
├── StageError        a stage ran and could not do its work: exit 1
├── WorkerError       the worker process or a runtime failed, here or on a board: exit 1
├── DeviceLostError   the link to a board or the board itself is gone; trying again may help: exit 1
├── DeviceBusyError   somebody else holds the board: exit 1
├── DeviceRefusedError  the wrong board, key or state; trying again will not help: exit 2
└── StoreError        the store cannot be written or holds something broken: exit 2

A message says what, which value, what is allowed, what to do; lower case, no full stop, values with !r.
Anything else that reaches the command line is a defect of vitrim and keeps its traceback.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

LISTED = 30  # names in a message


class VitrimError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class InputError(VitrimError):
    """The user's input is wrong."""

    exit_code = 2


class RecipeError(InputError):
    """Every problem found in one recipe."""

    def __init__(self, origin: str, problems: Sequence[str]) -> None:
        self.origin = origin
        self.problems = tuple(problems)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(
            f"{origin}: {self.problems[0]}"
            if len(self.problems) == 1
            else f"{origin}: {len(self.problems)} problems\n{lines}"
        )


class UnknownNameError(InputError):
    """A name that is not known; the message suggests the nearest known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        self.kind, self.name = kind, name
        super().__init__(f"unknown {kind} {name!r}; {suggest(name, known)}{'; ' + hint if hint else ''}")


class StageError(VitrimError):
    """A stage ran and could not do its work."""


class WorkerError(VitrimError):
    """The worker process or a runtime failed, here or on a board."""


class DeviceLostError(VitrimError):
    """The link to a board, or the board, is gone. Says nothing of what was tested there; trying again may help."""


class DeviceBusyError(VitrimError):
    """Somebody else holds the board."""


class DeviceRefusedError(VitrimError):
    """The board is not the one that is meant, or not in a state to be used; trying again will not help."""

    exit_code = 2


class StoreError(VitrimError):
    """The store cannot be written, is full, or holds something broken."""

    exit_code = 2


def suggest(name: str, known: Iterable[str]) -> str:
    """Say what is close to a wrong name, else what there is: `did you mean 'x'?` or `known: a, b`."""
    names = sorted(known)
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(match) for match in close)}?"
    if not names:
        return "none are known"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"known: {', '.join(names[:LISTED])}{more}"
