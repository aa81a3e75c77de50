"""JSON that knows when it was damaged: an object with a `seal`, the SHA-256 of everything else in it."""

import json
from pathlib import Path
from typing import Any, NoReturn

from targets.record import digest_of

SEAL = "seal"
LIMIT_BYTES = 64 * 2**20


class DamagedError(Exception):
    """What is on disk is not what was written; the message says where they differ."""


def sealed(data: dict[str, Any]) -> bytes:
    """Serialise an object for people and machines; ValueError or TypeError for what JSON cannot hold, NaN included."""
    plain = json.loads(json.dumps(data, allow_nan=False))
    return (json.dumps({**plain, SEAL: digest_of(plain)}, indent=1, ensure_ascii=False) + "\n").encode()


def read_sealed(path: Path) -> dict[str, Any]:
    """Read an object back without its seal; DamagedError when a single value differs."""
    with open(path, "rb") as file:
        raw = file.read(LIMIT_BYTES + 1)
    if len(raw) > LIMIT_BYTES:
        raise DamagedError(f"{path.name} is larger than {LIMIT_BYTES} bytes")
    try:
        data = json.loads(raw, parse_constant=_refuse)
        seal = data.pop(SEAL)
        intact = seal == digest_of(data)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path.name} is torn or was edited") from error
    if not intact:
        raise DamagedError(f"{path.name} does not match its seal")
    return dict(data)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
