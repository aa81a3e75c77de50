"""Files to a board and back: by content, verified where they arrive, and continued where the link broke."""

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets.agent import receive
from targets.agent.shelf import TREE
from targets.atomic import sha256_of, sync_folder
from targets.devices.channel import Channel
from targets.devices.link import Link
from targets.errors import DeviceLostError, DeviceRefusedError, InputError, VitrimError

CHUNK = 1 << 18
SILENCE_SECONDS = 60.0
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Item:
    """One object: a file here, or bytes."""

    digest: str
    size_bytes: int
    source: Path | bytes

    def read(self, offset: int) -> Iterator[bytes]:
        """Its content from a byte on."""
        if isinstance(self.source, bytes):
            yield self.source[offset:]
            return
        with open(self.source, "rb") as file:
            file.seek(offset)
            while chunk := file.read(CHUNK):
                yield chunk


def item_of(source: Path | bytes) -> Item:
    """An object out of a file or bytes."""
    if isinstance(source, bytes):
        return Item(hashlib.sha256(source).hexdigest(), len(source), source)
    return Item(sha256_of(source), source.stat().st_size, source)


def items_of(path: Path) -> tuple[str, list[Item]]:
    """Objects that a file or folder is there, and the digest that names it; a folder's is that of its list of files."""
    if path.is_file():
        item = item_of(path)
        return item.digest, [item]
    if not path.is_dir():
        raise InputError(f"there is no file or folder {str(path)!r} to copy to the board")
    files = sorted(one for one in path.rglob("*") if one.is_file())
    items = {one.relative_to(path).as_posix(): item_of(one) for one in files}
    listed = {name: {"sha256": item.digest, "size_bytes": item.size_bytes} for name, item in items.items()}
    tree = item_of(json.dumps({"format": TREE, "files": listed}, sort_keys=True).encode())
    unique = {item.digest: item for item in (*items.values(), tree)}
    return tree.digest, list(unique.values())


def send(link: Link, item: Item, *, stall_seconds: float, progress: Progress = lambda count: None) -> None:
    """Bring one object onto a board, which needs nothing but Python for it.

    Raises DeviceLostError where sending again may help (it goes on where it was), DeviceRefusedError where not.
    """
    words = [link.python, "-c", inspect.getsource(receive), link.folder, item.digest, str(item.size_bytes)]
    channel = Channel(link, [*words, str(SILENCE_SECONDS)])
    try:
        told = channel.line(seconds=stall_seconds)
        if "offset" in told:
            progress(told["offset"])
            try:
                for chunk in item.read(told["offset"]):
                    channel.write(chunk, seconds=stall_seconds)
                    progress(len(chunk))
                channel.finish_writing()
            except DeviceLostError as error:
                told = _reason(channel, error)
            else:
                told = channel.line(seconds=stall_seconds + item.size_bytes / 20e6)  # it verifies all of it
    finally:
        channel.close()
    if "error" in told:
        kind = DeviceLostError if told.get("again") else DeviceRefusedError
        raise kind(f"the board could not take a file of {item.size_bytes / 1e6:.1f} MB: {told['error']}")


def _reason(channel: Channel, error: DeviceLostError) -> dict[str, Any]:
    """Why the board took no more bytes: what it said before it left, else that the link is gone."""
    try:
        return channel.line(seconds=1)
    except VitrimError:
        raise error from None


def fetch(link: Link, agent: str, digest: str, size_bytes: int, folder: Path, *, stall_seconds: float) -> Path:
    """Bring an object back into a folder here, verified; goes on where an earlier try stopped."""
    path = folder / digest
    part = path.with_suffix(".part")
    offset = part.stat().st_size if part.is_file() else 0
    channel = Channel(link, [link.python, agent, "send", link.folder, digest, str(offset)])
    try:
        told: dict[str, Any] = channel.line(seconds=stall_seconds)
        if "error" in told:
            raise DeviceRefusedError(f"the board cannot give {digest[:12]}: {told['error']['message']}")
        with open(part, "ab") as file:
            data = channel.rest()
            while True:
                file.write(data)
                offset += len(data)
                if offset >= size_bytes:
                    break
                data = channel.read(seconds=stall_seconds)
            file.flush()
            os.fsync(file.fileno())
    finally:
        channel.close()
    if sha256_of(part) != digest:
        part.unlink()
        raise DeviceLostError(f"what came back as {digest[:12]} is not what the board has")
    os.replace(part, path)
    sync_folder(folder)
    return path
