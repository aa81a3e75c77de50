"""ImageSet: the same images in the same order always, what is wrong is said in one line, roles do not overlap."""

import hashlib
import io
import logging
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.data.images import SELECT_MINIMUM, ImageSet, Item, check_labels, check_roles, open_images
from stages.data.source import DataSource
from stages.stage import Role
from targets.errors import InputError, StoreError
from targets.preprocess import Preprocess, normalise, resize_and_crop

SMALL = Preprocess(height=8, width=8, crop_share=0.9)


def opened(path: Path, *more: Path, role: Role = Role.FIT, **fields: object) -> ImageSet:
    return open_images(DataSource(images=(path, *more), **fields), role, index_cache=None)


def refusal(function, *arguments, **keywords) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


def pixels(count: int, *, role: Role = Role.FIT, start: int = 0, classes: int | None = None) -> ImageSet:
    """A set of embedded images; image i is the same in every set."""
    items, places = [], []
    for i in range(start, start + count):
        image = np.full((2, 2, 3), (i % 256, i // 256, 0), dtype=np.uint8)
        label = i % classes if classes else None
        items.append(Item(f"{role}/{i:05}", hashlib.sha256(image.tobytes()).hexdigest(), label))
        places.append(image)
    return ImageSet(role=role, items=tuple(items), places=tuple(places))


def test_a_folder_and_a_zip_of_the_same_images_are_the_same_set(folder, zipped):
    files = {f"{'cat' if i % 2 else 'dog'}/{i}.png": i for i in range(10)}

    one, two = opened(folder(files)), opened(zipped(reversed(files.items())))

    assert one.items == two.items
    assert one.fingerprint == two.fingerprint
    assert [item.id for item in one.items] == sorted(files)
    assert one.classes == ("cat", "dog")
    assert one.labels.tolist() == [0] * 5 + [1] * 5


def test_the_fingerprint_follows_contents_labels_and_order(folder):
    files = {f"{c}/{i}.png": i for i, c in enumerate("abcd")}
    original = opened(folder(files))
    other_label = opened(folder({**{f"{c}/{i}.png": i for i, c in enumerate("abc")}, "c/3.png": 3}, "two"))
    other_bytes = opened(folder({**files, "d/3.png": 9}, "three"))
    renamed = opened(folder({f"{c}/x{i}.png": i for i, c in enumerate("abcd")}, "four"))

    assert len({s.fingerprint for s in (original, other_label, other_bytes, original.subset([1, 0, 2, 3]))}) == 4
    assert renamed.fingerprint == original.fingerprint


def test_a_labels_file_labels_and_picks(folder, tmp_path):
    root = folder({"x/1.png": 1, "y/2.png": 2, "y/3.png": 3})
    (tmp_path / "l.csv").write_text("file,label,part\n1.png,7,a\n3.png,4,a\n2.png,0,b\n")
    (tmp_path / "c.txt").write_text("\n".join("abcdefgh"))

    images = opened(root, labels=tmp_path / "l.csv", classes=tmp_path / "c.txt", where={"part": "a"})

    assert [(item.id, item.label) for item in images.items] == [("x/1.png", 7), ("y/3.png", 4)]
    assert images.classes == tuple("abcdefgh")


def test_a_label_beyond_the_classes_file_is_refused(folder, tmp_path):
    root = folder({"1.png": 1, "2.png": 2})
    (tmp_path / "l.csv").write_text("file,label\n1.png,0\n2.png,2\n")
    (tmp_path / "c.txt").write_text("cat\ndog\n")

    message = refusal(opened, root, labels=tmp_path / "l.csv", classes=tmp_path / "c.txt")

    assert "'2.png' has label 2" in message
    assert "names 2 classes (labels 0..1)" in message


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.floats(0.01, 0.99), unique=True, min_size=1, max_size=3).map(sorted), seed=st.randoms())
def test_shares_are_disjoint_complete_and_independent_of_names(folder, tmp_path_factory, cuts, seed):
    contents = [*range(30), 3, 4]  # two copies
    names = [f"{i:03}.png" for i in range(len(contents))]
    seed.shuffle(names)
    at = str(tmp_path_factory.mktemp("shares"))
    root = folder(dict(zip(names, contents, strict=True)), at)
    bounds = [0.0, *cuts, 1.0]
    whole = opened(root)
    parts = []
    refused = []
    for share in pairwise(bounds):
        try:
            parts.append(opened(root, share=share))
        except InputError as error:
            refused.append(str(error))

    assert all("holds none of 32 images" in message for message in refused)
    assert sorted(item.id for part in parts for item in part.items) == [item.id for item in whole.items]
    shas = [{item.sha256 for item in part.items} for part in parts]
    assert sum(map(len, shas)) == len(set.union(*shas)) == 30


