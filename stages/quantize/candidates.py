"""Makes one quantized graph per alpha, several at once, each in a process of its own.

NNCF's statistics are single-threaded Python for the most part: two processes with one core each are nearly twice as
fast as one process with two.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import stages
from stages.quantize.calibrate import Job
from targets.errors import StageError
from targets.facts import usable_cores

POLL_SECONDS = 0.1
LARGE_BYTES = 1_000_000_000
"""graphs above this are quantized one after the other: NNCF holds about six copies of a graph"""


@dataclass
class Running:
    """A calibration that was started."""

    job: Job
    process: "subprocess.Popen[bytes]"
    started: float


def make_candidates(
    jobs: Sequence[Job], *, model_bytes: int, tell: Callable[[str, float | None], None], what: str = "calibrating"
) -> list[float]:
    """Run all jobs; returns the seconds each took, 0 for one whose graph an interrupted run had finished.

    Raises StageError with the last words of a process that failed. Leaves no process behind.
    """
    parallel = 1 if model_bytes > LARGE_BYTES else max(1, min(usable_cores(), len(jobs)))
    waiting = [job for job in jobs if not job.output.exists()]
    seconds = {job.output: 0.0 for job in jobs}
    running: list[Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                running.append(_start(waiting.pop(0).replace(threads=max(1, usable_cores() // parallel))))
            time.sleep(POLL_SECONDS)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                _check(one)
                seconds[one.job.output] = time.monotonic() - one.started
            tell(what, sum(_share_done(job) for job in jobs) / len(jobs))
    finally:
        for one in running:
            _kill(one.process)
    return [seconds[job.output] for job in jobs]


def _start(job: Job) -> Running:
    description = job.output.with_suffix(".json")
    description.write_text(job.canonical_json())
    root = str(Path(stages.__file__).parent.parent)
    with job.output.with_suffix(".log").open("wb") as words:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "stages.quantize.calibrate", str(description)],
            stdin=subprocess.PIPE,  # it ends when this closes
            stdout=subprocess.DEVNULL,
            stderr=words,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
                "OMP_NUM_THREADS": str(job.threads),
            },
            process_group=0,  # Ctrl-C reaches us alone, and we end it
        )
    return Running(job, process, time.monotonic())


def _check(one: Running) -> None:
    if one.process.stdin is not None:
        one.process.stdin.close()
    code = one.process.returncode
    if code == 0 and one.job.output.exists():
        return
    words = one.job.output.with_suffix(".log").read_text(errors="replace")
    last = next((line.strip() for line in reversed(words.splitlines()) if line.strip()), "nothing")
    memory = " (killed, probably out of memory)" if code == -signal.SIGKILL else ""
    raise StageError(f"quantize: calibration with {one.job.name} ended with code {code}{memory}; it said: {last}")


def _share_done(job: Job) -> float:
    if job.output.exists():
        return 1.0
    with suppress(OSError, ValueError):  # not begun, or being written
        return 0.95 * float(job.progress.read_text())
    return 0.0


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
