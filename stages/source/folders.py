"""What kind of model a folder holds, told by its config file; and such a folder from the hub. Light."""

import fnmatch
import json
from enum import StrEnum
from pathlib import Path
from typing import Any

from stages.source.options import HUB_NAME, SourceOptions
from targets.errors import InputError

WEIGHTS = {
    "transformers": (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
    "open_clip": ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
}
"""where each library saves weights, the preferred file first"""
PROCESSORS = ("preprocessor_config.json", "processor_config.json")


class Kind(StrEnum):
    """Who saved a folder."""

    VITRIM = "vitrim"
    TRANSFORMERS = "transformers"
    OPEN_CLIP = "open_clip"


CONFIGS = {Kind.VITRIM: "vit.json", Kind.OPEN_CLIP: "open_clip_config.json", Kind.TRANSFORMERS: "config.json"}


def kind_of(folder: Path) -> Kind:
    """Tell who saved a folder; one of both CLIP formats is taken where its weights are. Raises InputError."""
    if not folder.is_dir():
        raise InputError(f"folder {str(folder)!r} is not there")
    found = [kind for kind, config in CONFIGS.items() if (folder / config).is_file()]
    if not found:
        known = ", ".join(f"{config} ({kind})" for kind, config in CONFIGS.items())
        raise InputError(f"folder {str(folder)!r} holds no model: it has none of {known}")
    for kind in found:
        if kind == Kind.VITRIM or find_weights(folder, kind) is not None:
            return kind
    kind = found[0]
    raise InputError(f"folder {str(folder)!r} has {CONFIGS[kind]} but no weights: none of {', '.join(WEIGHTS[kind])}")


def refuse_changes(options: SourceOptions) -> None:
    """Raise InputError for what cannot be asked of a folder that vitrim saved."""
    for name in ("image_size", "classes"):
        if getattr(options, name) is not None:
            raise InputError(
                f"{name} goes with other models only: the folder's vit.json already says what the model is"
            )


def find_weights(folder: Path, kind: Kind) -> Path | None:
    """The file with a folder's weights, or their index; None where there is none."""
    return next((folder / name for name in WEIGHTS[kind] if (folder / name).is_file()), None)


def read_json(path: Path) -> dict[str, Any]:
    """Read a config; raises InputError."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{str(path)!r} must hold a JSON object, got {type(content).__name__}")
    return content


def download(name: str) -> Path:
    """Bring configs and weights of a hub model here by the hub's own client; returns their folder.

    name: user/model or user/model@revision. What was downloaded before is not downloaded again, and is found without
    a network. Raises InputError.
    """
    from huggingface_hub import list_repo_files, snapshot_download

    match = HUB_NAME.fullmatch(name)
    assert match is not None  # SourceOptions checks it
    repository, revision = match["repository"], match["revision"]
    configs = [*CONFIGS.values(), *PROCESSORS]
    try:
        try:
            wanted = [*configs, *_weights_among(list_repo_files(repository, revision=revision))]
            return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
        except OSError:  # no network: all errors of its kind, and the client's own, are OSErrors
            return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except Exception as error:  # the hub's client raises a dozen kinds
        reason = str(error).strip().splitlines() or ["no message"]
        raise InputError(
            f"cannot load {name!r} from the hub: {type(error).__name__}: {reason[0]}; where there is no network, "
            "give folder with its files"
        ) from error


def _weights_among(files: list[str]) -> list[str]:
    """The weights to fetch: one format, safetensors where there are any. Patterns for shards."""
    for kind in (Kind.OPEN_CLIP, Kind.TRANSFORMERS):
        if CONFIGS[kind] not in files:
            continue
        for name in WEIGHTS[kind]:
            if name in files:
                stem, _, suffix = name.removesuffix(".index.json").rpartition(".")
                shards = f"{stem}-*-of-*.{suffix}"
                return [name, *(fnmatch.filter(files, shards) if name.endswith(".json") else [])]
    return []