def test_the_limit_takes_the_first_by_content_hash_whatever_the_names(folder):
    one = opened(folder({f"{i}.png": i for i in range(20)}, "one"), limit=5)
    two = opened(folder({f"{20 - i}.png": i for i in range(20)}, "two"), limit=5)
    smaller = opened(folder({f"{i}.png": i for i in range(20)}, "three"), limit=3)
    every = opened(folder({f"{i}.png": i for i in range(20)}, "four"))

    shas = {item.sha256 for item in one.items}
    assert shas == {item.sha256 for item in two.items} == set(sorted(item.sha256 for item in every.items)[:5])
    assert {item.sha256 for item in smaller.items} < shas
    assert [item.id for item in one.items] == sorted(item.id for item in one.items)


def test_an_empty_share_is_refused(folder):
    assert "holds none of 2 images" in refusal(opened, folder({"a.png": 0, "b.png": 1}), share=(0, 1e-9))


def test_one_bad_image_in_a_hundred_is_left_out_and_reported(folder, caplog):
    root = folder({**{f"{i:03}.png": i for i in range(99)}, "bad.png": b"no image"})

    with caplog.at_level(logging.WARNING, logger="vitrim.data"):
        images = opened(root)

    assert len(images) == 99
    assert len(images.unreadable) == 1
    assert images.unreadable[0].startswith("bad.png: not one of JPEG")
    assert "1 of 100 images of fit cannot be read, first 'bad.png': not one of JPEG" in caplog.text


def test_two_bad_images_in_a_hundred_are_too_many(folder):
    root = folder({**{f"{i:03}.png": i for i in range(98)}, "empty.png": b"", "b.png": b"no image"})

    message = refusal(opened, root)

    assert "2 of 100 images of fit cannot be read, first 'b.png': not one of" in message
    assert "'empty.png': the file is empty; more than 1% is too many" in message


def test_one_bad_image_in_evaluate_is_too_many(folder):
    root = folder({**{f"{i:03}.png": i for i in range(199)}, "bad.png": b"no image"})

    assert "shifts the accuracy" in refusal(opened, root, role=Role.EVALUATE)


def test_a_bad_image_outside_the_share_does_no_harm(folder):
    bad = b"no image"
    place = int(hashlib.sha256(bad).hexdigest()[:13], 16) / 16**13
    share = (0.0, place) if place > 0.5 else (min(place + 1e-6, 0.99), 1.0)
    root = folder({**{f"{i:03}.png": i for i in range(50)}, "bad.png": bad})

    assert opened(root, role=Role.EVALUATE, share=share).unreadable == ()


def test_truncated_missing_and_pipe_are_reported(folder):
    stream = io.BytesIO()
    Image.new("RGB", (99, 99), "red").save(stream, "JPEG")
    root = folder({"cut.jpg": stream.getvalue()[:-200], "ok.png": 0})
    (root / "gone.png").symlink_to("nowhere")
    os.mkfifo(root / "pipe.png")

    message = refusal(opened, root)

    assert "3 of 4 images" in message
    assert "'cut.jpg': image file is truncated" in message
    assert "'gone.png': No such file" in message
    assert "'pipe.png': it is not a regular file" in message


def test_a_set_of_only_bad_images_is_refused(folder):
    assert "1 of 1 images" in refusal(opened, folder({"a.png": b""}))


def test_copies_are_mentioned(folder, caplog):
    with caplog.at_level(logging.WARNING, logger="vitrim.data"):
        opened(folder({"a/1.png": 1, "b/1.png": 1, "b/2.png": 2}))

    assert "fit holds 1 copies of its own images, 1 with another label" in caplog.text


