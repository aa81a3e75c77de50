"""A board's side of a session: it holds the board's lock, starts jobs, and says how they go, until the link is gone.

A request is a line {"do": name, ...}, the answer {"result": ...} or {"error": ...}. All of them may be sent again after
a lost link. A job is a process of its own that inherits the lock: it goes on without us, nobody else gets the board
meanwhile, and the next session with our token finds it by its key.
"""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from targets.agent.locks import is_locked, read_holder, try_lock, write_holder
from targets.agent.shelf import Shelf, check_digest
from targets.agent.state import PROTOCOL, board_state, boot_of
from targets.atomic import write_atomic
from targets.errors import InputError, VitrimError
from targets.worker import ROOT, agent_command

FOLLOW_SECONDS = 5.0
LEAVE_SECONDS = 10.0
"""a cancelled job is killed after it"""


class BoardSession:
    """Requests of one link."""

    def __init__(
        self,
        folder: Path,
        *,
        who: str,
        token: str,
        silence_seconds: float,
        runtimes: Sequence[str],
        measuring_lock: Path | None,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        self._shelf = Shelf(folder)
        self._who, self._token, self._silence_seconds, self._say = who, token, silence_seconds, tell
        self._runtimes, self._measuring_lock = list(runtimes), measuring_lock
        self._lock: int | None = None
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._unread = b""
        self._requests: dict[str, Callable[..., Any]] = {
            "ping": lambda: None,
            "probe": lambda: board_state(folder),
            "missing": self.missing,
            "run": self.run,
            "follow": self.follow,
            "result": self.result,
            "cancel": self.cancel,
        }

    def serve(self, *, wait_seconds: float) -> int:
        """Take the lock, answer until the link is gone; exit code 3 where somebody else holds the board."""
        path = self._shelf.folder / "lock"
        self._lock = try_lock(path, wait_seconds=wait_seconds)
        if self._lock is None:
            holder = read_holder(path)
            if holder.get("token") == self._token:  # a link of ours that hangs, or a job: then we only look at it
                _end_older(int(holder["pid"]), self._token)
                self._lock = try_lock(path, wait_seconds=2)
            else:
                self._say({"busy": {name: value for name, value in holder.items() if name != "token"}})
                return 3
        if self._lock is not None:
            self._hold()
            self._shelf.tidy()
        hello = {"protocol": PROTOCOL, "pid": os.getpid(), "boot": boot_of(), "state": board_state(self._shelf.folder)}
        self._say({"hello": hello})
        while (line := self._next_line()) is not None:
            self._say(self._answer(line))
        return 0

    def missing(self, digests: list[str]) -> list[str]:
        """Which objects the board has not."""
        return [digest for digest in digests if not self._shelf.has(digest)]

    def run(self, job: dict[str, Any], call: str) -> str:
        """Start a job, unless it runs or is done; one that failed, or died, is tried again. Returns its state.

        call: the same where the request is only sent again.
        """
        key = check_digest(str(job.get("key")))
        folder = self._shelf.folder / "jobs" / key
        earlier = read_json(folder / "process.json")
        if self._state(key) in ("running", "done") or earlier.get("call") == call:
            return self._state(key)
        folder.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            (folder / "result.json").unlink()
        write_atomic(folder / "job.json", json.dumps(job).encode())
        write_atomic(folder / "events.jsonl", b"")
        self._need_lock()
        mark = try_lock(folder / "running")
        assert mark is not None  # nobody but who holds the board starts jobs
        assert self._lock is not None
        self._hold(job=key)
        with open(folder / "log.txt", "ab") as log:
            child = subprocess.Popen(
                [*agent_command(), "job", str(self._shelf.folder.absolute()), key, *self._options()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(mark, self._lock),
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            )
        self._children[key] = child
        told = {"pid": child.pid, "boot": boot_of(), "attempts": earlier.get("attempts", 0) + 1, "call": call}
        write_atomic(folder / "process.json", json.dumps(told).encode())
        os.close(mark)
        return "running"

    def follow(self, key: str, after: int, seconds: float = FOLLOW_SECONDS) -> dict[str, Any]:
        """Wait for news of a job: {state, events, after}. state: running, done, failed, died, absent."""
        end = time.monotonic() + min(seconds, FOLLOW_SECONDS)
        path = self._shelf.folder / "jobs" / check_digest(key) / "events.jsonl"
        while True:
            state = self._state(key)
            lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
            if len(lines) > after or state != "running" or time.monotonic() >= end:
                break
            time.sleep(0.1)
        told: dict[str, Any] = {
            "state": state,
            "events": [json.loads(line) for line in lines[after:]],
            "after": len(lines),
        }
        process = read_json(path.parent / "process.json")
        if state == "died":
            log = (path.parent / "log.txt").read_bytes()[-2000:].decode(errors="replace")
            told["last_words"] = [line.strip() for line in log.splitlines() if line.strip()][-3:]
            told["restarted"] = process.get("boot") != boot_of()
        return told

    def result(self, key: str) -> dict[str, Any]:
        """What a finished job left."""
        folder = self._shelf.folder / "jobs" / check_digest(key)
        if not (folder / "result.json").is_file():
            raise InputError(f"job {key[:12]} has no result")
        os.utime(folder)
        return {**read_json(folder / "result.json"), "attempts": read_json(folder / "process.json").get("attempts", 1)}

    def cancel(self, key: str) -> str:
        """End a job with all that it started; returns its state."""
        folder = self._shelf.folder / "jobs" / check_digest(key)
        pid = int(read_json(folder / "process.json").get("pid", 0))
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._state(key) != "running" or pid <= 1:  # the lock says that this is still its process
                break
            with suppress(ProcessLookupError):
                os.killpg(pid, number)
            end = time.monotonic() + LEAVE_SECONDS
            while self._state(key) == "running" and time.monotonic() < end:
                time.sleep(0.1)
        return self._state(key)

    def _state(self, key: str) -> str:
        folder = self._shelf.folder / "jobs" / key
        if key in self._children:
            self._children[key].poll()
        if is_locked(folder / "running"):
            return "running"
        found = read_json(folder / "result.json").get("state")
        if found:
            return str(found)
        return "died" if (folder / "process.json").is_file() else "absent"

    def _need_lock(self) -> None:
        """Hold the board: a session that came back to a job of ours has still to take the lock over."""
        if self._lock is None:
            self._lock = try_lock(self._shelf.folder / "lock", wait_seconds=2)
            if self._lock is None:
                raise InputError("the board is still at work on another job of this session")
            self._hold()

    def _hold(self, **more: str) -> None:
        assert self._lock is not None
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        write_holder(self._lock, {"who": self._who, "token": self._token, "since": since, "pid": os.getpid(), **more})

    def _options(self) -> list[str]:
        lock = [f"--measuring-lock={self._measuring_lock.absolute()}"] if self._measuring_lock else []
        return [*(f"--runtime={pair}" for pair in self._runtimes), *lock]

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            name = request.pop("do", None)
            if name not in self._requests:
                raise InputError(f"unknown request {name!r}; known: {', '.join(self._requests)}")
            return {"result": self._requests[name](**request)}
        except VitrimError as error:
            return {"error": {"kind": type(error).__name__, "message": str(error)}}
        except (OSError, ValueError, TypeError) as error:
            return {"error": {"kind": "WorkerError", "message": f"{type(error).__name__}: {error}"}}

    def _next_line(self) -> bytes | None:
        """The next request; None when the link is gone, or silent for so long that it must be."""
        while b"\n" not in self._unread:
            ready, _, _ = select.select([0], [], [], self._silence_seconds)
            data = os.read(0, 1 << 20) if ready else b""
            if not data:
                return None
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line


def _end_older(pid: int, token: str) -> None:
    """End the process of an earlier link of the same session, if this is it: it may not know that its link is gone."""
    with suppress(OSError):
        if pid != os.getpid() and token.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            os.kill(pid, signal.SIGTERM)


def read_json(path: Path) -> dict[str, Any]:
    """A small file of JSON; empty where it is not there or not whole."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
