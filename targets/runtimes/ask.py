"""A question about a runtime, answered in a process of its own. Standard library only.

Answering imports the runtime and loads the libraries it needs, which the process that plans should not have; a broken
one can take its process along.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

LIMIT_SECONDS = 60
_ROOT = Path(__file__).parents[2]


def ask_in_child(code: str, *, what: str, limit_seconds: float = LIMIT_SECONDS) -> str | None:
    """What a program prints as its last line of JSON: a text, or null. What went wrong with it, in one line, instead.

    what: for messages, e.g. `onnxruntime`.
    """
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_seconds,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
        answer: str | None = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return f"{what} does not start within {limit_seconds:g} s"
    except (IndexError, ValueError):
        words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = f"; it said: {words[-1][:200]}" if words else ""
        return f"{what} cannot be started: the process ended with exit code {done.returncode}{said}"
    return answer
