"""The device `fake`: the real agent on this machine, with pretended engines, and things that go wrong on purpose.

Its script is a YAML file; every key is optional:

    milliseconds: 2.0            # of a query; or by precision: {int8: 1.0, default: 2.0}
    side: 16                     # of the images that the engines take
    classes: 10
    build_seconds: 0
    build_until: go              # a build ends when this file is there
    build_fails: "no memory"     # every build ends with this message
    version: "1"                 # of the pretended runtime
    state: {power_mode: 15W}     # in place of what the board tells of itself
    unreachable: false           # as if it were switched off
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from targets.devices.link import LocalLink
from targets.devices.scripted_runtime import VARIABLE
from targets.devices.spec import FakeSpec
from targets.errors import VitrimError
from targets.problems import load_record
from targets.record import Record


class Script(Record):
    """What a fake board pretends."""

    milliseconds: float | dict[str, float] = 1.0
    side: int = Field(default=16, ge=1)
    classes: int = Field(default=10, ge=2)
    build_seconds: float = Field(default=0, ge=0)
    build_until: Path | None = None
    build_fails: str = ""
    version: str = "1"
    state: dict[str, Any] = {}
    unreachable: bool = False


def read_script(path: Path) -> Script:
    """Read a script; raises RecipeError with every problem."""
    return load_record(Script, path, what="script")


class FakeLink:
    """This machine, with a script for the pretended runtime; or a board that is switched off."""

    def __init__(self, name: str, spec: FakeSpec, script: Script) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vitrim-fake-")
        path = Path(self._folder.name, "script.json")
        path.write_text(json.dumps(script.model_dump(mode="json")))
        self._unreachable = script.unreachable
        self._local = LocalLink(name, spec, {VARIABLE: str(path)})
        self.python, self.folder = self._local.python, self._local.folder
        self.environment = self._local.environment

    def words(self, remote: Sequence[str]) -> list[str]:
        """The words themselves; of a board that is switched off, something that only fails."""
        if self._unreachable:
            return [sys.executable, "-c", "import sys; sys.exit('it is switched off, as its script says')"]
        return self._local.words(remote)

    def trouble(self, code: int, said: str) -> VitrimError:
        """What it means that a process ended."""
        return self._local.trouble(code, said)

    def close(self) -> None:
        """Remove the script."""
        self._folder.cleanup()
