"""Source: what can be asked at every sample. It says once what it lacks and what it is; reading never raises."""

from typing import Any, Protocol


class Source(Protocol):
    """One place to read from.

    A value that is not told is left out of the readings.
    """

    name: str
    obstacle: str | None
    """why it tells nothing here; None where it tells something"""
    facts: dict[str, Any]
    """what does not change while something is measured"""

    def read(self) -> dict[str, Any]:
        """Values of now, by the names that `sampler` lists."""
        ...
