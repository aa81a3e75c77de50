"""Channel: a process of the agent on a board, asked in lines of JSON; every answer has a time limit."""

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

from targets.agent.receive import MARK
from targets.devices.link import Link, last_words
from targets.errors import (
    DeviceLostError,
    DeviceRefusedError,
    InputError,
    StoreError,
    UnknownNameError,
    VitrimError,
    WorkerError,
)

LEAVE_SECONDS = 5
NOISE_BYTES = 1 << 20
"""of a login shell, before it is taken for something that is not our agent"""
_KINDS = {one.__name__: one for one in (DeviceRefusedError, StoreError, WorkerError)}
_INPUT = (InputError.__name__, UnknownNameError.__name__, "RecipeError")


class Channel:
    """One process on the board, with its standard streams."""

    def __init__(self, link: Link, remote: Sequence[str]) -> None:
        self._link, self._unread, self._noise = link, b"", 0
        self._words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # standard error: a pipe could fill up
        self._process = subprocess.Popen(
            link.words(remote),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=dict(link.environment),
            start_new_session=True,  # Ctrl-C reaches us alone
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)

    def ask(self, request: dict[str, Any], *, seconds: float) -> Any:
        """Send a request and wait for its answer."""
        self.write(json.dumps(request).encode() + b"\n", seconds=seconds)
        return result_of(self.line(seconds=seconds))

    def line(self, *, seconds: float) -> dict[str, Any]:
        """The next line of ours, whatever a login shell prints around it."""
        end, mark = time.monotonic() + seconds, MARK.encode()
        while True:
            while b"\n" not in self._unread:
                self._unread += self.read(seconds=end - time.monotonic())
            line, _, self._unread = self._unread.partition(b"\n")
            found = line.partition(mark)[2]
            if found:
                with suppress(ValueError):
                    told = json.loads(found)
                    if isinstance(told, dict):
                        return told
            self._noise += len(line)
            if self._noise > NOISE_BYTES:
                raise DeviceRefusedError("what answers there is not our agent: it prints without end")

    def read(self, *, seconds: float) -> bytes:
        """Some bytes as they come."""
        ready, _, _ = select.select([self._out], [], [], max(0.0, seconds))
        if not ready:
            raise DeviceLostError(f"no answer for {max(seconds, 0.0):.0f} s" if seconds > 0 else "no answer in time")
        data = os.read(self._out, 1 << 16)
        if not data:
            raise self.death()
        return data

    def rest(self) -> bytes:
        """What was read beyond the last line."""
        data, self._unread = self._unread, b""
        return data

    def write(self, data: bytes, *, seconds: float) -> None:
        """Send bytes; seconds: without any progress."""
        view = memoryview(data)
        while view:
            _, ready, _ = select.select([], [self._in], [], seconds)
            if not ready:
                raise DeviceLostError(f"the board took no byte for {seconds:.0f} s")
            try:
                view = view[os.write(self._in, view) :]
            except BrokenPipeError:
                raise self.death() from None

    def finish_writing(self) -> None:
        """Close its standard input."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def death(self) -> VitrimError:
        """Why the process ended."""
        try:
            code = self._process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            return DeviceLostError(f"the agent closed its output and did not end{last_words(self._said())}")
        return self._link.trouble(code, self._said())

    def close(self, *, at_once: bool = False) -> None:
        """End it: it is let go by closing its standard input, and after some seconds ended here."""
        assert self._process.stdout is not None
        self.finish_writing()
        try:
            self._process.wait(0 if at_once else LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.terminate()  # ssh then removes the socket of its shared connection
            try:
                self._process.wait(1)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process.stdout.close()
        self._words.close()

    def _said(self) -> str:
        return os.pread(self._words.fileno(), 8192, 0).decode(errors="replace")


def result_of(answer: dict[str, Any]) -> Any:
    """What an agent answered; raises its error as ours."""
    if "error" not in answer:
        return answer["result"]
    raise error_of(answer["error"]["kind"], answer["error"]["message"])


def error_of(kind: str, message: str) -> VitrimError:
    """An error that happened on a board."""
    if kind in _INPUT:
        return InputError(message)
    if kind in _KINDS:
        return _KINDS[kind](message)
    return WorkerError(f"the agent failed: {message}" if kind == "defect" else message)
