"""Which images there are in folders, zips, tars and tables. Archives are untrusted and checked before use."""

import glob
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from stages.data.place import SUFFIXES, File, Listed, Member, is_hidden, is_image_name, printable, unsafe_name
from stages.data.shards import list_shard
from stages.data.tables import FOUND, TABLE_SUFFIXES, Columns, data_set_files, list_table
from targets.bundle.pixels import MAX_FILE_BYTES
from targets.errors import InputError

MAX_MEMBERS = 5_000_000
MAX_RATIO = 200
"""uncompressed / compressed, for members over a mebibyte; images hardly compress, zip bombs reach 1,000"""


ARCHIVES = (".zip", ".tar", *TABLE_SUFFIXES)
"""suffixes of files that hold images"""
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
"""WebDataset's way to name shards: train-{0000..0099}.tar"""
MAX_SHARDS = 100_000


def list_images(
    paths: Sequence[Path], *, columns: Columns = FOUND, cache: Path | None = None
) -> list[tuple[Path, list[Listed]]]:
    """Find the images of each folder and archive; hidden files and files with other suffixes do not count.

    A folder without images but with archives stands for these. columns: of tables. cache: the index
    cache. Raises InputError: nothing there, unsafe archives, mixtures.
    """
    roots = [root for path in paths for named in _named(path) for root in _expand(named)]
    names = _distinct_names(roots)
    found = []
    for root, prefix in zip(roots, names, strict=True):
        listed = _list_root(root, prefix, columns, cache)
        if not listed:
            raise InputError(
                f"no images in {str(root)!r}; an image ends in {', '.join(sorted(SUFFIXES))}{_instead(root)}"
            )
        found.append((root, listed))
    return found


def _list_root(root: Path, prefix: str, columns: Columns, cache: Path | None) -> list[Listed]:
    suffix = root.suffix.lower()
    if root.is_dir():
        return _folder_files(root, prefix)
    if suffix in TABLE_SUFFIXES:
        return list_table(root, prefix, columns, cache=cache)
    return list_shard(root, prefix, cache=cache) if suffix == ".tar" else _zip_members(root, prefix)


def _named(path: Path) -> list[Path]:
    """The paths that one with a wildcard (*, ?) or a range ({0000..0099}) names."""
    if path.exists():
        return [path]
    texts = [str(path)]
    while any(RANGE.search(text) for text in texts):
        texts = [one for text in texts for one in _count(text)]
    if texts == [str(path)] and not any(character in texts[0] for character in "*?"):
        return [path]
    found = [Path(one) for text in texts for one in sorted(glob.glob(text, recursive=True) or [text])]
    missing = [one for one in found if not one.exists()]
    if missing:
        raise InputError(f"no file or folder at {str(missing[0])!r}, which {str(path)!r} names")
    return found


def _count(text: str) -> list[str]:
    match = RANGE.search(text)
    if match is None:
        return [text]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    if not 0 < len(numbers) <= MAX_SHARDS:
        raise InputError(f"{text!r} names {len(numbers):,} files; a range counts up, over at most {MAX_SHARDS:,}")
    width = len(first) if len(first) == len(last) else 0
    return [f"{text[: match.start()]}{number:0{width}}{text[match.end() :]}" for number in numbers]


