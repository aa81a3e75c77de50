"""Would a bundle's engine be loaded on this machine? For information: elsewhere its portable graph runs."""

import tempfile
import zipfile
from pathlib import Path

from targets.bundle.verify import BundleCheck
from targets.errors import InputError, VitrimError
from targets.runtimes.engine import ENGINE_FILE
from targets.worker import Worker

_NAME = f"engine/{ENGINE_FILE}"


def engine_fit(bundle: Path, check: BundleCheck) -> tuple[bool | None, str]:
    """Whether the engine of a checked bundle is for this machine, with a reason; None where that cannot be told."""
    if check.problems or check.manifest is None:
        return None, "the bundle is damaged"
    if check.manifest.engine_sha256 is None:
        return None, "the bundle has no engine: model.onnx runs"
    with tempfile.TemporaryDirectory(prefix="vitrim-fit-") as folder:
        Path(folder, ENGINE_FILE).write_bytes(_engine_json(bundle))
        try:
            with Worker() as worker:  # a runtime is asked in a process of its own
                worker.check_fit(Path(folder))
        except InputError as error:
            return False, f"{str(error).partition('; build it again')[0]}; model.onnx runs in its place"
        except VitrimError as error:
            return None, str(error)
    return True, ""


def _engine_json(bundle: Path) -> bytes:
    if bundle.is_dir():
        return (bundle / _NAME).read_bytes()
    with zipfile.ZipFile(bundle) as archive:
        name = next(one for one in archive.namelist() if one == _NAME or one.split("/", 1)[-1] == _NAME)
        return archive.read(name)
