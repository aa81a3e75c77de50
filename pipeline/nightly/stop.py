"""When a night ends before its work does: at its deadline, or because somebody says so."""

import threading
from datetime import UTC, datetime

from targets.errors import VitrimError


class StoppedError(VitrimError):
    """The night is over; what was under way was given up and will be done again."""


class Stop:
    """Asked by everything that takes long."""

    def __init__(self, deadline: datetime | None = None) -> None:
        """deadline: with its time zone."""
        self.deadline = deadline
        self._asked = threading.Event()

    def ask(self) -> None:
        """End the night now."""
        self._asked.set()

    @property
    def asked(self) -> bool:
        """Whether somebody ended it."""
        return self._asked.is_set()

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and datetime.now(UTC) >= self.deadline

    @property
    def over(self) -> bool:
        """Whether to give up what is under way."""
        return self.asked or self.late

    def check(self) -> None:
        """Raise StoppedError where the night is over."""
        if self.over:
            raise StoppedError(self.reason)

    @property
    def reason(self) -> str:
        """Why it is over, in words."""
        if self.asked or self.deadline is None:
            return "the run was interrupted"
        return f"the deadline of {self.deadline.astimezone():%Y-%m-%d %H:%M} had passed"

    def wait(self, seconds: float) -> bool:
        """Sleep so long, or until the night is over; returns whether it is."""
        if self.deadline is not None:
            left = (self.deadline - datetime.now(UTC)).total_seconds()
            seconds = max(0.0, min(seconds, left))
        self._asked.wait(seconds)
        return self.over
