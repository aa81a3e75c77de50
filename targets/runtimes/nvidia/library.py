"""The library behind a runtime: `tensorrt` or `tensorrt_rtx`, which have one API, and what it says while it works."""

import importlib
from pathlib import Path
from typing import Any

from targets.errors import WorkerError
from targets.runtimes.nvidia.options import RTX

OLDEST = {"tensorrt": (10, 0), "tensorrt_rtx": (1, 4)}


def load_library(runtime: str) -> Any:
    """Import the runtime's package; raises ImportError."""
    return importlib.import_module(runtime)


def obstacle(runtime: str) -> str | None:
    """None where the package is there and recent enough, else why it cannot be used."""
    try:
        library = load_library(runtime)
    except (ImportError, OSError, RuntimeError) as error:  # the package loads its own libraries at import
        how = "tensorrt-rtx" if runtime == RTX else "tensorrt; on a Jetson it comes with JetPack"
        return f"{' '.join(str(error).split())}; install the package {how}"
    oldest = OLDEST[runtime]
    if release(str(library.__version__)) < oldest:
        return f"version {library.__version__} is installed, {'.'.join(map(str, oldest))} or later is needed"
    return None


def release(version: str) -> tuple[int, int]:
    """Return (major, minor)."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


class Listener:
    """Keeps what a library warns of, newest last. `logger` is what the library is given."""

    def __init__(self, library: Any) -> None:
        said: list[tuple[bool, str]] = []
        errors = (library.ILogger.Severity.INTERNAL_ERROR, library.ILogger.Severity.ERROR)
        heard = (*errors, library.ILogger.Severity.WARNING)

        class Logger(library.ILogger):  # type: ignore[misc]  # the library is not there to be looked at
            def __init__(self) -> None:
                library.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in heard:
                    said.append((severity in errors, " ".join(message.split())))

        self._said, self.logger = said, Logger()

    def last_error(self) -> str:
        """What went wrong last, in one line."""
        return next((text for wrong, text in reversed(self._said) if wrong), "it did not say why")


def failure(runtime: str, what: str, path: Path, reason: str) -> WorkerError:
    """Make an error about a file: `tensorrt cannot read 'model.onnx': reason`."""
    return WorkerError(f"{runtime} cannot {what} {path.name!r}: {reason}")
