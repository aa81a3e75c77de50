"""The boards of a matrix, out of the devices file."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.nightly.bench import Bench, LocalBench
from pipeline.nightly.matrix import Matrix
from pipeline.store import default_store_root
from targets.errors import InputError, UnknownNameError
from targets.problems import load_record
from targets.profile import load_profile
from targets.record import Record

USERS = Path("~/.config/vitrim/devices.yaml")


class LocalSpec(Record):
    """This machine."""

    kind: Literal["local"]
    target: str = Field(description="name of a target, or path of a profile")


class Devices(Record):
    """What a devices file holds."""

    format: Literal["vitrim.devices/1"]
    devices: dict[str, LocalSpec] = Field(min_length=1)


def open_boards(matrix: Matrix, folder: Path, names: Iterable[str] | None = None) -> dict[str, Bench]:
    """Boards by name, in the matrix' order. names: only these.

    Connects to nothing. Raises InputError for a device that the file does not know, RecipeError for a broken file.
    """
    path = devices_path(matrix, folder)
    known = load_record(Devices, path, what="devices file").devices
    found: dict[str, Bench] = {}
    for name in names or matrix.devices:
        if name not in known:
            raise UnknownNameError("device", name, known, hint=f"devices are listed in {str(path)!r}")
        spec = known[name]
        load_profile(spec.target)
        found[name] = LocalBench(name=name, target=spec.target, lock=default_store_root() / "this-machine.lock")
    return found


def devices_path(matrix: Matrix, folder: Path) -> Path:
    """Where devices are listed: named by the matrix, by VITRIM_DEVICES, beside the matrix, else the user's own."""
    named = matrix.devices_file or (Path(os.environ["VITRIM_DEVICES"]) if os.environ.get("VITRIM_DEVICES") else None)
    if named is not None:
        return named
    beside, own = folder / "devices.yaml", USERS.expanduser()
    found = next((path for path in (beside, own) if path.is_file()), None)
    if found is None:
        raise InputError(
            f"no devices file: there is neither {str(beside)!r} nor {str(own)!r}; write one (docs/nightly.md), or name "
            "it with devices_file or VITRIM_DEVICES"
        )
    return found
