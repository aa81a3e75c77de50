"""DeviceSpec: one reachable board, as a user's `devices.yaml` tells it.

format: vitrim.devices/1
devices:
  shelf-1: {kind: ssh, target: jetson-orin-nano, host: 10.0.0.7, user: vitrim, identity: ~/.ssh/id_ed25519}
  here:    {kind: local, target: cpu}
  sham:    {kind: fake, target: cpu, script: delays.yaml}
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from targets.errors import InputError, UnknownNameError
from targets.problems import check
from targets.record import Record
from targets.strict_yaml import read_document, read_file

FORMAT = "vitrim.devices/1"
VARIABLE = "VITRIM_DEVICES"
FILE = "devices.yaml"

HOST = r"^[A-Za-z0-9:][A-Za-z0-9._:-]*$"
"""no dash at its beginning: ssh would take it for an option"""
USER = r"^[A-Za-z_][A-Za-z0-9._-]*$"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
WORD = r"^[^-\x00-\x1f\x7f][^\x00-\x1f\x7f]*$"
"""a path or program: no option, no control characters"""

Word = Annotated[str, Field(pattern=WORD)]
Seconds = Annotated[float, Field(gt=0)]
Runtimes = Annotated[
    dict[str, Word], Field(description="runtimes that the board brings along: name and Python file there")
]
MeasuringLock = Annotated[
    Word | None, Field(description="a file on the board's machine that boards of the same machine lock in turn")
]
Patience = Annotated[float, Field(ge=0, description="how long connecting is tried again, with growing pauses")]


class SshSpec(Record):
    """A board that is reached by OpenSSH."""

    kind: Literal["ssh"]
    target: str = Field(min_length=1, description="the profile that the board is of")
    host: Annotated[str, Field(pattern=HOST)]
    user: Annotated[str, Field(pattern=USER)] | None = None
    port: int = Field(default=22, ge=1, le=65535)
    identity: Path | None = Field(default=None, description="private key; else what ssh finds")
    known_hosts: Path = Field(default=Path("known_hosts"), description="written by `vitrim devices enrol`")
    folder: Word = Field(default=".vitrim", description="on the board; relative to the user's home")
    python: Word = "python3"
    connect_seconds: int = Field(default=10, ge=1)
    alive_seconds: int = Field(default=15, ge=1, description="between two questions whether the other side is there")
    alive_count: int = Field(default=4, ge=1, description="unanswered ones after which the link is lost")
    answer_seconds: Seconds = 60
    patience_seconds: Patience = 120
    runtimes: Runtimes = {}
    measuring_lock: MeasuringLock = None


class LocalSpec(Record):
    """This machine, as a board: the same agent in processes of its own."""

    kind: Literal["local"]
    target: str = Field(min_length=1, description="the profile that the board is of")
    folder: Word | None = Field(default=None, description="default: in the user's cache, by the device's name")
    python: Word | None = Field(default=None, description="default: the one that runs vitrim")
    answer_seconds: Seconds = 60
    patience_seconds: Patience = 10
    runtimes: Runtimes = {}
    measuring_lock: MeasuringLock = None


class FakeSpec(Record):
    """A board that is pretended: the agent on this machine, with a runtime that sleeps as a script says."""

    kind: Literal["fake"]
    target: str = Field(min_length=1, description="the profile that the board is of")
    script: Path = Field(description="YAML: delays, answers, and what goes wrong; see docs/devices.md")
    folder: Word | None = Field(default=None, description="default: in the user's cache, by the device's name")
    answer_seconds: Seconds = 60
    patience_seconds: Patience = 10
    measuring_lock: MeasuringLock = None


DeviceSpec = SshSpec | LocalSpec | FakeSpec
KINDS: dict[str, type[SshSpec] | type[LocalSpec] | type[FakeSpec]] = {
    "ssh": SshSpec,
    "local": LocalSpec,
    "fake": FakeSpec,
}
_PATHS = ("identity", "known_hosts", "script")
"""fields that are files of this machine: relative to the file that names them"""


def default_devices_file(beside: Path | None = None) -> Path:
    """`VITRIM_DEVICES`, else devices.yaml in a folder (the working one), else the user's own."""
    told = os.environ.get(VARIABLE)
    if told:
        return Path(told)
    near = (beside or Path()) / FILE
    return near if near.is_file() else Path.home() / ".config" / "vitrim" / FILE


def load_devices(path: Path | None = None) -> dict[str, DeviceSpec]:
    """Read all devices of a file, the default one where none is named; raises InputError with every problem."""
    chosen = path or default_devices_file()
    if not chosen.is_file():
        raise InputError(
            f"no devices file at {str(chosen)!r}; write one (docs/devices.md), "
            f"name it with --devices, or set {VARIABLE}"
        )
    document = read_document(read_file(chosen, what="devices file"), origin=f"devices file {str(chosen)!r}")
    data = document.data if isinstance(document.data, dict) else {}
    if data.get("format") != FORMAT:
        document.tell(("format",), f"must be {FORMAT!r}, got {data.get('format')!r}")
    for key in data.keys() - {"format", "devices"}:
        document.tell((key,), "unknown key; known: devices, format")
    devices = data.get("devices")
    if not isinstance(devices, dict) or not devices:
        document.tell(("devices",), "must be devices by name, e.g. here: {kind: local, target: cpu}")
        devices = {}
    found: dict[str, DeviceSpec] = {}
    for name, one in devices.items():
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            document.tell(("devices", name), "a device is called by letters, digits, dots, dashes and underscores")
            continue
        kind = one.get("kind") if isinstance(one, dict) else None
        if kind not in KINDS:
            document.tell(("devices", name), f"kind must be {', '.join(map(repr, KINDS))}, got {kind!r}")
            continue
        spec = check(KINDS[kind], _with_paths(one, chosen.parent), document, place=("devices", name))
        if spec is not None:
            found[name] = spec
    document.refuse_problems()
    return found


def get_device(name: str, path: Path | None = None) -> DeviceSpec:
    """One device of a file; raises UnknownNameError."""
    devices = load_devices(path)
    if name not in devices:
        raise UnknownNameError("device", name, devices)
    return devices[name]


def _with_paths(one: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths as such; `~` is the user's home, others are relative to the folder of the file."""
    defaults = {"known_hosts": "known_hosts"} if one["kind"] == "ssh" else {}
    told = {**defaults, **one}
    for key in _PATHS:
        if isinstance(told.get(key), str):
            told[key] = folder.absolute() / Path(told[key]).expanduser()
    return told
