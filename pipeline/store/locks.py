"""Who may write a key, and which entries are being read. Both are the kernel's locks: they end with their holder."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from targets.atomic import write_atomic
from targets.record import Record

POLL_SECONDS = 0.1
TELL_AFTER_SECONDS = 0.5
"""a holder that is gone within this time is not worth a message"""


class Holder(Record):
    """Who holds the lock of a key."""

    pid: int
    host: str
    since: datetime

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since:%Y-%m-%d %H:%M:%S} UTC"


Waiting = Callable[[Holder | None], None]
"""called once when a lock is held by someone else; None where it is not known by whom"""


class BusyError(Exception):
    """Somebody else holds the lock."""


@contextmanager
def locked(
    lock: Path, *, holder_file: Path | None = None, waiting: Waiting | None = None, timeout_s: float | None = None
) -> Iterator[None]:
    """Hold an exclusive lock; BusyError after `timeout_s` (None: wait as long as it takes, and tell `waiting` once)."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    begin, told = time.monotonic(), False
    while True:
        with open(lock, "ab") as file:
            if _is_taken(file, lock):
                try:
                    yield
                finally:
                    with suppress(OSError):
                        lock.unlink()  # those who wait see that the name is gone, and start over
                return
        waited_s = time.monotonic() - begin
        if timeout_s is not None and waited_s >= timeout_s:
            raise BusyError(str(lock))
        if waiting is not None and not told and waited_s >= TELL_AFTER_SECONDS:
            told = True
            waiting(read_holder(holder_file) if holder_file else None)
        time.sleep(POLL_SECONDS)


def _is_taken(file: BinaryIO, path: Path) -> bool:
    """Try to lock an open file; False where another holds it, or has removed it since it was opened."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return _is_at(file.fileno(), path)


def write_holder(path: Path) -> None:
    """Leave a note for those who wait."""
    holder = Holder(pid=os.getpid(), host=socket.gethostname(), since=datetime.now(UTC).replace(microsecond=0))
    write_atomic(path, holder.canonical_json().encode())


def read_holder(path: Path) -> Holder | None:
    """Read the note of a lock's holder; None where there is none to read."""
    with suppress(OSError, ValueError):
        return Holder.model_validate(json.loads(path.read_bytes()))
    return None


def lease(folder: Path) -> int | None:
    """Keep a folder from the collector until the returned descriptor is closed; None where there is no folder."""
    while True:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return None
        try:
            with suppress(
                OSError
            ):  # some network filesystems lock no folders; the collector then finds all of them in use
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _is_at(descriptor, folder):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # collected between open and lock; look again


@contextmanager
def unleased(folder: Path) -> Iterator[None]:
    """Hold a folder that nobody reads; BusyError where somebody does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError(str(folder)) from error
        yield
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder))
    except FileNotFoundError:
        return False
