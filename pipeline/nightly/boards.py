"""The boards of a matrix, out of the devices file."""

from collections.abc import Iterable
from pathlib import Path

from pipeline.nightly.bench import Bench, DeviceBench
from pipeline.nightly.matrix import Matrix
from targets.devices.open import open_device
from targets.devices.spec import default_devices_file, load_devices
from targets.errors import UnknownNameError
from targets.profile import load_profile


def open_boards(matrix: Matrix, folder: Path, names: Iterable[str] | None = None) -> dict[str, Bench]:
    """Boards by name, in the matrix' order. names: only these. folder: of the matrix, where its devices file may lie.

    Connects to nothing. Raises InputError for a device that the file does not know, RecipeError for a broken file.
    """
    path = matrix.devices_file or default_devices_file(folder)
    known = load_devices(path)
    found: dict[str, Bench] = {}
    for name in names or matrix.devices:
        if name not in known:
            raise UnknownNameError("device", name, known, hint=f"devices are listed in {str(path)!r}")
        spec = known[name]
        load_profile(spec.target)
        found[name] = DeviceBench(device=open_device(name, spec), shares_host=spec.kind == "local")
    return found
