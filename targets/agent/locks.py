"""Locks of the kernel: whoever holds one and dies, in whatever way, holds it no more.

A lock belongs to an opened file, so a child that inherits the descriptor holds it as well, and until it ends.
"""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.2


def try_lock(path: Path, *, wait_seconds: float = 0) -> int | None:
    """Descriptor of a file that is locked for us alone; None where others hold it for longer than we wait."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            if time.monotonic() >= end:
                os.close(descriptor)
                return None
        time.sleep(POLL_SECONDS)


def is_locked(path: Path) -> bool:
    """Whether somebody holds it now."""
    if not path.exists():
        return False
    descriptor = try_lock(path)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def write_holder(descriptor: int, holder: dict[str, Any]) -> None:
    """Say in a locked file who holds it: for messages, the kernel alone decides."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def read_holder(path: Path) -> dict[str, Any]:
    """Who holds, or last held, a lock; empty where it does not say."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
