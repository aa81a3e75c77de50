"""WebDataset shards and plain tars: found, labelled, read by offset, or refused."""

import io
import pickle
import random
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from stages.data.images import check_roles, open_images
from stages.data.listing import list_images
from stages.data.source import DataSource
from stages.stage import Role
from targets.errors import InputError
from tests.stages.data.conftest import png

Tarred = Callable[..., Path]


@pytest.fixture
def tarred(tmp_path: Path) -> Tarred:
    """tarred([(name or TarInfo, bytes or seed)], at="shard.tar", mode="w") writes a tar and returns its path."""

    def write(
        members: Iterable[tuple[str | tarfile.TarInfo, bytes | int]], at: str = "shard.tar", mode: str = "w"
    ) -> Path:
        path = tmp_path / at
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, mode) as archive:
            for name, content in members:
                member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
                data = png(content) if isinstance(content, int) else content
                member.size = len(data) if member.isfile() else 0
                archive.addfile(member, io.BytesIO(data))
        return path

    return write


def opened(path: Path | tuple[Path, ...], role: Role = Role.FIT, cache: Path | None = None, **options: object):
    return open_images(DataSource(images=path, **options), role, index_cache=cache)


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        list_images([path])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def samples(count: int, first: int = 0) -> list[tuple[str, bytes | int]]:
    return [
        pair
        for seed in range(first, first + count)
        for pair in ((f"{seed:06}.png", seed), (f"{seed:06}.cls", str(seed % 3).encode()))
    ]


def test_a_shard_gives_images_and_their_classes(tarred):
    images = opened(tarred(samples(6)))

    assert [item.id for item in images.items] == [f"{i:06}.png" for i in range(6)]
    assert images.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert images.classes is None


def test_images_are_read_by_offset_in_any_order_and_after_pickling(tarred, folder):
    plain = opened(folder({f"{seed:06}.png": seed for seed in range(20)}))
    images = pickle.loads(pickle.dumps(opened(tarred(samples(20)))))
    order = random.Random(0).sample(range(20), 20)

    assert [item.sha256 for item in images.items] == [item.sha256 for item in plain.items]
    assert all(images.image(i).tobytes() == plain.image(i).tobytes() for i in order)
    assert all(images.places[i].read() == png(i) for i in order)


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_every_tar_layout_are_read(layout, tmp_path):
    name = "/".join(["löng" * 12] * 4) + "/" + "b" * 60 + ".png" if layout != tarfile.USTAR_FORMAT else "a/b.png"
    with tarfile.open(tmp_path / "x.tar", "w", format=layout) as archive:
        member = tarfile.TarInfo(name)
        member.size = len(png(1))
        archive.addfile(member, io.BytesIO(png(1)))
    [(_, [image])] = list_images([tmp_path / "x.tar"])

    assert image.name == name
    assert image.place.read() == png(1)


def test_a_folder_of_shards_a_wildcard_and_a_range_name_the_same(tarred, tmp_path):
    for shard in range(3):
        tarred(samples(2, 2 * shard), at=f"shards/train-{shard:04}.tar")
    tarred(samples(2, 9), at="shards/val-0000.tar")
    ids = [f"train-{shard:04}.tar/{i:06}.png" for shard in range(3) for i in (2 * shard, 2 * shard + 1)]

    assert len(opened(tmp_path / "shards")) == 8
    for name in ("train-*.tar", "train-{0000..0002}.tar", "train-000?.tar"):
        assert [item.id for item in opened(tmp_path / "shards" / name).items] == ids
    assert "train-0003.tar" in refusal(tmp_path / "shards" / "train-{0000..0003}.tar")
    assert "names 0 files" in refusal(tmp_path / "shards" / "train-{0003..0000}.tar")


def test_labels_are_names_or_in_json_or_in_folders_too(tarred, tmp_path):
    names = opened(tarred([("a.png", 0), ("a.cls", b"dog"), ("b.png", 1), ("b.cls", b"cat\n")], at="names.tar"))
    json = opened(
        tarred([("a.png", 0), ("a.json", b'{"label": 4, "x": 1}'), ("b.png", 1), ("b.json", b'{"label": 0}')])
    )
    folders = opened(tarred([("./dog/a.png", 0), ("./cat/b.png", 1)], at="folders.tar"))

    assert (names.classes, names.labels.tolist()) == (("cat", "dog"), [1, 0])
    assert json.labels.tolist() == [4, 0]
    assert (folders.classes, folders.labels.tolist()) == (("cat", "dog"), [0, 1])
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    assert opened(tmp_path / "names.tar", classes=tmp_path / "classes.txt").labels.tolist() == [0, 1]


