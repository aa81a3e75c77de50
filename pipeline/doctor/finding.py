"""What the doctor says of one thing that it looked at."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "fix"]
"""good | to be known, nothing stops | the target cannot be built or measured before it is mended"""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: State
    found: str
    remedy: str = ""


def good(what: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(what=what, state="ok", found=found)


def warning(what: str, found: str, remedy: str = "") -> Finding:
    """Worth knowing."""
    return Finding(what=what, state="warning", found=found, remedy=remedy)


def fix(what: str, found: str, remedy: str) -> Finding:
    """Stands in the way of the target."""
    return Finding(what=what, state="fix", found=found, remedy=remedy)


def in_range(what: str, found: str | None, versions: str, *, remedy: str, unknown: str) -> Finding:
    """Hold a version against a PEP 440 range. unknown: what to say where it could not be read."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        version = Version(found or "")
    except InvalidVersion:
        return warning(what, f"{unknown}; the target needs {versions}", "look yourself")
    if SpecifierSet(versions).contains(version, prereleases=True):
        return good(what, f"{found}, the target needs {versions}")
    return fix(what, f"{found}, the target needs {versions}", remedy)
