"""WebDataset shards: tar files whose members with one key (`0001.jpg`, `0001.cls`) are one sample. Plain tars, too.

A tar has no directory, so its headers are read one after the other, once: the index cache keeps their offsets. Images
are then read by offset, in any order, by any process, and nothing is unpacked. Tars are untrusted and checked before
use. Format: https://github.com/webdataset/webdataset.
"""

import json
import os
import re
import tarfile
from pathlib import Path, PurePosixPath

from stages.data.index import recall_listing
from stages.data.place import Label, Listed, Slice, is_hidden, is_image_name, printable, unsafe_name
from targets.bundle.pixels import MAX_FILE_BYTES
from targets.errors import InputError

MAX_LABEL_BYTES = 2**20


def list_shard(root: Path, prefix: str, *, cache: Path | None = None) -> list[Listed]:
    """The images of a tar, with the labels that lie beside them. Raises InputError for a tar that is not safe or whole.

    `KEY.cls` holds a number or a class name; without it, `label` of `KEY.json` counts. cache: the index cache, which
    keeps the offsets.
    """
    rows = recall_listing(root, cache=cache, make=lambda: _rows(root))
    return [
        Listed(prefix + name, name, Slice(str(root), name, offset, size), label=label)
        for name, offset, size, label in rows
    ]


def _rows(root: Path) -> list[tuple[str, int, int, Label | None]]:
    """Name, offset, size and label of each image."""
    members, labels = _read(root)
    by_key: dict[str, list[str]] = {}
    for path in members:
        by_key.setdefault(_key(path), []).append(path)
    rows: list[tuple[str, int, int, Label | None]] = []
    for key, paths in by_key.items():
        plain = [path for path in paths if "." not in path[len(key) + 1 :]]
        for path in plain or paths:  # 0001.seg.png beside 0001.jpg is no image of its own
            rows.append((printable(path), *members[path], labels.get(key)))
    return rows


def _read(root: Path) -> tuple[dict[str, tuple[int, int]], dict[str, Label]]:
    """Offset and size of image members by path, and labels by key."""
    size = os.stat(root).st_size
    members: dict[str, tuple[int, int]] = {}
    labels: dict[str, Label] = {}
    weak: dict[str, Label] = {}
    end = 0
    try:
        with tarfile.open(root, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it keeps every header: 1 GB of a million images
                path = str(PurePosixPath(member.name))
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                reason = (
                    unsafe_name(member.name, "tar")
                    or _unsafe(member)
                    or ("is there twice" if path in members else None)
                )
                if reason:
                    raise InputError(f"{str(root)!r}: member {member.name!r} {reason}; pack the tar anew without it")
                if member.isdir() or any(is_hidden(part) for part in PurePosixPath(path).parts):
                    continue
                if member.offset_data + member.size > size:
                    raise InputError(
                        f"{str(root)!r} ends within its member {member.name!r}; it is not whole, copy it again"
                    )
                if is_image_name(path):
                    members[path] = (member.offset_data, member.size)
                elif path.endswith(".cls"):
                    labels[_key(path)] = _class(_content(archive, member, root), root, path)
                elif path.endswith(".json"):
                    label = _label_of(_content(archive, member, root))
                    if label is not None:
                        weak[_key(path)] = label
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise InputError(
            f"cannot read {str(root)!r} as a tar: {error}; compressed tars have no random access: unpack them to .tar"
        ) from error
    if not _ends_at(root, end):
        raise InputError(f"{str(root)!r} lacks the empty block that ends a tar; it is not whole, copy it again")
    return members, {**weak, **labels}


def _ends_at(root: Path, end: int) -> bool:
    """Whether the block after the last member is empty: tarfile takes a tar that was cut between two for whole."""
    with root.open("rb") as file:
        file.seek(end)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _key(path: str) -> str:
    """WebDataset's key: the path up to the first dot of its last part."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _unsafe(member: tarfile.TarInfo) -> str | None:
    if member.issym() or member.islnk():
        return "is a link"
    if member.issparse():
        return "is a sparse file"
    if not member.isfile() and not member.isdir():
        return "is no regular file"
    if member.size > MAX_FILE_BYTES:
        return f"has {member.size:,} bytes, more than {MAX_FILE_BYTES:,}"
    return None


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> bytes:
    if member.size > MAX_LABEL_BYTES:
        raise InputError(
            f"{str(root)!r}: label {member.name!r} has {member.size:,} bytes, more than {MAX_LABEL_BYTES:,}"
        )
    file = archive.extractfile(member)
    return file.read() if file is not None else b""


def _class(content: bytes, root: Path, path: str) -> Label:
    text = content.decode("utf-8", "replace").strip()
    if not text:
        raise InputError(f"{str(root)!r}: label {path!r} is empty; it must hold a number or a class name")
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text


def _label_of(content: bytes) -> Label | None:
    """The label in a sample's JSON, None where it has none."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    label = found.get("label") if isinstance(found, dict) else None
    return label if type(label) in (int, str) else None
