"""Every change of a bundle is found, in a folder and in a zip, and no zip is trusted further than its bytes."""

import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from targets.bundle.package import Options, opened, package_bundle
from targets.bundle.run import MANIFEST, SUMS
from targets.bundle.verify import check_bundle
from targets.errors import InputError, StageError

Make = Callable[..., Path]


@pytest.fixture
def package(make_bundle: Make, tmp_path: Path) -> Path:
    made = package_bundle(make_bundle(), tmp_path / "tiny.zip", Options())
    return Path(made.path)


def repacked(package: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipInfo, bytes], None], to: Path) -> Path:
    """The package written by another program, each file as `change` writes it."""
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(to, "w") as new:
        for info in old.infolist():
            change(new, info, old.read(info))
    return to


def as_it_is(new: zipfile.ZipFile, info: zipfile.ZipInfo, data: bytes) -> None:
    new.writestr(zipfile.ZipInfo(info.filename, (2026, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)


def test_a_folder_and_its_zip_are_complete(make_bundle, package):
    folder, packed = check_bundle(make_bundle()), check_bundle(package)

    assert folder.problems == packed.problems == ()
    assert folder.manifest == packed.manifest
    assert (folder.kind, packed.kind, packed.as_packed) == ("folder", "zip", True)


def test_every_flipped_byte_of_a_small_file_is_found(make_bundle):
    """All bytes of the files that are read before anything else, some of each other file."""
    bundle = make_bundle()
    for path in sorted(one for one in bundle.rglob("*") if one.is_file()):
        data = path.read_bytes()
        step = 1 if path.name in (MANIFEST, SUMS, "preprocessing.json") else max(1, len(data) // 16)
        for place in range(0, len(data), step):
            broken = bytearray(data)
            broken[place] ^= 1 << place % 8
            path.write_bytes(broken)
            assert check_bundle(bundle).problems, (path.name, place)
        path.write_bytes(data)
    assert check_bundle(bundle).problems == ()


def test_every_shorter_and_longer_file_is_found(make_bundle):
    bundle = make_bundle()
    for path in sorted(one for one in bundle.rglob("*") if one.is_file()):
        data = path.read_bytes()
        step = 1 if path.name == "preprocessing.json" else max(1, len(data) // 16)
        for length in range(0, len(data), step):
            path.write_bytes(data[:length])
            assert check_bundle(bundle).problems, (path.name, length)
        path.write_bytes(data + b" ")
        assert check_bundle(bundle).problems, path.name
        path.unlink()
        assert check_bundle(bundle).problems, path.name
        path.write_bytes(data)


def test_every_flipped_byte_between_the_files_of_a_zip_is_found(package):
    data = package.read_bytes()
    contents = []
    with zipfile.ZipFile(package) as found:
        for one in found.infolist():
            start = one.header_offset + 30 + len(one.filename)
            contents.append(range(start, start + one.file_size))
    records = [place for place in range(len(data)) if not any(place in one for one in contents)]
    places = records[::3] + [one.start + len(one) // 2 for one in contents]
    for place in places:
        broken = bytearray(data)
        broken[place] ^= 1 << place % 8
        package.write_bytes(broken)
        assert check_bundle(package).problems, place


def test_every_shorter_zip_is_damaged(package):
    data = package.read_bytes()
    for length in (*range(4, 60), *range(60, len(data), len(data) // 40), len(data) - 1):
        package.write_bytes(data[:length])
        assert check_bundle(package).problems, length
    package.write_bytes(data + b"more")
    assert check_bundle(package).problems


def test_a_zip_of_another_program_is_complete_and_says_so(package, tmp_path):
    check = check_bundle(repacked(package, as_it_is, tmp_path / "other.zip"))

    assert check.problems == ()
    assert check.as_packed is False


def test_a_zip_without_a_top_folder_is_complete(make_bundle, tmp_path):
    shutil.make_archive(str(tmp_path / "flat"), "zip", make_bundle())

    assert check_bundle(tmp_path / "flat.zip").problems == ()


@pytest.mark.parametrize(
    "name",
    ["../evil", "/evil", "tiny/../../evil", "C:/evil", "a\\b", "tiny//x", "./x", "x\x01y", "tiny/x\x7f"],
)
def test_a_path_that_leaves_the_zip_is_refused(package, tmp_path, name):
    with zipfile.ZipFile(package, "a") as found:
        found.writestr(zipfile.ZipInfo(name), b"x")

    assert any("is outside of the bundle" in one for one in check_bundle(package).problems)
    with pytest.raises(StageError, match="is damaged"), opened(package):
        pass
    assert not list(tmp_path.parent.rglob("evil"))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_device_in_a_zip_is_refused(package, kind):
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(package, "a") as found:
        found.writestr(info, b"/etc/passwd")

    assert "'link' is a link or a device" in check_bundle(package).problems


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("change", [str, str.upper])
def test_a_file_that_is_there_twice_is_refused(package, change):
    with zipfile.ZipFile(package) as found:
        name = next(one for one in found.namelist() if one.endswith("run.py"))
    with zipfile.ZipFile(package, "a") as found:
        found.writestr(zipfile.ZipInfo(change(name)), b"raise SystemExit")

    assert any(one.endswith("is there twice") for one in check_bundle(package).problems)


def test_a_zip_bomb_is_not_unpacked(package, tmp_path):
    with zipfile.ZipFile(package, "a", zipfile.ZIP_DEFLATED) as found:
        found.writestr("tiny/zeros", bytes(20 * 2**20))

    assert any("was compressed" in one and "not unpacked" in one for one in check_bundle(package).problems)


def test_files_that_overlap_are_refused(package):
    """As in the bombs of D. Fifield (2019): many entries of the directory lead to the same bytes."""
    data = bytearray(package.read_bytes())
    end = data.rindex(b"PK\x05\x06")
    start = int.from_bytes(data[end + 16 : end + 20], "little")
    directory = bytes(data[start:end])
    many = directory * 3
    count = (3 * int.from_bytes(data[end + 8 : end + 10], "little")).to_bytes(2, "little")
    tail = data[end : end + 8] + count * 2 + len(many).to_bytes(4, "little") + data[end + 16 :]
    package.write_bytes(bytes(data[:start]) + many + bytes(tail))

    assert check_bundle(package).problems == ("the zip holds more than it has bytes: its files overlap",)


def test_too_many_entries_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as found:
        for index in range(10_001):
            found.writestr(f"{index}", b"")

    assert check_bundle(tmp_path / "many.zip").problems == ("the zip has 10,001 entries, more than 10,000",)


def test_an_encrypted_file_is_refused(package):
    data = bytearray(package.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 8] |= 1
    package.write_bytes(data)

    assert any(one.endswith("is encrypted") for one in check_bundle(package).problems)


def test_an_extra_or_missing_file_of_a_zip_is_named(package, tmp_path):
    def without(new: zipfile.ZipFile, info: zipfile.ZipInfo, data: bytes) -> None:
        if not info.filename.endswith("pixels.py"):
            as_it_is(new, info, data)

    other = repacked(package, without, tmp_path / "other.zip")
    with zipfile.ZipFile(other, "a") as found:
        found.writestr("note.txt", b"x")

    assert check_bundle(other).problems == ("'pixels.py' is missing", "'note.txt' is extra")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda place: place.mkdir(), "has no manifest.json"),
        (lambda place: None, "No such file or directory"),
        (lambda place: place.write_bytes(b""), "neither a folder nor a zip"),
        (lambda place: place.write_bytes(b"a picture"), "neither a folder nor a zip"),
        (lambda place: zipfile.ZipFile(place, "w").close(), "no manifest.json at its top"),
        (lambda place: (place.mkdir(), (place / MANIFEST).write_text('{"format": "x/1"}')), "has format 'x/1'"),
        (
            lambda place: (place.mkdir(), (place / MANIFEST).write_text('{"format": "vitrim.bundle/2"}')),
            "update vitrim",
        ),
    ],
    ids=["folder", "nothing", "empty", "text", "zip", "manifest", "newer"],
)
def test_what_is_no_bundle_is_told_apart_from_a_damaged_one(tmp_path, make, words):
    make(tmp_path / "place")

    with pytest.raises(InputError, match=words):
        check_bundle(tmp_path / "place")


def test_a_bundle_that_lost_its_manifest_is_damaged(make_bundle):
    bundle = make_bundle()
    (bundle / MANIFEST).unlink()

    assert check_bundle(bundle).problems == ("'manifest.json' is missing",)


def test_a_bundle_of_an_older_version_without_sums_is_complete(make_bundle):
    bundle = make_bundle()
    manifest = json.loads((bundle / MANIFEST).read_text())
    del manifest["sums"]
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    (bundle / SUMS).unlink()

    assert check_bundle(bundle).problems == ()


def test_sha256sum_checks_it_too(make_bundle):
    bundle = make_bundle()
    try:
        done = subprocess.run(["sha256sum", "--quiet", "--strict", "-c", SUMS], cwd=bundle, check=False)
    except OSError:
        pytest.skip("sha256sum is not installed")

    assert done.returncode == 0


@pytest.mark.parametrize("place", ["a b", "größe — 模型", "-x", "it's"])
def test_a_path_with_spaces_and_other_letters_is_no_trouble(make_bundle, tmp_path, place):
    (tmp_path / place).mkdir()
    made = package_bundle(make_bundle(at=f"{place}/bundle"), tmp_path / place / "p q.zip", Options())

    assert check_bundle(Path(made.path)).problems == ()
    with opened(Path(made.path)) as folder:
        done = subprocess.run(
            [sys.executable, "-I", folder / "run.py", "--verify"], capture_output=True, text=True, check=True
        )
    assert done.stdout.startswith("complete: ")


def test_run_py_verifies_with_nothing_installed(make_bundle):
    """`-S`: not even the packages of this environment."""
    bundle = make_bundle()

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-S", bundle / "run.py", "--verify", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    whole = run()
    (bundle / "labels.json").write_text("[]")
    broken, told = run(), json.loads(run("--json").stdout)

    assert (whole.returncode, whole.stderr) == (0, "")
    assert broken.returncode == 1
    assert broken.stdout.splitlines() == ["damaged", "'labels.json' was changed"]
    assert told == {"state": "damaged", "problems": ["'labels.json' was changed"]}


@pytest.mark.parametrize("words", [(), ("--verify", "x.png"), ("--verify", "--no-verify")])
def test_run_py_takes_images_or_verifies(make_bundle, words):
    done = subprocess.run(
        [sys.executable, "-I", "-S", make_bundle() / "run.py", *words], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_an_unreadable_file_is_found_and_no_traceback(make_bundle):
    bundle = make_bundle()
    if os.geteuid() == 0:
        (bundle / "labels.json").unlink()
        (bundle / "labels.json").mkdir()
    else:
        (bundle / "labels.json").chmod(0)

    assert check_bundle(bundle).problems
