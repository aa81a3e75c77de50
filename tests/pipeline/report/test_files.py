"""A report's files are complete or absent, and a file that is no report is refused with one line that says why."""

import errno
import json
import os
import resource
import tempfile
from pathlib import Path

import pytest

from pipeline.report import files
from pipeline.report.files import FORMAT, HTML, JSON, MARKDOWN, read_report, to_json, write_report
from pipeline.report.html import to_html
from pipeline.report.markdown import to_markdown
from targets import atomic
from targets.errors import InputError

NAMES = {JSON, HTML, MARKDOWN}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


def test_what_is_written_is_read_again(any_report, tmp_path):
    write_report(tmp_path / "new" / "folder", any_report)

    assert read_report(tmp_path / "new" / "folder") == any_report
    assert read_report(tmp_path / "new" / "folder" / JSON) == any_report
    assert set(contents(tmp_path / "new" / "folder")) == NAMES


def test_the_pages_are_drawn_from_the_record_alone(any_report, tmp_path):
    write_report(tmp_path, any_report)
    again = read_report(tmp_path)

    assert (tmp_path / HTML).read_text(encoding="utf-8") == to_html(again) == to_html(any_report)
    assert (tmp_path / MARKDOWN).read_text(encoding="utf-8") == to_markdown(again) == to_markdown(any_report)


def test_a_written_report_keeps_to_the_published_schema(any_report, tmp_path):
    from jsonschema import validate

    from pipeline.report.record import Report

    write_report(tmp_path, any_report)

    validate(json.loads((tmp_path / JSON).read_text()), Report.model_json_schema(mode="serialization"))


def test_what_json_cannot_say_becomes_null_and_not_another_number(example):
    facts = {"loss": float("nan"), "limit": float("inf"), "NaN": "NaN"}
    stages = (example.stages[0].replace(facts=facts),)
    text = to_json(example.replace(stages=stages))

    assert json.loads(text, parse_constant=pytest.fail)["stages"][0]["facts"] == {
        "loss": None,
        "limit": None,
        "NaN": "NaN",
    }


def test_a_path_that_is_not_unicode_can_be_reported(example, tmp_path):
    report = example.replace(conditions={"file": os.fsdecode(b"caf\xe9.png")})
    write_report(tmp_path, report)

    json.loads((tmp_path / JSON).read_text(encoding="utf-8"))
    assert "caf\\u{dce9}.png" in (tmp_path / HTML).read_text(encoding="utf-8")
    assert read_report(tmp_path).target == example.target


# Faults while writing.


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", range(1, 13))  # open, fsync, rename, fsync of the folder; three files
def test_a_fault_at_any_call_leaves_every_file_old_or_new(example, tmp_path, monkeypatch, fault, call):
    folder = tmp_path / "report"
    write_report(folder, example.replace(name="older"))
    write_report(tmp_path / "newer", example)
    old, new = contents(folder), contents(tmp_path / "newer")
    refuse(monkeypatch, call, fault)

    with pytest.raises(InputError) as error:
        write_report(folder, example)

    assert os.strerror(fault) in one_line(error)
    assert repr(str(folder)) in one_line(error)
    assert set(contents(folder)) == NAMES
    assert all(content in (old[name], new[name]) for name, content in contents(folder).items())


def refuse(monkeypatch, number, fault):
    """Let the system refuse one of the calls that write."""
    left = number

    def refusing(real, counts=lambda *arguments: True):
        def call(*arguments):
            nonlocal left
            left -= counts(*arguments)
            if left == 0 and counts(*arguments):
                raise OSError(fault, os.strerror(fault))
            return real(*arguments)

        return call

    monkeypatch.setattr(atomic, "open", refusing(open), raising=False)
    monkeypatch.setattr(os, "fsync", refusing(os.fsync))
    monkeypatch.setattr(os, "replace", refusing(os.replace))


