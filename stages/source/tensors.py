"""Weights of other libraries: reading their shards, and what their names become.

Shapes: D residual width, G old grid of patches, T prefix tokens that have a position, C classes, F feature width.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.source.folders import read_json
from stages.vit.files import read_checkpoint
from targets.errors import InputError

HEAD_STD = 0.02

Renames = tuple[tuple[str, str], ...]
"""pairs of a regular expression and what takes its place; the first that matches counts"""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a weights file, or all shards that an index (.index.json) names. Raises InputError."""
    if path.suffix != ".json":
        return read_checkpoint(path)
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise InputError(f"{str(path)!r} has no weight_map of tensors to files")
    state: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise InputError(f"{str(path)!r} names the shard {shard!r}, which is not in its folder")
        state |= read_checkpoint(path.parent / shard)
    return state


def rename(state: Mapping[str, Tensor], renames: Renames, *, dropped: Iterable[str] = ()) -> dict[str, Tensor]:
    """Give tensors their new names, in fp32; those that match `dropped` are left out, unknown names stay."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if any(re.match(pattern, name) for pattern in dropped):
            continue
        for pattern, replacement in renames:
            new, count = re.subn(pattern, replacement, name, count=1)
            if count:
                name = new
                break
        renamed[name] = tensor.float() if tensor.is_floating_point() else tensor
    return renamed


def pack_qkv(state: dict[str, Tensor], *, query: str = "query", key: str = "key", value: str = "value") -> None:
    """Put the three projections of each block one below the other, in place: blocks.i.attn.qkv."""
    for name in [name for name in state if f".attn.{query}." in name]:
        names = [name.replace(f".attn.{query}.", f".attn.{part}.") for part in (query, key, value)]
        if all(one in state for one in names):
            state[name.replace(f".attn.{query}.", ".attn.qkv.")] = torch.cat([state.pop(one) for one in names])


def resample_position(
    position: Tensor, size: tuple[int, int], *, prefix: int, antialias: bool, old: tuple[int, int] | None = None
) -> Tensor:
    """Resample a position embedding to another grid by bicubic interpolation; the prefix stays.

    position: [1, T + G, D]; old: its grid, a square where None. Returns [1, T + height * width, D].
    """
    patches = position.shape[1] - prefix
    side = round(patches**0.5)
    height, width = old or (side, side)
    if height * width != patches:
        raise InputError(f"the position embedding has {patches} patches, which is not a grid of {height} x {width}")
    if (height, width) == size:
        return position
    grid = position[:, prefix:].reshape(1, height, width, -1).permute(0, 3, 1, 2)  # [1, D, height, width]
    grid = F.interpolate(grid, size=size, mode="bicubic", antialias=antialias)
    return torch.cat([position[:, :prefix], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def set_classes(state: dict[str, Tensor], classes: int, *, features: int, seed: int) -> bool:
    """Give the state a head of so many classes, in place; returns whether it is new, drawn from the seed.

    A head that has so many outputs already stays. 0: no head. features: F.
    """
    head = state.get("head.weight")
    if (len(head) if head is not None else 0) == classes:
        return False
    state.pop("head.weight", None)
    state.pop("head.bias", None)
    if classes:
        weight = torch.empty(classes, features)
        state["head.weight"] = nn.init.trunc_normal_(
            weight, std=HEAD_STD, generator=torch.Generator().manual_seed(seed)
        )
        state["head.bias"] = torch.zeros(classes)
    return bool(classes)
