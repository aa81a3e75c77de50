"""YAML as people mean it: scalars of YAML 1.2, lines, nothing twice; hostile documents end in one line."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.errors import InputError, RecipeError
from targets.strict_yaml import COMMAND_LINE, MAX_BYTES, Document, read_document, read_file, read_value, show, spell

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(TEXT.filter(lambda key: key != "<<"), inner, max_size=4)
    ),
    max_leaves=20,
)


def refusal(text: str) -> str:
    with pytest.raises(InputError) as caught:
        read_document(text, origin="file").refuse_problems()
    return str(caught.value)


@given(PLAIN, st.booleans())
def test_what_json_says_is_read_as_json_reads_it(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=True) if ascii_only else json.dumps(value)

    assert read_value(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("12:30", "12:30"),
        ("2026-13-45", "2026-13-45"),
        ("1e3", 1000),
        ("1e-3", 0.001),
        ("3.0", 3.0),
        ("1_000", 1000),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("-.inf", float("-inf")),
        (".5", 0.5),
        ("True", True),
        ("~", None),
        ("", None),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("=", "="),
        ("[a, {b: c}]", ["a", {"b": "c"}]),
    ],
)
def test_a_scalar_means_what_it_looks_like(text: str, value: Any) -> None:
    found = read_value(text)

    assert found == value
    assert type(found) is type(value)


def test_every_value_knows_its_line() -> None:
    document = read_document("a: 1\nb:\n  - x\n  - c:\n      d: 2\n", origin="file")

    assert document.lines[("a",)] == 1
    assert document.lines[("b",)] == 2
    assert document.lines[("b", 1, "c", "d")] == 5
    assert document.line(("b", 1, "c", "missing")) == 4
    assert document.line(("z",)) is None


def test_problems_come_in_the_order_of_their_lines_each_with_its_own() -> None:
    document = Document("file", lines={("a",): 9, ("b",): 2, ("c",): COMMAND_LINE})
    for key in "abcd":
        document.tell((key,), "is wrong")

    with pytest.raises(RecipeError) as caught:
        document.refuse_problems()
    assert caught.value.problems == (
        "c: is wrong (--set)",
        "d: is wrong",
        "b: is wrong (line 2)",
        "a: is wrong (line 9)",
    )


def test_a_document_without_problems_is_not_refused() -> None:
    read_document("a: 1", origin="file").refuse_problems()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: 1\nb: 2\na: 3\n", ("'a' stands twice", "first in line 1", "(line 3)")),
        ("x: {a: 1,\n  a: 2}", ("x: key 'a' stands twice", "(line 2)")),
        ("a: !!python/object/apply:os.system [echo]", ("a: values of kind 'python/object/apply:os.system'",)),
        ("a: !!python/name:os.system x", ("not understood",)),
        ("a: !mine {b: c}", ("'!mine'", "not understood")),
        ("a: !!set {x, y}", ("'set'",)),
        ("a: !!binary aGk=", ("'binary'",)),
        ("a: !!timestamp 2026-01-01", ("'timestamp'",)),
        ("a: !!int many", ("cannot be read as int: 'many'",)),
        ("a: !!bool maybe", ("cannot be read as bool: 'maybe'",)),
        (f"a: {'9' * 5000}", ("cannot be read as int",)),
        ("a: &b {c: 1}\nd:\n  <<: *b\n", ("d: '<<' is not understood", "(line 3)")),
        ("? [a, b]\n: 1", ("a key must be a text",)),
        ("a: 1\n---\nb: 2\n", ("a second document begins", "(line 2")),
        ("a:\n\t- b\n", ("a tab; YAML indents with spaces", "(line 2")),
        ("a: b: c", ("needs quotes", "(line 1")),
        ("a: [1, 2", ("not valid YAML", "line")),
        ("a: 'open", ("not valid YAML", "line")),
        ("a: *nobody", ("not valid YAML", "nobody")),
        ("a: \x07", ("not valid YAML",)),
        ('a: "\\ud83d"', ("half a character",)),
        ('"\\ud83d": a', ("half a character",)),
        ('a: "x\\0"', ("must be a text",)),
        ("", ("holds nothing",)),
        ("# only a comment\n", ("holds nothing",)),
        ("- a\n- b\n", ("must hold keys and values, it holds ['a', 'b']",)),
        ("just words", ("it holds 'just words'",)),
        ("!!timestamp 2026-01-01", ("'timestamp'",)),
    ],
)
def test_a_bad_document_is_refused_in_one_line_that_says_why(text: str, parts: tuple[str, ...]) -> None:
    said = refusal(text)

    assert said.startswith("file")
    assert "\n" not in said
    for part in parts:
        assert part in said


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
            "aliases",
        ),
        ("a: &a [*a]", "levels deep"),
        ("a: " + "[" * 50 + "]" * 50, "levels deep"),
        ("a: " + "[" * 50_000 + "]" * 50_000, "nested without end"),
        ("a: " + "{b: " * 30_000, "valid YAML"),
        ("a: [" + "1, " * 21_000 + "]", "values"),
        ("a: " + "x" * MAX_BYTES, "256 KiB"),
    ],
    ids=["billion laughs", "endless alias", "deep", "very deep", "deep and open", "many values", "large"],
)
def test_a_hostile_document_is_refused_soon(text: str, part: str) -> None:
    started = time.monotonic()
    said = refusal(text)

    assert part in said
    assert "\n" not in said
    assert time.monotonic() - started < 20


def test_an_unreadable_value_is_told_once() -> None:
    document = read_document("a: !!set {x}", origin="file")
    document.tell(("a",), "must be a number, got null")

    assert len(document.problems) == 1


def test_several_problems_of_one_document_are_told_together() -> None:
    said = refusal("a: !!set {x}\nb: 1\nb: 2\nc: {<<: 1}\n")

    assert said.splitlines()[0] == "file: 3 problems"
    assert len(said.splitlines()) == 4


@pytest.mark.parametrize("text", ["[1", "!!set {x}", "a: b: c"])
def test_a_bad_value_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"not valid YAML|not understood"):
        read_value(text)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: caf\xe9\n")
    (tmp_path / "large.yaml").write_bytes(b"a: " + b"\xe9" * MAX_BYTES)

    with pytest.raises(InputError, match=r"^thing '.*none.yaml' cannot be read: No such file or directory; make one"):
        read_file(tmp_path / "none.yaml", what="thing", hint="; make one")
    with pytest.raises(InputError, match="Is a directory"):
        read_file(tmp_path, what="thing")
    with pytest.raises(InputError, match=r"not UTF-8 text: .* at byte 6"):
        read_file(tmp_path / "latin.yaml", what="thing")
    with pytest.raises(InputError, match="256 KiB"):
        read_document(read_file(tmp_path / "large.yaml", what="thing"), origin="file")


def test_a_byte_order_mark_and_windows_lines_are_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "windows.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: x\r\n")

    assert read_document(read_file(tmp_path / "windows.yaml", what="file"), origin="f").data == {"a": 1, "b": "x"}


@given(PLAIN)
def test_a_shown_value_is_one_short_line(value: Any) -> None:
    assert len(show(value).splitlines()) == 1
    assert len(show(value)) <= 80


@given(st.lists(TEXT | st.integers(0, 99), min_size=1, max_size=4))
def test_a_spelled_place_is_one_line(place: list[str | int]) -> None:
    assert len(spell(tuple(place)).splitlines()) == 1


def test_places_are_spelled_as_people_write_them() -> None:
    assert spell(("steps", 1, "prune_mlp", "keep")) == "steps[1].prune_mlp.keep"
    assert show({"a": [True, None, 1.5, "x"]}) == "{a: [true, null, 1.5, 'x']}"
