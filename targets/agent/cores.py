"""Which logical processors this process runs on: all its threads, those of a runtime too. Standard library only."""

import os

from targets.errors import InputError


class Cores:
    """The processors that were allowed at the start, and those that an engine is pinned to."""

    def __init__(self) -> None:
        self._allowed = allowed_cores()

    def pin(self, wanted: list[int]) -> None:
        """Run on these from now on, and so will every thread that is started; empty: on all that were allowed.

        Raises InputError for processors that are not there, or that this process may not use.
        """
        lacking = sorted(set(wanted) - self._allowed)
        if lacking:
            allowed = spans(self._allowed) if self._allowed else "none: this system does not tell"
            raise InputError(
                f"the engine is for the logical processors {spans(set(wanted))}, and this process may not use "
                f"{spans(set(lacking))}; it may use {allowed}: change `cores` of the target"
            )
        if self._allowed:
            os.sched_setaffinity(0, wanted or self._allowed)


def allowed_cores() -> set[int]:
    """Logical processors that this thread may use; empty where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def spans(cores: set[int]) -> str:
    """`0-3, 6`."""
    found: list[list[int]] = []
    for one in sorted(cores):
        if found and found[-1][1] == one - 1:
            found[-1][1] = one
        else:
            found.append([one, one])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in found)
