"""Take one file from standard input into a board's store, whatever happens to the link meanwhile.

Standard library only, and nothing of ours: a board that has no agent yet runs the text of this file by `python3 -c`.
Words: FOLDER SHA256 SIZE SILENCE. The answer is lines of JSON behind a mark, so that what a login shell prints does no
harm: {"have": true}, or {"offset": N}, after which the bytes from N are read, and then {"done": true} or {"error": ...,
"again": whether sending again may help}.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import select
import sys

MARK = "\x1e"
"""before each line of ours; no text has it"""


def main(words: "list[str]") -> int:
    """Take the file; returns the exit code."""
    folder, digest, size, silence = os.path.join(words[0], "objects"), words[1], int(words[2]), float(words[3])
    whole = os.path.join(folder, digest)
    part = whole + ".part"
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if os.path.isfile(whole) and os.path.getsize(whole) == size and _sha256(whole) == digest:
            _say({"have": True})
            return 0
        return _take(part, whole, digest, size, silence)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(part)  # space for others
        _say({"error": f"{error.strerror or error}: {error.filename or part}", "again": False})
        return 1


def _take(part: str, whole: str, digest: str, size: int, silence: float) -> int:
    """Add to what came before; silence: seconds without a byte after which the sender is taken for gone."""
    with open(part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _say({"error": "another transfer of the same file is under way", "again": True})
            return 1
        if not os.path.exists(part) or not os.path.samestat(os.stat(part), os.fstat(file.fileno())):
            _say({"error": "another transfer of the same file just ended", "again": True})  # what we opened is whole
            return 1
        offset = os.fstat(file.fileno()).st_size
        if offset > size:
            file.truncate(0)
            offset = 0
        _say({"offset": offset})
        while offset < size:
            ready, _, _ = select.select([0], [], [], silence)
            data = os.read(0, min(1 << 20, size - offset)) if ready else b""
            if not data:
                _say({"error": "the sender went silent" if not ready else "the sender left", "again": True})
                os.fsync(file.fileno())
                return 1
            file.write(data)
            file.flush()
            offset += len(data)
        os.fsync(file.fileno())
        if _sha256(part) != digest:
            os.unlink(part)
            _say({"error": "what arrived is not what was sent", "again": True})
            return 1
        os.replace(part, whole)
    descriptor = os.open(os.path.dirname(whole), os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    _say({"done": True})
    return 0


def _sha256(path: str) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            found.update(chunk)
    return found.hexdigest()


def _say(told: "dict[str, object]") -> None:
    sys.stdout.write(MARK + json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