def _expand(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"no folder or zip at {str(path)!r}; relative paths start at the recipe's folder")
    if path.is_file():
        if path.suffix.lower() not in ARCHIVES[1:] and not zipfile.is_zipfile(path):
            raise InputError(
                f"{str(path)!r} is neither a folder nor a complete zip; give a folder or a zip of images, "
                "a .tar, .parquet or .arrow"
            )
        return [path]
    if not path.is_dir():
        raise InputError(f"{str(path)!r} is neither a folder nor a zip")
    saved = data_set_files(path)
    if saved is not None:
        return saved
    try:
        archives = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in ARCHIVES and entry.is_file())
    except OSError as error:
        raise InputError(f"cannot list {str(path)!r}: {error.strerror}") from error
    archives = [one for one in archives if not is_hidden(one.name)]
    if not archives:
        return [path]
    if next(_walk(path), None) is not None:
        kind = archives[0].suffix.lower().lstrip(".")
        raise InputError(
            f"{str(path)!r} holds both images and {kind}s ({archives[0].name!r}); name what is meant one by one"
        )
    if len({one.suffix.lower() for one in archives}) > 1:
        raise InputError(f"{str(path)!r} holds archives of several kinds; name what is meant one by one, or as *.tar")
    return [archived for folder in archives for archived in _expand(folder)]


def _distinct_names(roots: Sequence[Path]) -> list[str]:
    """A prefix for the ids of each root: none for a single one, else its name, numbered where names repeat."""
    resolved = [root.resolve() for root in roots]
    if len(set(resolved)) < len(resolved):
        twice = next(root for root, count in Counter(resolved).items() if count > 1)
        raise InputError(f"{str(twice)!r} is named twice in images")
    if len(roots) == 1:
        return [""]
    seen: Counter[str] = Counter()
    names = []
    for root in resolved:
        seen[root.name] += 1
        names.append(f"{root.name}/" if seen[root.name] == 1 else f"{root.name}#{seen[root.name]}/")
    return names


def _folder_files(root: Path, prefix: str) -> list[Listed]:
    listed = []
    for path in _walk(root):
        name = printable(path.removeprefix(str(root)).replace(os.sep, "/").lstrip("/"))
        listed.append(Listed(prefix + name, name, File(path)))
    return listed


def _walk(root: Path) -> Iterator[str]:
    """Image files below a folder; links are followed, a folder is entered once."""

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot list {str(error.filename)!r}: {error.strerror}") from error

    entered: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield from (os.path.join(folder, name) for name in files if is_image_name(name))


def _zip_members(root: Path, prefix: str) -> list[Listed]:
    try:
        with zipfile.ZipFile(root) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"cannot read the zip {str(root)!r}: {error}") from error
    if len(members) > MAX_MEMBERS:
        raise InputError(f"{str(root)!r} has {len(members):,} members, at most {MAX_MEMBERS:,} are read; split it")
    images: dict[str, Listed] = {}
    for member in members:
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if reason := _unsafe(member) or ("is there twice" if str(path) in images else None):
            raise InputError(f"{str(root)!r}: member {member.orig_filename!r} {reason}; pack the zip anew without it")
        if not member.is_dir() and is_image_name(path.name) and not any(is_hidden(part) for part in path.parts):
            name = printable(str(path))
            images[str(path)] = Listed(prefix + name, name, Member(str(root), member.filename))
    if sum(member.compress_size for member in members) > root.stat().st_size:
        raise InputError(f"{str(root)!r}: its members overlap, as in a zip bomb; pack the zip anew")
    return list(images.values())


def _unsafe(member: zipfile.ZipInfo) -> str | None:
    """Why a member is refused, or None."""
    if reason := unsafe_name(member.orig_filename, "zip"):
        return reason
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a symbolic link"
    if member.flag_bits & 0x1:
        return "is encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {member.compress_type} (only stored and deflated are read)"
    if member.file_size > MAX_FILE_BYTES:
        return f"has {member.file_size:,} bytes, more than {MAX_FILE_BYTES:,}"
    if member.file_size > 2**20 and member.file_size > MAX_RATIO * member.compress_size:
        return f"grows more than {MAX_RATIO} times when unpacked, as in a zip bomb"
    return None


def _instead(root: Path) -> str:
    """What a folder holds in place of images, for the message."""
    if not root.is_dir():
        return ""
    suffixes = Counter(path.suffix.lower() or "no suffix" for path in root.rglob("*") if path.is_file())
    return (
        "; it holds " + ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(3)) if suffixes else ""
    )
