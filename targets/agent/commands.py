"""Commands of the agent for whoever reaches a board, one process each; see `targets.agent.__main__`."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from targets.agent import receive
from targets.agent.__main__ import read_runtimes
from targets.errors import InputError, VitrimError

CHUNK = 1 << 20


def run_command(words: list[str]) -> int:
    """Run one; bad words end with 2."""
    os.umask(0o077)
    commands: dict[str, Callable[[list[str]], int]] = {
        "probe": _probe,
        "receive": receive.main,
        "send": _send,
        "session": _session,
        "job": _job,
    }
    if words[0] not in commands:
        print(f"unknown command {words[0]!r}; known: serve, {', '.join(commands)}", file=sys.stderr)  # noqa: T201
        return 2
    try:
        return commands[words[0]](words[1:])
    except VitrimError as error:
        say({"error": {"kind": type(error).__name__, "message": str(error)}})
        return error.exit_code
    except OSError as error:
        say(
            {"error": {"kind": "WorkerError", "message": f"{error.strerror or error}: {error.filename or 'the board'}"}}
        )
        return 1


def say(told: dict[str, Any]) -> None:
    """Write one line of ours."""
    sys.stdout.write(f"{receive.MARK}{json.dumps(told, separators=(',', ':'))}\n")
    sys.stdout.flush()


def _probe(words: list[str]) -> int:
    """FOLDER: what the board is, and in what state."""
    from targets.agent.state import board_state

    say({"result": board_state(Path(words[0] if words else "."))})
    return 0


def _send(words: list[str]) -> int:
    """FOLDER SHA256 OFFSET: an object, from a byte on; first a line with its size."""
    from targets.agent.shelf import Shelf

    path, offset = Shelf(Path(words[0])).object(words[1]), int(words[2])
    if not path.is_file():
        raise InputError(f"the board has no object {words[1][:12]}")
    with open(path, "rb") as file:
        say({"size_bytes": os.fstat(file.fileno()).st_size})
        file.seek(offset)
        while chunk := file.read(CHUNK):
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    return 0


def _session(words: list[str]) -> int:
    """Hold the board; see `session`."""
    from targets.agent.session import BoardSession

    parser = argparse.ArgumentParser(prog="session", description=_session.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--who", default="somebody", help="for messages to others")
    parser.add_argument("--token", required=True, help="the same for every link of one session")
    parser.add_argument("--wait", type=float, default=0, help="seconds to wait for the board")
    parser.add_argument("--silence", type=float, default=300, help="seconds without a request after which it ends")
    parser.add_argument("--runtime", action="append", default=[], metavar="NAME=FILE", help="bring a runtime along")
    parser.add_argument("--measuring-lock", type=Path, help="a file that boards of one machine lock in turn")
    given = parser.parse_args(words)
    session = BoardSession(
        given.folder,
        who=given.who,
        token=given.token,
        silence_seconds=given.silence,
        runtimes=given.runtime,
        measuring_lock=given.measuring_lock,
        tell=say,
    )
    return session.serve(wait_seconds=given.wait)


def _job(words: list[str]) -> int:
    """Do one job; started by a session."""
    from targets.agent.job import do_job

    parser = argparse.ArgumentParser(prog="job", description=_job.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("key")
    parser.add_argument("--runtime", action="append", default=[])
    parser.add_argument("--measuring-lock", type=Path)
    given = parser.parse_args(words)
    return do_job(given.folder, given.key, runtimes=read_runtimes(given.runtime), measuring_lock=given.measuring_lock)