def test_images_of_every_kind_become_upright_rgb(folder):
    kinds = {}
    for mode, kind in (("L", "png"), ("RGBA", "png"), ("P", "gif"), ("1", "bmp"), ("CMYK", "tiff"), ("LA", "webp")):
        stream = io.BytesIO()
        Image.new("RGB", (5, 7), "red").convert(mode).save(stream, kind)
        kinds[f"{mode}.{kind}"] = stream.getvalue()
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (7, 5), "red").save(stream, "JPEG", exif=exif)
    kinds["rotated.jpg"] = stream.getvalue()

    images = opened(folder(kinds))

    assert len(images) == 7
    for i in range(7):
        assert images.image(i).mode == "RGB"
        assert images.image(i).size == (5, 7)
    assert images.uint8(SMALL).shape == (7, 8, 8, 3)


def test_an_image_that_changes_later_is_noticed(folder):
    root = folder({"a.png": 0})
    images = opened(root)
    (root / "a.png").write_bytes((root / "a.png").read_bytes() + b"x")

    assert "'a.png' of fit: its content changed" in refusal(images.image, 0)
    (root / "a.png").unlink()
    assert "No such file" in refusal(images.image, 0)


def test_batches_are_the_pixels_in_order_again_and_again(folder):
    images = opened(folder({f"{i:02}.png": i for i in range(10)}))
    expected = normalise(images.uint8(SMALL), SMALL)
    batches = images.batches(SMALL, 4)

    assert len(batches) == 3
    assert [len(batch) for batch in batches] == [4, 4, 2]
    for _ in range(2):
        assert np.array_equal(np.concatenate(list(batches)), expected)
    assert np.array_equal(expected[3], normalise(resize_and_crop(images.image(3), SMALL)[None], SMALL)[0])
    assert np.array_equal(np.concatenate(list(images.batches(SMALL, 3, flip=True))), expected[..., ::-1])


def test_a_subset_keeps_the_order_given(folder):
    images = opened(folder({f"{i:02}.png": i for i in range(5)}))

    subset = images.subset(np.array([3, 1]))

    assert [item.id for item in subset.items] == ["03.png", "01.png"]
    assert np.array_equal(subset.uint8(SMALL), images.uint8(SMALL)[[3, 1]])
    assert subset.role is Role.FIT


def test_pixels_can_be_mapped_from_a_file_that_is_reused(folder, tmp_path):
    images = opened(folder({f"{i}.png": i for i in range(5)}))

    mapped = images.uint8(SMALL, folder=tmp_path / "pixels")
    path = images.pixels_file(SMALL, tmp_path / "pixels")
    written = path.stat().st_mtime_ns

    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, images.uint8(SMALL))
    assert not mapped.flags.writeable
    assert images.pixels_file(SMALL, tmp_path / "pixels").stat().st_mtime_ns == written
    assert list((tmp_path / "pixels").iterdir()) == [path]
    assert images.pixels_file(SMALL.replace(height=9), tmp_path / "pixels") != path
    assert images.subset([0]).pixels_file(SMALL, tmp_path / "pixels") != path


def test_a_pixels_file_on_a_full_disk_is_one_clear_error(folder, tmp_path, limited):
    images = opened(folder({f"{i}.png": i for i in range(50)}))

    with pytest.raises(StoreError, match=r"cannot write 1 MiB of pixels to .*File too large"), limited(4096):
        images.pixels_file(SMALL, tmp_path / "pixels")
    assert list((tmp_path / "pixels").iterdir()) == []


@pytest.fixture
def limited():
    """limited(bytes): no file may grow beyond; the nearest to a full disk that any machine can have."""
    import contextlib
    import resource
    import signal

    @contextlib.contextmanager
    def limit(size: int):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)

    return limit


def sums(images: ImageSet) -> list[int]:
    return [int(np.asarray(images.image(i)).sum()) for i in range(len(images))]


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_other_processes_read_the_same_images_from_a_zip(zipped, method):
    images = opened(zipped([(f"{i}.png", i) for i in range(40)]))
    expected = sums(images)

    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        results = list(pool.map(sums, [images] * 4))

    assert results == [expected] * 4
    assert pickle.loads(pickle.dumps(images)).fingerprint == images.fingerprint


def test_digits_are_embedded_labelled_and_all_different():
    digits = open_images(DataSource(dataset="digits"), Role.EVALUATE, index_cache=None)

    assert len(digits) == len({item.sha256 for item in digits.items}) == 1797
    assert digits.classes == tuple("0123456789")
    assert np.bincount(digits.labels).min() >= 174
    assert digits.image(0).size == (8, 8)
    assert digits.uint8(Preprocess(height=32, width=32)).shape == (1797, 32, 32, 3)


