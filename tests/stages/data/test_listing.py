"""Finding images in folders and zips, and refusing unsafe zips by the member's name."""

import os
import re
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.data import listing
from stages.data.listing import list_images
from targets.errors import InputError


def ids(*paths: Path) -> list[str]:
    return sorted(image.id for _, found in list_images(paths) for image in found)


def refusal(*paths: Path) -> str:
    with pytest.raises(InputError) as caught:
        list_images(paths)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_images_are_found_at_any_depth_and_other_files_are_not(folder):
    root = folder({"a.JPEG": 0, "b/c/d.png": 1, "labels.csv": b"x", ".hidden.png": 2, ".git/x.png": 3, "b/README": b""})

    assert ids(root) == ["a.JPEG", "b/c/d.png"]


def test_ids_of_several_roots_begin_with_the_name_of_the_root(folder, zipped):
    one, two, three = folder({"x.png": 0}, "p/set"), folder({"x.png": 1}, "q/set"), zipped([("x.png", 2)], "p/s.zip")

    assert ids(one, two, three) == ["s.zip/x.png", "set#2/x.png", "set/x.png"]


def test_a_folder_of_zips_stands_for_them(zipped, tmp_path):
    zipped([("x.png", 0)], "set/a.zip")
    zipped([("x.png", 1)], "set/b.ZIP")
    (tmp_path / "set" / "README.md").write_text("about")

    assert ids(tmp_path / "set") == ["a.zip/x.png", "b.ZIP/x.png"]


def test_a_folder_of_one_zip_needs_no_prefix(zipped, tmp_path):
    zipped([("x.png", 0)], "set/a.zip")

    assert ids(tmp_path / "set") == ["x.png"]


def test_a_folder_with_images_and_zips_is_refused(zipped, folder, tmp_path):
    zipped([("x.png", 0)], "images/a.zip")

    assert "both images and zips" in refusal(folder({"y.png": 1}))


def test_a_root_named_twice_is_refused(folder, tmp_path):
    root = folder({"y.png": 1})
    (tmp_path / "link").symlink_to(root)

    assert "named twice" in refusal(root, tmp_path / "link")


def test_a_missing_path_is_refused(tmp_path):
    assert "no folder or zip at" in refusal(tmp_path / "nothing")


def test_a_file_that_is_no_zip_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"not a zip")

    assert "neither a folder nor a complete zip" in refusal(tmp_path / "a.jpg")


def test_a_truncated_zip_is_refused(zipped):
    path = zipped([("x.png", 0), ("y.png", 1)])
    path.write_bytes(path.read_bytes()[:-30])

    assert "complete zip" in refusal(path)


def test_an_empty_folder_is_refused(folder):
    assert "no images in" in refusal(folder({}))


def test_a_folder_without_images_is_refused_and_says_what_it_holds(folder):
    message = refusal(folder({"a.txt": b"", "b.txt": b"", "c": b""}))

    assert message.endswith("it holds 2 .txt, 1 no suffix")


def test_an_empty_zip_is_refused(zipped):
    assert "no images in" in refusal(zipped([]))


def test_links_are_followed_and_loops_end(folder, tmp_path):
    root = folder({"a.png": 0})
    other = folder({"b.png": 1}, "other")
    (root / "linked").symlink_to(other)
    (other / "back").symlink_to(root)
    (root / "c.png").symlink_to(other / "b.png")

    assert ids(root) == ["a.png", "c.png", "linked/b.png"]


def test_a_pipe_is_reported_and_not_waited_for(folder):
    root = folder({"a.png": 0})
    os.mkfifo(root / "b.png")

    [(_, found)] = list_images([root])
    pipe = next(image for image in found if image.name == "b.png")

    with pytest.raises(OSError, match="not a regular file"):
        pipe.place.read()


def test_names_with_spaces_newlines_and_bytes_that_are_no_text(folder, tmp_path):
    root = folder({"a b.png": 0, "-x.png": 1, "new\nline.png": 2, "ü.png": 3})
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.png")).write_bytes(b"x")

    assert ids(root) == ["-x.png", "\\xff.png", "a b.png", "new\nline.png", "ü.png"]
    assert all(image.place.read() for _, found in list_images([root]) for image in found)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../up.png", "leaves the zip"),
        ("a/../../up.png", "leaves the zip"),
        ("a\\..\\up.png", "leaves the zip"),
        ("/etc/abs.png", "absolute path"),
        ("\\\\server\\x.png", "absolute path"),
        ("C:\\x.png", "absolute path"),
        ("../notes.txt", "leaves the zip"),
    ],
)
def test_a_member_that_leaves_the_zip_is_refused(zipped, name, reason):
    message = refusal(zipped([("fine.png", 0), (name, 1)]))

    assert reason in message
    assert repr(name) in message


