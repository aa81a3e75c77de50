"""The zip: its bytes follow from names and contents, any reader reads it, and it tells whether it was changed."""

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.bundle import archive
from targets.bundle.archive import ChangedError, Entry, Source, is_canonical, slug, write_archive

FILES = {
    "manifest.json": b"{}",
    "run.py": b"print()",
    "build.sh": b"exit",
    "engine/model.onnx": bytes(range(256)) * 5000,
    "zoë/größe.bin": b"",
}


def sources(files: dict[str, bytes]) -> list[Source]:
    return [
        Source(name, hashlib.sha256(data).hexdigest(), lambda data=data: io.BytesIO(data))
        for name, data in files.items()
    ]


def packed(files: dict[str, bytes], root: str = "top") -> bytes:
    file = io.BytesIO()
    write_archive(file, sources(files), root)
    return file.getvalue()


def entries_of(path: Path) -> list[Entry]:
    with zipfile.ZipFile(path) as found:
        return [Entry(one.filename, one.file_size, one.CRC) for one in found.infolist()]


def test_what_was_packed_is_unpacked():
    with zipfile.ZipFile(io.BytesIO(packed(FILES))) as found:
        assert found.testzip() is None
        assert {name: found.read(f"top/{name}") for name in FILES} == FILES
        assert found.namelist()[0] == "top/manifest.json"
        assert {one.date_time for one in found.infolist()} == {archive.FIRST_DAY}
        modes = {one.filename: one.external_attr >> 16 for one in found.infolist()}
    assert modes["top/run.py"] == modes["top/build.sh"] == 0o100755
    assert modes["top/manifest.json"] == 0o100644


def test_the_order_of_the_files_does_not_matter():
    assert packed(dict(reversed(FILES.items()))) == packed(FILES)


def test_info_zip_reads_it(tmp_path):
    try:
        subprocess.run(["unzip", "-v"], capture_output=True, check=True)
    except OSError:
        pytest.skip("unzip is not installed")
    (tmp_path / "a.zip").write_bytes(packed(FILES))
    subprocess.run(["unzip", "-q", "a.zip"], cwd=tmp_path, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"})

    assert (tmp_path / "top" / "engine" / "model.onnx").read_bytes() == FILES["engine/model.onnx"]
    assert os.access(tmp_path / "top" / "run.py", os.X_OK)


def test_large_sizes_and_places_take_zip64_records(tmp_path, monkeypatch):
    """With a limit that small files reach: the records are those of files of 4 GiB."""
    monkeypatch.setattr(archive, "LIMIT", 1000)
    monkeypatch.setattr(archive, "MOST_FILES", 3)
    data = _as_large(packed(FILES), limit=1000, most=3)
    (tmp_path / "a.zip").write_bytes(data)

    with zipfile.ZipFile(tmp_path / "a.zip") as found:
        assert found.testzip() is None
        assert {name: found.read(f"top/{name}") for name in FILES} == FILES
        large = next(one for one in found.infolist() if one.file_size > 1000)
        assert (large.extract_version, large.extra[:4]) == (45, b"\x01\x00\x10\x00")  # both sizes
        far = found.infolist()[-1]
        assert (far.header_offset > 1000, far.extra[:4]) == (True, b"\x01\x00\x08\x00")  # its place


def _as_large(data: bytes, *, limit: int, most: int) -> bytes:
    """What says "look into the zip64 record" is all ones in a real archive, and was lowered for the test."""
    return data.replace(limit.to_bytes(4, "little"), b"\xff" * 4).replace(
        b"PK\x05\x06\0\0\0\0" + most.to_bytes(2, "little") * 2, b"PK\x05\x06\0\0\0\0" + b"\xff" * 4
    )


def test_it_knows_its_own(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(packed(FILES))
    entries = entries_of(path)

    assert is_canonical(path, entries)
    path.write_bytes(packed(FILES) + b"x")
    assert not is_canonical(path, entries)
    with zipfile.ZipFile(path, "w") as other:
        for name, data in FILES.items():
            other.writestr(f"top/{name}", data)
    assert not is_canonical(path, entries_of(path))


def test_a_file_that_is_not_the_one_of_its_digest_is_not_packed():
    wrong = Source("a", "0" * 64, lambda: io.BytesIO(b"x"))

    with pytest.raises(ChangedError, match="'a' is not the file that the manifest lists"):
        write_archive(io.BytesIO(), [wrong], "top")


def test_a_file_that_changes_between_two_looks_is_not_packed():
    looks = iter([b"one", b"two"])
    source = Source("a", hashlib.sha256(b"one").hexdigest(), lambda: io.BytesIO(next(looks)))

    with pytest.raises(ChangedError, match="'a' changed while it was packed"):
        write_archive(io.BytesIO(), [source], "top")


@given(st.text(max_size=120))
def test_a_slug_is_a_name_everywhere(text):
    name = slug(text)

    assert name
    assert len(name) <= 80
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert name[0] not in "-."
    assert slug(name) == name


@given(
    st.dictionaries(
        st.text("abc/é", min_size=1, max_size=8).filter(lambda name: "//" not in name and name.strip("/") == name),
        st.binary(max_size=200),
        min_size=1,
        max_size=6,
    )
)
def test_any_files_come_back(files):
    data = packed(files)

    with zipfile.ZipFile(io.BytesIO(data)) as found:
        assert {name.removeprefix("top/"): found.read(name) for name in found.namelist()} == files


def test_the_bytes_do_not_depend_on_process_umask_or_hash_seed(tmp_path):
    code = (
        "import os, sys, runpy; os.umask(int(sys.argv[1], 8)); from pathlib import Path;"
        "from targets.bundle.package import Options, package_bundle;"
        "package_bundle(Path(sys.argv[2]), Path(sys.argv[3]), Options(licence='MIT'))"
    )
    from targets.bundle.write import write_bundle
    from tests.targets.bundle.classifier import PREPROCESS, SPEC, write_engine_folder, write_onnx

    write_bundle(
        tmp_path / "bundle",
        engine=write_engine_folder(tmp_path / "engine"),
        onnx=write_onnx(tmp_path / "graph.onnx"),
        spec=SPEC,
        preprocess=PREPROCESS,
        labels=None,
        card={"versions": {"b": "1", "a": "2"}},
    )
    for index, (umask, seed) in enumerate([("000", "1"), ("077", "2")]):
        os.utime(tmp_path / "bundle" / "run.py", (index, index))
        (tmp_path / "bundle" / "run.py").chmod(0o755 if index else 0o600)
        subprocess.run(
            [sys.executable, "-c", code, umask, tmp_path / "bundle", tmp_path / f"{index}.zip"],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[3])},
        )

    assert (tmp_path / "0.zip").read_bytes() == (tmp_path / "1.zip").read_bytes()
