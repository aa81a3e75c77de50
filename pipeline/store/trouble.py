"""What the filesystem refused, in one line a user can act on: what, where, how much is missing, what to do."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from targets.errors import StoreError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REFUSED = {errno.EACCES, errno.EPERM}
ELSEWHERE = "point VITRIM_STORE to a folder"


@contextmanager
def explained(root: Path, doing: str) -> Iterator[None]:
    """Turn what the filesystem says about the store's own files into a StoreError."""
    try:
        yield
    except OSError as error:
        raise explain(error, root=root, doing=doing) from error


def explain(error: OSError, *, root: Path, doing: str, written_bytes: int = 0) -> StoreError:
    """One line for one refusal."""
    place = error.filename if isinstance(error.filename, str | Path) else str(root)
    if error.errno in FULL:
        return no_space(root, doing=doing, place=str(place), written_bytes=written_bytes)
    if error.errno == errno.EROFS:
        return StoreError(
            f"cannot {doing}: {str(place)!r} is on a read-only filesystem; {ELSEWHERE} that can be written"
        )
    if error.errno in REFUSED:
        return StoreError(
            f"cannot {doing}: no permission for {str(place)!r} (user id {os.getuid()}); {ELSEWHERE} of your own"
        )
    if error.errno in {errno.ENOTDIR, errno.EEXIST} and (file := _file_on_the_way(root)):
        return StoreError(
            f"cannot {doing}: {str(file)!r} is a file where the store {str(root)!r} needs a folder; {ELSEWHERE}"
        )
    return StoreError(
        f"cannot {doing}: {error.strerror or error} ({str(place)!r}); `vitrim store verify` checks what is there"
    )


def no_space(root: Path, *, doing: str, place: str = "", needs_bytes: int = 0, written_bytes: int = 0) -> StoreError:
    """The line for a full disk."""
    free = free_bytes(root)
    facts = f"{size_text(free)} free"
    if needs_bytes:
        facts = (
            f"needs about {size_text(needs_bytes)}, has {size_text(free)} free, {size_text(needs_bytes - free)} missing"
        )
    elif written_bytes:
        facts += f" after {size_text(written_bytes)} of this step"
    where = repr(place or str(root))
    advice = f"free some space, run `vitrim store gc`, or {ELSEWHERE} on a larger disk"
    return StoreError(f"no space left to {doing}: {where} ({facts}); nothing finished is lost: {advice}")


def ran_out_of_space(error: BaseException) -> bool:
    """Whether a full disk is behind an error; libraries written in other languages wrap it in their own types."""
    seen: BaseException | None = error
    while seen is not None:
        if (isinstance(seen, OSError) and seen.errno in FULL) or any(
            os.strerror(number) in str(seen) for number in FULL
        ):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def free_bytes(folder: Path) -> int:
    """Bytes that this user can still write near a folder, which need not exist yet."""
    while True:
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            if folder == folder.parent:
                return 0
            folder = folder.parent


def size_text(size_bytes: int) -> str:
    """A size for people, in powers of 1024."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _file_on_the_way(root: Path) -> Path | None:
    return next((folder for folder in (root, *root.parents) if os.path.lexists(folder) and not folder.is_dir()), None)
