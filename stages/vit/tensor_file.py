"""Reads safetensors files without their library, so that model folders need torch and nothing else."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors library
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file without its library; raises ValueError if it is damaged.

    https://huggingface.co/docs/safetensors
    Layout: eight bytes, little endian: length of the header; the header, JSON; then the tensors' bytes without gaps.
    """
    path = Path(path)
    with path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise ValueError(f"{path} is no whole safetensors file: {size} bytes, header of {length} bytes")
        try:
            header = json.loads(file.read(length).decode())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: the header is not JSON: {error}") from error
        start, state = 8 + length, {}
        for name, dtype, shape, (begin, end) in _layout(path, header, data_size=size - start):
            file.seek(start + begin)
            buffer = bytearray(end - begin)
            file.readinto(buffer)
            flat = torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)
            state[name] = flat.reshape(shape)
    return state


def _layout(path: Path, header: Any, *, data_size: int) -> list[tuple[str, torch.dtype, list[int], tuple[int, int]]]:
    """Check a header and return name, dtype, shape and byte range of every tensor, in file order."""
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the header is no JSON object")
    entries = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (begin, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            whole = all(type(number) is int and 0 <= number < 2**48 for number in [*shape, begin, end])
            fits = whole and end - begin == prod(shape) * dtype.itemsize
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: the header's entry of tensor {name!r} is not valid: {entry!r}") from error
        if not fits:
            raise ValueError(f"{path}: tensor {name!r}: bytes {begin} to {end} do not hold {entry['dtype']} {shape}")
        entries.append((name, dtype, shape, (begin, end)))
    entries.sort(key=lambda entry: entry[3])
    position = 0
    for name, _, _, (begin, end) in entries:
        if begin != position:
            raise ValueError(f"{path}: tensor {name!r} starts at byte {begin}, not {position}: an overlap or a gap")
        position = end
    if position != data_size:
        raise ValueError(f"{path} is truncated or too long: tensors end at byte {position}, data at {data_size}")
    return entries
