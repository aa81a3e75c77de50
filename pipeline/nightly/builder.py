"""Builds a recipe for one target, in a child process: a crash of a build is one failed cell, not a lost night."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.keys import ROOT
from pipeline.nightly.stop import Stop
from targets.errors import StageError

Tell = Callable[[str], None]
LEAVE_SECONDS = 30
"""for a build that was interrupted"""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A recipe for a target: built once, measured on every board of that target."""

    name: str
    recipe: Path
    target: str
    overrides: tuple[str, ...] = ()

    def command(self, output: str = "out", *, recipe: str | None = None) -> str:
        """What a person would type."""
        return shlex.join(["vitrim", *self.words(output, recipe or str(self.recipe))])

    def words(self, output: str, recipe: str) -> list[str]:
        """The arguments."""
        sets = [word for pair in self.overrides for word in ("--set", pair)]
        return ["build", recipe, "--target", self.target, *sets, "--output", output]


class Builder(Protocol):
    """Makes bundles."""

    def build(self, unit: Unit, output: Path, *, stop: Stop, tell: Tell) -> Path:
        """Return the folder that holds `report.json` and `bundle`. Raises StageError with the reason, Stopped."""
        ...


@dataclass(frozen=True)
class ProcessBuilder:
    """`vitrim build` in a child process."""

    store: Path | None = None
    """where finished steps are kept; None: the default"""
    code: Path = ROOT
    """folder of the vitrim that builds"""
    environment: dict[str, str] = field(default_factory=dict)

    def build(self, unit: Unit, output: Path, *, stop: Stop, tell: Tell) -> Path:
        """Build, and forward what it tells."""
        words = [*unit.words(str(output), str(unit.recipe)), "--json"]
        words += ["--store", str(self.store)] if self.store else []
        child = Path(__file__).with_name("child.py").read_text(encoding="utf-8")
        output.mkdir(parents=True, exist_ok=True)
        with open(output / "stderr.txt", "w+b") as said:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", child, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(self.code), **self.environment},
            )
            watcher = threading.Thread(target=_end_when, args=(process, stop), daemon=True)
            watcher.start()
            assert process.stdout is not None
            assert process.stdin is not None
            try:
                events = _events(process.stdout, tell)
                code = process.wait()
            finally:
                _end(process)
                watcher.join()
                process.stdout.close()
                process.stdin.close()
            stop.check()
            said.seek(0)
            errors = said.read().decode(errors="replace")
        result = next((one for one in reversed(events) if one.get("kind") == "result"), None)
        if result is None or code not in (0, 1):
            raise StageError(f"the build ended with {_ending(code)}: {_reason(errors)}")
        ((name, report),) = result["reports"].items()
        verdict = report["verdict"]
        if verdict["status"] == "failed":
            raise StageError(f"the build failed: {verdict['sentence']}")
        return output / str(name)


def _events(stdout: Any, tell: Tell) -> list[dict[str, Any]]:
    """What the child tells, line by line; what is not JSON is a library's."""
    found = []
    for line in stdout:
        with suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                if event.get("kind") == "step_started":
                    tell(f"[{event.get('index', 0)}/{event.get('total', 0)}] {event.get('step', '')}")
                if event.get("kind") == "result":
                    found.append(event)
    return found


def _end_when(process: "subprocess.Popen[bytes]", stop: Stop) -> None:
    """End the child when the night is over."""
    while process.poll() is None:
        if stop.wait(0.2):
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Interrupt a child that still runs, and kill it with all it started where it does not leave."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(LEAVE_SECONDS)
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    if -code == signal.SIGKILL:
        return "SIGKILL, probably out of memory"
    return signal.Signals(-code).name


def _reason(errors: str) -> str:
    """The line that says why: vitrim's own, else the last."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    own = [line.removeprefix("vitrim: ") for line in lines if line.startswith("vitrim: ")]
    return (own or lines or ["it said nothing"])[-1]


def unique_units(units: Sequence[Unit]) -> list[Unit]:
    """Each once, in their order."""
    return list(dict.fromkeys(units))
