"""Every error has its page, with its exit code and messages that the code can really give."""

import ast
import importlib
import re
from pathlib import Path

import pytest
from blocks import inline_code

ROOT = Path(__file__).resolve().parents[2]
PAGES = {page.stem: page for page in (ROOT / "docs" / "errors").glob("*.md") if page.stem != "index"}
ELSEWHERE = {"BundleError": "targets.bundle.run", "UnreadableImageError": "targets.bundle.pixels"}
"""Errors that are no class of `targets/errors.py`, because they work without vitrim."""


def errors() -> dict[str, type[Exception]]:
    """Errors that leave vitrim, by name."""
    module = importlib.import_module("targets.errors")
    found = {name: kind for name, kind in vars(module).items() if isinstance(kind, type) and name.endswith("Error")}
    return {**found, **{name: getattr(importlib.import_module(place), name) for name, place in ELSEWHERE.items()}}


def test_every_error_has_its_page_and_stands_in_the_list() -> None:
    listed = re.findall(r"^\| \[(\w+)\]\(\w+\.md\)", (ROOT / "docs" / "errors" / "index.md").read_text(), re.MULTILINE)

    assert set(PAGES) == set(errors())
    assert sorted(listed) == sorted(PAGES)


@pytest.mark.parametrize("name", sorted(PAGES))
def test_pages_say_the_exit_code_that_the_error_has(name: str) -> None:
    code = getattr(errors()[name], "exit_code", None)
    index = (ROOT / "docs" / "errors" / "index.md").read_text()
    row = re.search(rf"^\| \[{name}\]\({name}\.md\) \| (\w*) \|", index, flags=re.MULTILINE)
    assert row is not None

    if code is not None:
        assert row[1] == str(code)
        assert re.search(rf"exit\s+code\s+{code}\b", PAGES[name].read_text(), flags=re.IGNORECASE)


def patterns() -> list[tuple[re.Pattern[str], int]]:
    """Every text in the code that may become a message: what is filled in matches anything; letters that are fixed."""
    found = []
    for folder in ("pipeline", "stages", "targets"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                if not isinstance(node, ast.JoinedStr | ast.Constant):
                    continue
                fixed = [
                    part.value.replace("`", "")
                    for part in parts
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                ]
                if sum(map(len, fixed)) < 8:
                    continue
                text = "".join(
                    re.escape(part.value.replace("`", "")) if isinstance(part, ast.Constant) else ".*" for part in parts
                )
                found.append((re.compile(text), sum(map(len, fixed))))
    return found


def messages(page: Path) -> list[str]:
    """First cells of the tables of messages."""
    rows = re.findall(r"^\| `([^`]+)` \|", page.read_text(), flags=re.MULTILINE)
    return [row for row in rows if " " in row]


def test_messages_on_the_pages_are_ones_that_the_code_gives() -> None:
    known = patterns()

    def is_given(message: str) -> bool:
        """Whether the fixed letters of a text in the code make at least a third of it."""
        return any(fixed >= len(message) / 3 and pattern.search(message) for pattern, fixed in known)

    shown = {message for name, page in PAGES.items() for message in messages(page) if name != "UnknownNameError"}

    assert len(shown) > 30
    assert sorted(message for message in shown if not is_given(message)) == []
    assert not is_given("the moon is not in the store; howl at it once more and try again")


@pytest.mark.parametrize("name", sorted(PAGES))
def test_pages_name_only_options_and_commands_in_one_line(name: str) -> None:
    assert [code for code in inline_code(PAGES[name].read_text()) if code != code.strip()] == []


def test_unknown_names_are_answered_with_the_words_on_their_page() -> None:
    from stages.catalog import get_stage
    from targets.errors import UnknownNameError
    from targets.profile import load_profile
    from targets.runtimes.catalog import get_runtime

    given = set()
    for look, name in ((load_profile, "cpuu"), (get_stage, "prun"), (get_runtime, "onnxruntim")):
        with pytest.raises(UnknownNameError) as caught:
            look(name)
        given.add(str(caught.value).replace("`", ""))

    assert set(messages(PAGES["UnknownNameError"])) == given
