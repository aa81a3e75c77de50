"""Whether ONNX Runtime can use the GPU here, asked in a process of its own. Standard library only.

Answering it imports onnxruntime and loads NVIDIA's libraries, which the process that plans should not have.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from targets.runtimes.nvidia.options import PROVIDERS

LIMIT_SECONDS = 60
_ROOT = Path(__file__).parents[3]
_ASK = "import json; from targets.runtimes import {} as runtime; print(json.dumps(runtime.available()))"


@cache
def provider_obstacle(runtime: str) -> str | None:
    """Why a runtime cannot be used here, in one line; None where it can, and for runtimes that are not of this kind."""
    if runtime not in PROVIDERS:
        return None
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _ASK.format(runtime)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_SECONDS,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
        reason: str | None = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return f"onnxruntime does not start within {LIMIT_SECONDS} s"
    except (IndexError, ValueError):
        words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = f"; it said: {words[-1][:200]}" if words else ""
        return f"onnxruntime cannot be started: the process ended with exit code {done.returncode}{said}"
    return reason
