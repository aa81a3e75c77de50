"""Safetensors files tensor by tensor: for models that do not fit into memory twice, or at all.

Reading maps the file for one tensor at a time. Writing takes shapes first and tensors one after the other; the bytes
are those of the safetensors library, which can only write what is all in memory.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stages.vit.tensor_file import DTYPES
from targets.errors import InputError

NAMES = {dtype: name for name, dtype in DTYPES.items()}
ORDER = ("BOOL", "U8", "I8", "I16", "F16", "BF16", "I32", "F32", "F64", "I64")
"""of the library, which writes the last kind first"""


@dataclass(frozen=True)
class Entry:
    """What a file's header says about one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        return prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """A safetensors file that is read one tensor at a time; raises InputError where it is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    part = file.get_slice(name)
                    self.entries[name] = Entry(DTYPES[part.get_dtype()], tuple(part.get_shape()))
        except (SafetensorError, OSError, KeyError) as error:
            raise InputError(f"checkpoint {str(path)!r} cannot be read, perhaps it is truncated: {error}") from error

    def shapes(self) -> dict[str, Tensor]:
        """Every tensor without its memory (meta device)."""
        return {name: torch.empty(entry.shape, device="meta") for name, entry in self.entries.items()}

    def read(self, name: str) -> Tensor:
        """Return one tensor in memory of its own: the file's pages are given back at once."""
        with safe_open(self.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name).clone()
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(
                f"checkpoint {str(self.path)!r} holds NaN or infinity in {name}; it is damaged or its training diverged"
            )
        return tensor


def in_file_order(entries: Mapping[str, Entry]) -> list[str]:
    """Names in the order in which a file holds them: wide kinds first, so that all are aligned; then by name."""
    return sorted(entries, key=lambda name: (-ORDER.index(NAMES[entries[name].dtype]), name))


def write_tensors(path: Path, entries: Mapping[str, Entry], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write a safetensors file. tensors: in the order of `in_file_order`, taken one by one."""
    names = in_file_order(entries)
    header: dict[str, object] = {}
    end = 0
    for name in names:
        entry = entries[name]
        start, end = end, end + entry.nbytes
        header[name] = {"dtype": NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (given, tensor) in zip(names, tensors, strict=True):
            if given != name or (tensor.dtype, tuple(tensor.shape)) != (entries[name].dtype, entries[name].shape):
                raise ValueError(f"expected {name} {entries[name]}, got {given} {tensor.dtype} {list(tensor.shape)}")
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def with_shapes(entries: Mapping[str, Entry], shapes: Mapping[str, Tensor]) -> dict[str, Entry]:
    """Return entries with other shapes and the same kinds of numbers. shapes: of a module on the meta device."""
    return {name: Entry(entries[name].dtype, tuple(tensor.shape)) for name, tensor in shapes.items()}