def test_a_disk_that_holds_no_more_leaves_the_old_files(example, tmp_path):
    write_report(tmp_path, example)
    old, limits = contents(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(InputError) as error:
            write_report(tmp_path, example.replace(name="newer"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert os.strerror(errno.EFBIG) in one_line(error)
    assert contents(tmp_path) == old


def test_a_read_only_folder_gets_one_line(example):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # root may write anywhere, nobody may not
        try:
            with pytest.raises(InputError) as error:
                write_report(Path(folder), example)
        finally:
            if root:
                os.seteuid(0)
            Path(folder).chmod(0o755)

        assert "Permission denied; choose another folder" in one_line(error)
        assert not list(Path(folder).iterdir())


def test_a_file_in_place_of_the_folder_gets_one_line(example, tmp_path):
    (tmp_path / "taken").write_text("mine")

    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(InputError) as error:
            write_report(folder, example)
        assert "choose another folder" in one_line(error)
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_page_that_cannot_be_drawn_leaves_the_old_files(example, tmp_path, monkeypatch):
    write_report(tmp_path, example)
    old = contents(tmp_path)
    monkeypatch.setattr(files, "to_json", lambda report: "{}\n")
    monkeypatch.setattr("pipeline.report.markdown.to_markdown", lambda report: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        write_report(tmp_path, example.replace(name="newer"))

    assert contents(tmp_path) == old


# Older versions.


def test_a_report_of_version_1_is_read_and_says_what_it_did_not_know(root):
    old = read_report(root / "tests" / "golden" / "report" / "version_1.json")

    assert old.format == FORMAT != "vitrim.report/1"
    assert old.accuracy.images_digest == ""
    assert old.accuracy.images == 1100
    assert read_report(root / "tests" / "golden" / "report").replace(format=FORMAT) == old


def test_an_old_report_is_written_anew_in_the_version_of_today(root, tmp_path):
    write_report(tmp_path, read_report(root / "tests" / "golden" / "report" / "version_1.json"))

    assert json.loads((tmp_path / JSON).read_text())["format"] == FORMAT


# Files that are no report.


def test_a_missing_report_says_what_to_give(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere" / JSON):
        with pytest.raises(InputError) as error:
            read_report(path)
        assert "No such file" in one_line(error)
        assert "vitrim build" in one_line(error)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is not JSON"),
        (b'{"format": "vitrim.report/1", "name"', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is no vitrim report"),
        (b"null", "is no vitrim report"),
        (b'{"a": 1}', "is no vitrim report"),
        (b'{"format": "vitrim.recipe/1"}', "is no vitrim report"),
        (b'{"format": ["vitrim.report/1"]}', "is no vitrim report"),
        (b'{"format": "vitrim.report/3"}', "update vitrim"),
        (b'{"format": "vitrim.report/2"}', "Field required"),
        (b'{"format": "vitrim.report/0"}', "build it again"),
        (b'{"format": "vitrim.report/' + b"9" * 5000 + b'"}', "is no vitrim report"),
        (b'{"format": "vitrim.report/1"}', "Field required"),
    ],
)
def test_a_file_that_is_no_report_is_refused_with_its_name(tmp_path, content, told):
    (tmp_path / JSON).write_bytes(content)

    with pytest.raises(InputError) as error:
        read_report(tmp_path)

    assert told in one_line(error)
    assert repr(str(tmp_path / JSON)) in one_line(error)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"verdict": {"status": "great", "sentence": ""}}, "verdict.status"),
        ({"surprise": 1}, "surprise"),
        ({"stages": [{"name": "a", "seconds": "long", "cached": False}]}, "stages.0.seconds"),
        ({"name": None}, "name"),
    ],
)
def test_a_broken_report_says_which_field(example, tmp_path, change, told):
    (tmp_path / JSON).write_text(json.dumps({**json.loads(to_json(example)), **change}))

    with pytest.raises(InputError) as error:
        read_report(tmp_path)

    assert told in one_line(error)
    assert "build it again" in one_line(error)


def test_truncation_at_any_byte_is_noticed(bare, tmp_path):
    whole = to_json(bare).encode()
    for length in range(0, len(whole) - 2, 97):
        (tmp_path / JSON).write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_report(tmp_path)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    Path(tmp_path, JSON).mkdir()

    with pytest.raises(InputError) as error:
        read_report(tmp_path)

    assert "directory" in one_line(error)
