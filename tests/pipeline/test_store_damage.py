"""Damage of every kind in a store: set aside, told, made again; records and copies are whole or missing."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from store_process import content_of, fill, key_of, make

from pipeline.events import Event
from pipeline.store import Store, Writing
from stages.artifact import Artifact, Format
from targets.errors import StoreError

KEY = key_of(1)


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "store") as opened:
        yield opened


def commit(writing: Writing, **changes) -> Artifact:
    return writing.commit(**{"stage": "test", "holds": Format.VIT, "facts": {}, "seconds": 1.0, **changes})


def write(store: Store, work: Callable[[Writing], object], key: str = KEY) -> None:
    """Let a stage work on an entry."""
    with store.write(key) as writing:
        work(writing)


# --- damage


def _events(store: Store) -> list[Event]:
    events: list[Event] = []
    store._watch = events.append
    return events


def _drop_file(folder: Path) -> None:
    (folder / "vit.json").unlink()


def _drop_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _add_file(folder: Path) -> None:
    (folder / "deep/extra").write_text("x")


def _flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "deep/model.bin").read_bytes())
    data[1234] ^= 1
    (folder / "deep/model.bin").write_bytes(data)


def _cut_a_byte(folder: Path) -> None:
    os.truncate(folder / "deep/model.bin", len(content_of(1)) - 1)


def _put_a_link(folder: Path) -> None:
    (folder / "vit.json").rename(folder.parent.parent / "moved")
    (folder / "vit.json").symlink_to(folder.parent.parent / "moved")


def _put_a_hard_link(folder: Path) -> None:
    os.link(folder / "vit.json", folder.parent.parent / "second name")


def _swap_for_another_entry(folder: Path) -> None:
    other = make(Store(folder.parent.parent), 2)[0].folder
    for name in ("manifest.json", "vit.json", "deep/model.bin"):
        (folder / name).write_bytes((other / name).read_bytes())


def _edit_a_fact(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    assert '"number": 1' in text
    (folder / "manifest.json").write_text(text.replace('"number": 1', '"number": 2'))


def _make_it_a_file(folder: Path) -> None:
    folder.rename(folder.parent.parent / "moved folder")
    folder.write_text("not a folder")


def _nest_deeply(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 100_000)


DAMAGES = [
    _drop_file,
    _drop_manifest,
    _add_file,
    _flip_a_byte,
    _cut_a_byte,
    _put_a_link,
    _put_a_hard_link,
    _swap_for_another_entry,
    _edit_a_fact,
    _make_it_a_file,
    _nest_deeply,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_a_damaged_entry_is_set_aside_reported_and_made_again(store, damage):
    folder = make(store, 1)[0].folder
    damage(folder)
    events = _events(store)

    assert len(store.verify()) == 1
    assert store.find(KEY) is None

    assert [event.kind for event in events] == ["warning"]
    assert "damaged" in events[0].message
    assert len(list((store.root / "broken").iterdir())) == 1
    assert make(store, 1)[1] is True
    assert store.find(KEY) is not None
    store.gc()
    assert store.verify() == []
    assert not list((store.root / "broken").iterdir())


def test_every_byte_of_a_manifest_matters_or_says_the_same(store):
    folder = make(store, 1)[0].folder
    manifest = folder / "manifest.json"
    good = manifest.read_bytes()
    meaning = store.find(KEY).manifest
    lost = 0
    for index in range(len(good)):
        for bad in (good[:index], good[:index] + bytes([good[index] ^ 1]) + good[index + 1 :]):
            folder.mkdir(exist_ok=True, parents=True)
            manifest.write_bytes(bad)
            found = store.find(KEY)
            assert found is None or found.manifest == meaning
            if found is None:
                lost += 1
                aside = next((store.root / "broken").iterdir())
                aside.rename(folder)
    assert lost > len(good)  # what survives is white space between values


def test_every_byte_of_a_record_matters_or_says_the_same(store):
    data = {"drop": 0.25, "samples": [1.5, 2.5, 1e-9], "name": "ü"}
    store.put_record("validation", KEY, data)
    path = store.root / "records" / "validation" / f"{KEY}.json"
    good = path.read_bytes()
    for index in range(len(good)):
        for bad in (good[:index], good[:index] + bytes([good[index] ^ 4]) + good[index + 1 :]):
            path.write_bytes(bad)
            assert store.get_record("validation", KEY) in (None, data)


def test_a_damaged_entry_that_another_process_is_repairing_is_left_alone(store):
    folder = make(store, 1)[0].folder
    _flip_a_byte(folder)
    reader = Store(store.root)
    with store.write(KEY) as writing:  # sets the bad one aside, holds the lock
        fill(writing, 1)
        assert reader.find(KEY) is None
        commit(writing)

    assert reader.find(KEY) is not None
    assert len(list((store.root / "broken").iterdir())) == 1


# --- records


def test_a_record_comes_back_as_it_was_and_is_replaced_as_a_whole(store):
    store.put_record("decision", KEY, {"runtime": "openvino", "ms": [1.25, 2]})
    store.put_record("decision", KEY, {"runtime": "onnxruntime"})

    assert store.get_record("decision", KEY) == {"runtime": "onnxruntime"}
    assert store.get_record("validation", KEY) is None
    assert store.get_record("decision", key_of(2)) is None


def test_a_damaged_record_is_missing_and_reported(store):
    store.put_record("decision", KEY, {"runtime": "openvino"})
    path = store.root / "records" / "decision" / f"{KEY}.json"
    path.write_bytes(path.read_bytes().replace(b"openvino", b"tensorrt"))
    events = _events(store)

    assert store.get_record("decision", KEY) is None
    assert "damaged" in events[0].message
    assert [problem.place for problem in store.verify()] == [f"records/decision/{KEY}.json"]


@pytest.mark.parametrize("kind", ["", "../entries", "Upper", "a/b"])
def test_a_kind_of_record_is_a_word(store, kind):
    with pytest.raises(ValueError, match="lower-case word"):
        store.get_record(kind, KEY)


# --- copies


def test_a_copy_is_a_file_of_its_own(store, tmp_path):
    artifact = make(store, 1)[0]

    copy = store.materialise(artifact, "deep/model.bin", tmp_path / "out" / "model.bin")

    assert copy.read_bytes() == content_of(1)
    assert copy.stat().st_nlink == 1
    assert not copy.is_symlink()
    copy.write_bytes(b"edited")
    assert store.find(KEY) is not None


def test_a_copy_of_what_changed_is_refused(store, tmp_path):
    artifact = make(store, 1)[0]
    _flip_a_byte(artifact.folder)

    with pytest.raises(StoreError, match="changed after it was verified"):
        store.materialise(artifact, "deep/model.bin", tmp_path / "model.bin")
    assert list(tmp_path.glob("model*")) == []
