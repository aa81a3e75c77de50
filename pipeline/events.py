"""What a build tells whoever watches: small values, no printing."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something happened during a build."""

    kind: str
    """plan, step_started, progress, step_finished, waiting, note, warning, report"""
    target: str = ""
    step: str = ""
    """title of the step or check"""
    index: int = 0
    """1-based position among `total`"""
    total: int = 0
    message: str = ""
    share: float | None = None
    """part done, 0..1; None where unknown"""
    seconds: float | None = None
    cached: bool = False
    facts: dict[str, Any] | None = None


class Watcher(Protocol):
    """Receives every event; the command line has one for terminals, one for plain lines and one for JSON."""

    def __call__(self, event: Event, /) -> None:
        """Take one event."""


def ignore(event: Event) -> None:
    """Watch nothing."""
