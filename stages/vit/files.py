"""Reading and writing model folders and checkpoints; no pickled object is ever run.

A model folder holds `vit.json` (the spec), `model.safetensors`, `model.py` (reloads it without vitrim) and, where the
classes have names, `labels.json`.
"""

import argparse
import json
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.vit import model as model_file
from stages.vit.model import ViT
from stages.vit.spec import SPEC_FILE, WEIGHTS_FILE, ViTSpec
from targets.errors import InputError

LABELS_FILE = "labels.json"
CODE_FILE = "model.py"
AFTER_DOCSTRING = "from __future__ import annotations\n"
SHOWN = 5  # tensors named in a message


def save_model(
    folder: Path, spec: ViTSpec, state: Mapping[str, Tensor], *, labels: Sequence[str] | None = None
) -> None:
    """Write a model folder; raises InputError where the state does not fit the spec or holds NaN.

    The same spec and state give the same bytes.
    """
    check_fits(state, build_empty(spec))
    check_finite(state, origin="the model to save")
    save_description(folder, spec, labels=labels)
    tensors = {name: state[name].detach().cpu().contiguous().clone() for name in sorted(state)}
    save_file(tensors, folder / WEIGHTS_FILE)


def save_description(folder: Path, spec: ViTSpec, *, labels: Sequence[str] | None) -> None:
    """Write everything of a model folder but its weights."""
    if labels is not None and len(labels) != spec.classes:
        raise InputError(f"{len(labels)} labels for {spec.classes} classes; give one label per class")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SPEC_FILE).write_text(
        json.dumps(spec.model_dump(mode="json"), indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    (folder / CODE_FILE).write_text(standalone_code(), encoding="utf-8")
    if labels is not None:
        (folder / LABELS_FILE).write_text(
            json.dumps(list(labels), indent=0, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def standalone_code() -> str:
    """Return model.py as it lies in model folders: what it imports from vitrim is written into it."""

    def written_out(line: re.Match[str]) -> str:
        code = Path(str(import_module(line[1]).__file__)).read_text(encoding="utf-8")
        return code.partition(AFTER_DOCSTRING)[2].strip() + "\n"

    code = Path(model_file.__file__).read_text(encoding="utf-8")
    return re.sub(r"^from (stages\.\S+) import .*\n", written_out, code, flags=re.MULTILINE)


def load_model(folder: Path) -> ViT:
    """Rebuild a folder's model, in evaluation mode, on the CPU."""
    spec, state = load_spec(folder), load_state(folder)
    model = build_empty(spec)
    check_fits(state, model)
    model.load_state_dict(state, assign=True)
    return model.eval()


def load_spec(folder: Path) -> ViTSpec:
    """Read a folder's vit.json; raises InputError."""
    path = folder / SPEC_FILE
    try:
        return ViTSpec.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{folder} is not a vitrim model folder: cannot read {SPEC_FILE}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path} is not a valid spec: {where + ': ' if where else ''}{first['msg']}") from error


def load_state(folder: Path) -> dict[str, Tensor]:
    """Read a folder's weights; raises InputError."""
    return read_checkpoint(folder / WEIGHTS_FILE)


def load_labels(folder: Path) -> list[str] | None:
    """Read the names of a folder's classes, None where it has none."""
    path = folder / LABELS_FILE
    if not path.exists():
        return None
    try:
        labels = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InputError(f"{path} must hold a JSON list of strings")
    return labels


def build_empty(spec: ViTSpec) -> ViT:
    """Build the module without memory for its weights (meta device): for shapes, or to assign a state."""
    with torch.device("meta"):
        return ViT(spec.model_dump(mode="json"))


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the weights of a safetensors file or of a PyTorch file that holds tensors only.

    A PyTorch file (.pth, .pt, .bin) is read with weights_only=True, so nothing in it can run. Raises InputError.
    """
    if not path.is_file():
        raise InputError(f"checkpoint {str(path)!r} is {'a folder' if path.is_dir() else 'not there'}; give a file")
    if path.stat().st_size == 0:
        raise InputError(f"checkpoint {str(path)!r} is empty")
    try:
        if path.suffix == ".safetensors":
            state: dict[str, Tensor] = load_file(path)
        elif path.suffix in {".pth", ".pt", ".bin"}:
            # torch warns about pickles that it goes on to refuse. DeiT's trainer saves its options as a Namespace.
            with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
            state = _unwrap(content, path)
        else:
            raise InputError(
                f"checkpoint {str(path)!r}: unknown ending {path.suffix!r}; known: .safetensors, .pth, .pt, .bin"
            )
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {str(path)!r} is damaged or a pickle that holds more than tensors, which could run code when "
            "opened; save its state_dict() alone, best as .safetensors"
        ) from error
    except RuntimeError as error:
        if "TorchScript" in str(error):  # as OpenAI publishes CLIP
            raise InputError(
                f"checkpoint {str(path)!r} is a TorchScript archive, which holds code; save its state_dict() alone"
            ) from error
        raise InputError(
            f"checkpoint {str(path)!r} cannot be read, perhaps it is truncated: {_reason(error)}"
        ) from error
    except (SafetensorError, EOFError, ValueError, KeyError, OSError) as error:
        raise InputError(
            f"checkpoint {str(path)!r} cannot be read, perhaps it is truncated: {_reason(error)}"
        ) from error
    if not state:
        raise InputError(f"checkpoint {str(path)!r} holds no tensors")
    check_finite(state, origin=f"checkpoint {str(path)!r}")
    return state


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a checkpoint; of a safetensors file only the header is read."""
    if path.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in read_checkpoint(path).items()}
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"checkpoint {str(path)!r} cannot be read, perhaps it is truncated: {error}") from error


def check_finite(state: Mapping[str, Tensor], *, origin: str) -> None:
    """Raise InputError where a tensor holds NaN or infinity."""
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise InputError(f"{origin} holds NaN or infinity in {_first(bad)}; it is damaged or its training diverged")


def check_fits(state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise InputError that says which tensors are missing, not expected, or of another shape."""
    expected, found = (
        {name: tuple(tensor.shape) for name, tensor in each.items()} for each in (model.state_dict(), state)
    )
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    reshaped = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = {"missing": missing, "not expected": unexpected, "of another shape": reshaped}
    if any(problems.values()):
        parts = [f"{len(names)} {kind} ({_first(names)})" for kind, names in problems.items() if names]
        raise InputError(f"the weights do not fit the model: tensors {'; '.join(parts)}")


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the state dict in what training scripts save around it."""
    for key in ("state_dict_ema", "model_ema", "state_dict", "model", "teacher"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise InputError(f"checkpoint {str(path)!r} does not hold a state dict (names with tensors) and nothing else")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