def test_a_csv_wins_over_what_lies_in_the_shard(tarred, tmp_path):
    path = tarred(samples(3))
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{i:06}.png,{7 - i}\n" for i in range(3)))

    assert opened(path, labels=tmp_path / "labels.csv").labels.tolist() == [7, 6, 5]


def test_a_sample_without_a_class_leaves_the_set_unlabelled(tarred):
    images = opened(tarred([*samples(3), ("x.png", 7)]))

    assert images.labels is None
    assert [item.label for item in images.items] == [0, 1, 2, None]


def test_a_mask_beside_an_image_is_no_image(tarred):
    images = opened(tarred([("a.jpg.bak", b"x"), ("a.png", 0), ("a.seg.png", 1), ("b.v1.png", 2)]))
    assert [item.id for item in images.items] == ["a.png", "b.v1.png"]


def test_an_image_in_a_shard_and_in_a_folder_is_in_both_roles(tarred, folder):
    train = opened(tarred(samples(5)), Role.TRAIN)
    evaluate = opened(folder({"other.png": 3, "new.png": 77}), Role.EVALUATE)
    with pytest.raises(
        InputError, match=r"evaluate and train have 1 images in common, first 'other.png' = '000003.png'"
    ):
        check_roles({Role.TRAIN: train, Role.EVALUATE: evaluate})


def test_shares_of_a_shard_hold_each_image_once(tarred):
    path = tarred(samples(40))
    halves = [opened(path, share=share) for share in ((0, 0.5), (0.5, 1))]
    first, second = ({item.sha256 for item in half.items} for half in halves)

    assert not first & second
    assert len(first | second) == 40


def test_a_shard_changed_during_a_build_is_found(tarred):
    path = tarred(samples(3))
    images = opened(path)
    path.write_bytes(path.read_bytes().replace(png(1)[-20:-8], b"x" * 12))
    with pytest.raises(InputError, match="its content changed"):
        images.image(1)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="ends too early"):
        images.image(2)


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("/etc/a.png", 0)], "absolute path"),
        ([("../a.png", 0)], "leaves the tar"),
        ([("a.png", 0), ("./a.png", 1)], "is there twice"),
        ([(special("a.png", tarfile.SYMTYPE, "/etc/passwd"), b"")], "is a link"),
        ([(special("a.png", tarfile.LNKTYPE, "b.png"), b"")], "is a link"),
        ([(special("a.png", tarfile.FIFOTYPE), b"")], "is no regular file"),
        ([("a.png", 0), ("a.cls", b" ")], "is empty; it must hold a number or a class name"),
        ([("a.txt", b"x")], "no images in"),
        ([("a.png", 0), ("a.cls", b"1"), ("b.png", 1), ("b.cls", b"cat")], "some labels in the archives are numbers"),
    ],
)
def test_an_unsafe_or_unclear_shard_is_refused(members, reason, tarred):
    with pytest.raises(InputError, match=reason) as caught:
        opened(tarred(members))
    assert "\n" not in str(caught.value)


def test_a_compressed_shard_says_to_unpack_it(tarred):
    assert "unpack them to .tar" in refusal(tarred(samples(3), mode="w:gz"))


@pytest.mark.parametrize("keep", [0, 100, 600, 1024, 1100, 1500, 2048, 2560])
def test_a_shard_that_was_cut_is_refused(keep, tarred):
    path = tarred(samples(3))
    path.write_bytes(path.read_bytes()[:keep])
    refusal(path)


def test_offsets_and_hashes_of_a_shard_are_remembered(tarred, tmp_path, monkeypatch):
    import os
    import time

    path = tarred(samples(4))
    os.utime(path, (time.time() - 100, time.time() - 100))
    monkeypatch.setattr("stages.data.index.SETTLED_NS", -(10**12))
    first = opened(path, cache=tmp_path / "index")
    for name in ("stages.data.index._hash", "stages.data.shards._read"):
        monkeypatch.setattr(name, lambda place: pytest.fail("it was read again"))
    again = opened(path, cache=tmp_path / "index")

    assert again.fingerprint == first.fingerprint
    assert again.places == first.places


def test_a_shard_that_changed_is_listed_anew(tarred, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.data.index.SETTLED_NS", -(10**12))
    opened(tarred(samples(4)), cache=tmp_path / "index")
    assert len(opened(tarred(samples(6)), cache=tmp_path / "index")) == 6
