"""A process that uses a store, for tests of races and kills: `store_process.py ROOT FIRST COUNT [--slow]`.

It makes COUNT entries, beginning with number FIRST, and prints a line for each: `made N` or `found N`.
The content of an entry follows from its number, so that every process would make the same one.
"""

import hashlib
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.store import Store, Writing
from stages.artifact import Artifact, Format


def key_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def content_of(number: int) -> bytes:
    return hashlib.sha256(f"content {number}".encode()).digest() * 2000


def fill(writing: Writing, number: int, *, slow: bool = False) -> None:
    """Do the work of a stage in two halves; the first one is remembered in the scratch folder."""
    half = writing.scratch / "half"
    content = content_of(number)
    if not half.exists():
        (writing.scratch / "half.part").write_bytes(content[:32000])
        (writing.scratch / "half.part").rename(half)
    if slow:
        time.sleep(0.02)
    (writing.output / "deep").mkdir()
    (writing.output / "deep" / "model.bin").write_bytes(half.read_bytes() + content[32000:])
    (writing.output / "vit.json").write_text(f'{{"number": {number}}}')


def make(store: Store, number: int, *, slow: bool = False) -> tuple[Artifact, bool]:
    """Find or make an entry; says whether it was made here."""
    key = key_of(number)
    if (found := store.find(key)) is not None:
        return found, False
    with store.write(key) as writing:
        if writing.finished is not None:
            return writing.finished, False
        fill(writing, number, slow=slow)
        return writing.commit(stage="test", holds=Format.VIT, facts={"number": number}, seconds=0.5), True


if __name__ == "__main__":
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with Store(folder) as opened:
        for index in range(first, first + count):
            artifact, made = make(opened, index, slow="--slow" in sys.argv)
            assert (artifact.folder / "deep" / "model.bin").read_bytes() == content_of(index)
            sys.stdout.write(f"{'made' if made else 'found'} {index}\n")
            sys.stdout.flush()
            opened.put_record("note", key_of(index), {"number": index, "text": "x" * 500})
