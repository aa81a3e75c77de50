"""Keys: a digest of everything that decides a step's result, computed without running anything."""

import hashlib
from collections.abc import Collection, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stages.stage import Role, Stage
from targets.record import Record, digest_of

ROOT = Path(__file__).resolve().parent.parent


def step_key(
    stage: Stage[Any],
    options: Record,
    *,
    input_key: str | None,
    images: Mapping[Role, str],
    seed: int,
    device: str | None,
) -> str:
    """Return the key of one step: 64 hex digits.

    images: fingerprint of each role that the stage reads; others do not matter. device: fingerprint of the device for
    a target-bound stage.
    A default that is written out gives the same key; so does another path to a file with the same content.
    """
    read = {purpose: content_digest(path) for purpose, path in stage.reads(options).items()}
    return digest_of(
        {
            "stage": stage.name,
            "options": {
                name: value
                for name, value in options.model_dump(mode="json").items()
                if name not in read and name not in stage.aside
            },
            "reads": read,
            "input": input_key,
            "images": {role.value: images[role] for role in roles_of(stage, options, images)},
            "seed": seed,
            "tools": tool_versions(stage.tools),
            "code": code_digest((f"stages/{stage.name}", *stage.code)),
            "device": device if stage.target_bound else None,
        }
    )


def roles_of(stage: Stage[Any], options: Record, there: Collection[Role]) -> tuple[Role, ...]:
    """Return the images that a stage reads: those it needs, and those it also reads as far as they are there."""
    needed = stage.roles(options)
    return (*needed, *(role for role in stage.also_reads(options) if role in there and role not in needed))


def tool_versions(distributions: tuple[str, ...]) -> dict[str, str]:
    """Installed versions, read without importing anything; 'absent' where there is none."""
    return {name: _version(name) for name in distributions}


@cache
def code_digest(folders: tuple[str, ...]) -> str:
    """Digest of the Python sources in these folders of the project (or files): what the result is computed by."""
    digest = hashlib.sha256()
    for folder in sorted(set(folders)):
        path = ROOT / folder
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or of every file below a folder with its name."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return digest_of({file.relative_to(path).as_posix(): content_digest(file) for file in files})
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"
