"""What a device is to whoever uses one: it can be looked at, and held for a session in which jobs run."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from targets.devices.job import Health, Job, JobResult
from targets.devices.spec import DeviceSpec

Tell = Callable[[str, float | None], None]


class Session(Protocol):
    """A board that is held: nobody else measures there meanwhile.

    Everything survives a lost link: it is made again, transfers go on where they were, jobs are found by their keys.
    """

    facts: dict[str, Any]
    """`targets.facts.probe` of the board"""

    def push(self, path: Path) -> str:
        """Copy a file or folder there, verified there; what it has already is skipped. Returns its digest."""
        ...

    def run(self, job: Job, tell: Tell = lambda message, share: None) -> JobResult:
        """Start a job, or find the one of this key that runs or is done, and wait for its result.

        Raises WorkerError or InputError for what went wrong in it, DeviceLostError where the board is gone.
        """
        ...

    def cancel(self, key: str) -> None:
        """End a job, with all that it started."""
        ...

    def health(self) -> Health:
        """Time the reference graph."""
        ...


class Device(Protocol):
    """One board. Using it raises DeviceLostError, DeviceBusyError and DeviceRefusedError."""

    name: str
    spec: DeviceSpec

    def probe(self) -> dict[str, Any]:
        """Facts and state, plain JSON, see `targets.agent.state.board_state`; holds nothing."""
        ...

    def session(
        self, *, who: str, wait_seconds: float = 0, folder: Path | None = None
    ) -> AbstractContextManager[Session]:
        """Hold the board. who: for messages to others. folder: where answers are put; None: gone with the session."""
        ...