def test_shares_of_digits_keep_the_roles_apart():
    shares = {Role.FIT: (0, 0.5), Role.TRAIN: (0, 0.5), Role.SELECT: (0.5, 0.75), Role.EVALUATE: (0.75, 1)}
    sets = {
        role: open_images(DataSource(dataset="digits", share=share), role, index_cache=None)
        for role, share in shares.items()
    }

    check_roles(sets)
    assert len(sets[Role.FIT]) + len(sets[Role.SELECT]) + len(sets[Role.EVALUATE]) == 1797


@pytest.mark.parametrize("kept_apart", [Role.SELECT, Role.EVALUATE])
@pytest.mark.parametrize("other", list(Role))
def test_an_overlap_with_select_or_evaluate_is_refused(kept_apart, other):
    if other is kept_apart:
        return
    sets = {kept_apart: pixels(300, role=kept_apart), other: pixels(300, role=other, start=297)}

    message = refusal(check_roles, sets)

    assert "have 3 images in common" in message
    assert f"'{kept_apart}/00297' = '{other}/00297'" in message or f"'{other}/00297' = '{kept_apart}/00297'" in message
    assert "share" in message


def test_fit_and_train_may_overlap():
    check_roles({Role.FIT: pixels(10), Role.TRAIN: pixels(10, role=Role.TRAIN)})


@pytest.mark.parametrize("count", [1, 255])
def test_a_small_select_is_refused(count):
    assert f"select has {count} images, at least 256" in refusal(
        check_roles, {Role.SELECT: pixels(count, role=Role.SELECT)}
    )


def test_a_select_of_256_is_enough():
    check_roles({Role.SELECT: pixels(256, role=Role.SELECT)})


def test_labels_must_be_there_and_below_the_number_of_classes():
    check_labels(pixels(20, classes=10), 10)

    assert "20 of 20 images of fit have no label" in refusal(check_labels, pixels(20), 10)
    message = refusal(check_labels, pixels(20, classes=10), 9)
    assert "'fit/00009' of fit has label 9, but the model has 9 classes (labels 0..8)" in message


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("a", "x", "c"), "class 1 of fit is 'b', but the model's is 'x'"),
        (("a", "b"), "class 2 of fit is 'c', but the model's is None"),
        (("a", "b", "c", "d"), "class 3 of fit is None, but the model's is 'd'"),
    ],
)
def test_other_class_names_than_the_models_are_refused(folder, names, reason):
    images = opened(folder({"a/1.png": 1, "b/2.png": 2, "c/3.png": 3}))
    check_labels(images, 10, names=("a", "b", "c"))

    assert reason in refusal(check_labels, images, 10, names=names)


def test_progress_is_told(folder):
    told = []

    open_images(
        DataSource(images=folder({"a.png": 0})),
        Role.FIT,
        index_cache=None,
        tell=lambda message, share: told.append((message, share)),
    )

    assert told == [("reading images", 0.0), ("checking images", 0.0)]


@pytest.mark.real
def test_the_real_sets_open_and_do_not_overlap(assets, tmp_path):
    cache = tmp_path / "index.sqlite"
    validation = assets / "imagenet_val"
    sources = {
        Role.FIT: DataSource(images=assets / "imagenet_train1000", share=(0.5, 1)),
        Role.TRAIN: DataSource(
            images=(assets / "caltech101", assets / "imagenet_train1000" / "images.zip"), share=(0.5, 1)
        ),
        Role.SELECT: DataSource(images=assets / "imagenet_train1000", share=(0, 0.5)),
        Role.EVALUATE: DataSource(
            images=validation / "images.zip",
            labels=validation / "labels.csv",
            classes=validation / "classes.txt",
            where={"part": "mixed"},
        ),
    }

    sets = {role: open_images(source, role, index_cache=cache) for role, source in sources.items()}

    check_roles(sets)
    check_labels(sets[Role.EVALUATE], 1000)
    assert len(sets[Role.EVALUATE]) == 850
    assert len(sets[Role.FIT]) + len(sets[Role.SELECT]) == 1000
    assert not any(images.unreadable for images in sets.values())
    again = {role: open_images(source, role, index_cache=cache) for role, source in sources.items()}
    assert {role: s.fingerprint for role, s in again.items()} == {role: s.fingerprint for role, s in sets.items()}
    assert len(sets[Role.SELECT]) >= SELECT_MINIMUM
