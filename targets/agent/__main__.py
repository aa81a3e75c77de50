"""The agent: `python -m targets.agent [COMMAND]`, or `python3 vitrim-agent.pyz [COMMAND]` on a board.

`serve`, the default: answer requests, one JSON line each, until standard input closes. A request is {"do": name, ...};
the answer is {"result": ...} or {"error": {"kind", "message"}}. Answers go to what was standard output at the start;
everything that libraries print goes to standard error.

The other commands are for whoever reaches a board: `probe`, `receive`, `send`, `session`, `job`; their lines of JSON
begin with a mark, see `targets.agent.receive`.
"""

import argparse
import ctypes
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from targets.errors import VitrimError
from targets.facts import usable_cores

if TYPE_CHECKING:
    from targets.agent.service import Service

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
GRACE_SECONDS = 5
PR_SET_PDEATHSIG = 1


def main(words: "list[str] | None" = None) -> int:
    """Run a command."""
    words = sys.argv[1:] if words is None else words
    if words and not words[0].startswith("-") and words[0] != "serve":
        from targets.agent.commands import run_command

        return run_command(words)
    return _serve(words[1:] if words[:1] == ["serve"] else words)


def _serve(words: "list[str]") -> int:
    """Serve until the caller is gone."""
    parser = argparse.ArgumentParser(prog="python -m targets.agent", description=__doc__)
    parser.add_argument("--threads", type=int, help="threads of the runtime; default: all usable cores")
    parser.add_argument("--runtime", action="append", default=[], metavar="NAME=FILE", help="bring a runtime along")
    arguments = parser.parse_args(words)
    answers = _claim_stdout()
    _go_on_when_abandoned()
    threading.Thread(target=_leave_when_abandoned, daemon=True).start()

    threads = arguments.threads or usable_cores()
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))  # read when numpy and the runtimes are imported

    from targets.agent.service import Service

    service = Service(threads=threads, runtimes=read_runtimes(arguments.runtime))
    for line in sys.stdin:
        answers.write(json.dumps(_answer(service, line), separators=(",", ":")) + "\n")
        answers.flush()
    return 0


def read_runtimes(pairs: "list[str]") -> "dict[str, Path]":
    """File by name, of NAME=FILE."""
    return {name: Path(file) for name, _, file in (one.partition("=") for one in pairs)}


def _answer(service: "Service", line: str) -> dict[str, Any]:
    try:
        return {"result": service.answer(json.loads(line))}
    except VitrimError as error:
        return {"error": {"kind": type(error).__name__, "message": str(error)}}
    except MemoryError:
        return {"error": {"kind": "MemoryError", "message": "out of memory; use a smaller batch"}}
    except Exception as error:
        traceback.print_exc()
        return {"error": {"kind": "defect", "message": f"{type(error).__name__}: {error}"}}


def _claim_stdout() -> IO[str]:
    """Keep standard output for the protocol: file descriptor 1 becomes standard error, also for C++ libraries."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _go_on_when_abandoned() -> None:
    """Let Linux continue us when the caller dies while we are stopped: only who runs can leave.

    The signal also comes when only the thread that started us ends; it then changes nothing. Elsewhere, and where a
    sandbox forbids it, the hang-up that a system sends to stopped orphans must do.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)


def _leave_when_abandoned() -> None:
    """End the process when the caller is gone, also in the middle of a long request; wakes up only then."""
    poll = select.poll()
    poll.register(0, 0)  # no event but the hang-up of a pipe
    poll.poll()
    time.sleep(GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
