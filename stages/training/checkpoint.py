"""Checkpoints of a training run: whole or ignored, without pickle.

A checkpoint is two files: `step-00000120.safetensors`, and `step-00000120.json`, which is written after it and holds
its digest. So a process killed at any time, or a machine that loses power, leaves the one before.
"""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from targets.atomic import TEMPORARY, sha256_of, sync_folder, write_atomic
from targets.errors import StoreError

log = logging.getLogger("vitrim.training")

FORMAT = "vitrim.checkpoint/1"
KEPT = 2
"""the newest, and the one before for the case that the newest is torn"""


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stood."""

    step: int
    tensors: dict[str, Tensor]
    progress: dict[str, Any]
    """plain JSON"""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, run: str) -> None:
    """Write a checkpoint and remove those that it makes needless; run identifies what may go on from it.

    Raises StoreError when the folder cannot be written or is full.
    """
    weights, state = _files(folder, checkpoint.step)
    temporary = folder / f".{weights.name}{TEMPORARY}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        state.unlink(missing_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        save_file(tensors, temporary)
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        sha256 = sha256_of(temporary)
        os.replace(temporary, weights)
        sync_folder(folder)
        content = {
            "format": FORMAT,
            "run": run,
            "step": checkpoint.step,
            "sha256": sha256,
            "progress": checkpoint.progress,
        }
        write_atomic(state, json.dumps(content, allow_nan=False).encode())
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"cannot write a checkpoint in {str(folder)!r}: {error}; free space there and build again"
        ) from error
    for old in sorted(folder.glob("step-*.json"))[:-KEPT]:
        old.unlink(missing_ok=True)
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def load_newest(folder: Path, *, run: str) -> Checkpoint | None:
    """The newest whole checkpoint of this run, None where there is none; removes what can never be used."""
    for leftover in folder.glob(f".step-*{TEMPORARY}"):
        leftover.unlink(missing_ok=True)
    for weights in sorted(folder.glob("step-*.safetensors"), reverse=True):
        state = weights.with_suffix(".json")
        try:
            return _read(state, weights, run)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            log.warning("checkpoint %s is not used: %s", weights.name, error)
            state.unlink(missing_ok=True)
            weights.unlink(missing_ok=True)
    return None


def _read(state: Path, weights: Path, run: str) -> Checkpoint:
    content = json.loads(state.read_bytes())
    if content["format"] != FORMAT or content["run"] != run:
        raise ValueError("it belongs to another run")
    if sha256_of(weights) != content["sha256"]:
        raise ValueError("its weights are torn")
    return Checkpoint(content["step"], load_file(weights), content["progress"])


def _files(folder: Path, step: int) -> tuple[Path, Path]:
    return folder / f"step-{step:08}.safetensors", folder / f"step-{step:08}.json"