def test_a_link_in_a_zip_is_refused(zipped, link):
    message = refusal(zipped([("fine.png", 0), (link("evil.png"), b"/etc/passwd")]))

    assert "'evil.png' is a symbolic link" in message


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused(zipped):
    assert "'a.png' is there twice" in refusal(zipped([("a.png", 0), ("a.png", 1)]))
    assert "is there twice" in refusal(zipped([("b/a.png", 0), ("b\\a.png", 1)]))


def test_an_encrypted_member_is_refused(zipped):
    path = zipped([("secret.png", 0)])
    data = bytearray(path.read_bytes())
    central = data.rindex(b"PK\x01\x02")
    data[central + 8] |= 1
    path.write_bytes(data)

    assert "'secret.png' is encrypted" in refusal(path)


def test_an_unknown_compression_is_refused(zipped):
    assert "compressed by method 12" in refusal(zipped([("a.png", 0)], compression=zipfile.ZIP_BZIP2))


def test_a_zip_bomb_is_refused(zipped):
    message = refusal(zipped([("zeros.png", b"\0" * 5_000_000)], compression=zipfile.ZIP_DEFLATED))

    assert "'zeros.png' grows more than 200 times" in message


def test_a_member_that_lies_about_its_size_is_refused_when_read(zipped):
    path = zipped([("a.png", b"\0" * 5_000_000)], compression=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    central = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, central + 24, 1000)  # uncompressed size
    path.write_bytes(data)

    [(_, [image])] = list_images([path])

    with pytest.raises(OSError, match=r"CRC|damaged"):
        image.place.read()


def test_a_huge_member_is_refused(zipped, monkeypatch):
    monkeypatch.setattr(listing, "MAX_FILE_BYTES", 100)

    assert re.search("'a.png' has .* bytes, more than 100", refusal(zipped([("a.png", 0)])))


def test_too_many_members_are_refused(zipped, monkeypatch):
    monkeypatch.setattr(listing, "MAX_MEMBERS", 2)

    assert "has 3 members, at most 2" in refusal(zipped([(f"{i}.png", i) for i in range(3)]))


def test_overlapping_members_are_refused(zipped):
    path = zipped([("a.png", b"x" * 500), ("b.png", b"y" * 500)])
    data = bytearray(path.read_bytes())
    first = data.index(b"PK\x01\x02")
    for central in (first, data.index(b"PK\x01\x02", first + 1)):
        struct.pack_into("<II", data, central + 20, 900, 900)  # compressed and uncompressed size
    path.write_bytes(data)

    assert "overlap" in refusal(path)


def test_a_damaged_member_is_found_by_its_checksum(zipped):
    path = zipped([("a.png", b"x" * 500)])
    path.write_bytes(path.read_bytes().replace(b"x" * 500, b"x" * 499 + b"z"))

    [(_, [image])] = list_images([path])

    with pytest.raises(OSError, match="CRC"):
        image.place.read()


def test_macos_leftovers_do_not_count(zipped):
    assert ids(zipped([("a.png", 0), ("__MACOSX/._a.png", b"x"), (".DS_Store", b"x"), ("d/", b"")])) == ["a.png"]


def test_deflated_members_and_backslashes_are_read(zipped):
    path = zipped([("dir\\a.png", b"x" * 500)], compression=zipfile.ZIP_DEFLATED)

    [(_, [image])] = list_images([path])

    assert image.id == "dir/a.png"
    assert image.place.read() == b"x" * 500


def test_a_zip_that_was_replaced_is_opened_anew(zipped):
    path = zipped([("a.png", b"old")])
    [(_, [image])] = list_images([path])

    assert image.place.read() == b"old"
    path.unlink()
    zipped([("a.png", b"newer")])
    assert image.place.read() == b"newer"


def test_data_that_end_too_early_in_a_zip_are_told(zipped):
    path = zipped([("a.png", 0), ("b/c.png", 1)], compression=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    data[int(0.02734375 * len(data))] = 5  # found by the test below: an EOFError without a word
    path.write_bytes(data)

    with pytest.raises(OSError, match=r"\w+"):
        [image.place.read() for _, images in list_images([path]) for image in images]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_zip_is_read_or_refused(zipped, changes):
    path = zipped([("a.png", 0), ("b/c.png", 1)], compression=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    for where, value in changes:
        data[int(where * len(data))] = value
    path.write_bytes(data)

    messages = []
    try:
        for _, images in list_images([path]):
            for image in images:
                try:
                    image.place.read()
                except OSError as error:
                    messages.append(str(error))
    except InputError as error:
        messages.append(str(error))

    assert all(message and "\n" not in message for message in messages)
