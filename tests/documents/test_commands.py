"""The commands in the documents run, page by page; those that cannot say why; what running text names is there."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import workshop
from blocks import Block, blocks, inline_code, pages, shell_blocks
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = shell_blocks(ROOT)
PAGES = sorted({block.page for block in BLOCKS if block.reason is None})
BUILT = ("docs/bundle.md", "docs/compare.md", "docs/package.md")
"""Pages that begin where a build has ended."""


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all processes of this run of pytest: the tiny model, and a store that all pages share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / "documents"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "trained").exists():
            workshop.train(folder)
            (folder / "trained").touch()
    return folder


def furnished(folder: Path, shared: Path, *, recipe: bool) -> Path:
    folder.mkdir()
    workshop.furnish(folder, checkpoint=shared / "digits.safetensors", recipe=recipe)
    return folder


def build(folder: Path, shared: Path) -> None:
    """Build the recipe; put the bundle, and results to compare with, beside it."""
    done = workshop.run("vitrim build recipe.yaml", folder=folder, store=shared / "store")
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copytree(folder / "out" / "cpu" / "bundle", folder / "bundle")
    for name in ("yesterday", "other"):
        shutil.copytree(folder / "out", folder / name)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page: str, shared: Path, tmp_path: Path) -> None:
    todo = [block for block in BLOCKS if block.page == page and block.reason is None]
    folder = furnished(tmp_path / "page", shared, recipe=not any("vitrim init" in block.text for block in todo))
    if page in BUILT:
        build(folder, shared)
    for block in todo:
        done = workshop.run(block.text, folder=folder, store=shared / "store")

        assert done.returncode == 0, f"{block}\n{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.reason], ids=str)
def test_what_is_not_run_says_why(block: Block) -> None:
    assert block.reason is not None
    assert len(block.reason) > 8
    pytest.skip(f"not run: {block.reason}")


def test_every_block_of_commands_says_that_it_is_one() -> None:
    bare = [
        str(block)
        for page in pages(ROOT)
        for block in blocks(page, root=ROOT)
        if block.language not in ("sh", "bash")
        and re.search(r"^(\$ )?(vitrim|make|pip|docker|python3?) ", block.text, re.MULTILINE)
    ]
    indented = [
        f"{page.name}: {line}"
        for page in pages(ROOT)
        for line in page.read_text().splitlines()
        if re.match(r"^ {4}(vitrim|make|pip|docker|python3?) ", line)
    ]

    assert bare == []
    assert indented == []


def test_stand_ins_take_the_place_of_few_programs() -> None:
    used = {program for block in BLOCKS if block.reason is None for program in workshop.programs_of(block.text)}

    assert used <= {"vitrim", "python", "pip", "make", "open", "."}


def test_a_command_that_fails_fails_its_block(shared: Path, tmp_path: Path) -> None:
    folder = furnished(tmp_path / "page", shared, recipe=True)

    def code(script: str) -> int:
        return workshop.run(script, folder=folder, store=shared / "store").returncode

    assert code("vitrim targets show cpu\nvitrim targets show cpuu\nvitrim targets list") == 2
    assert code("pip install numpy") == 0
    assert code("pip install no-such-distribution-of-anybody") != 0
    assert code("make no-such-goal") != 0
    assert code("open nothing.html") == 1


def command_at(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words lead to, and the words behind its name."""
    import typer.main

    from pipeline.cli.app import app

    found: Any = typer.main.get_command(app)
    rest = list(words)
    while rest and hasattr(found, "commands") and rest[0] in found.commands:
        found = found.commands[rest.pop(0)]
    return found, rest


def vitrim_codes() -> list[tuple[str, str]]:
    """`vitrim ...` in running text, with its page."""
    return [
        (page.relative_to(ROOT).as_posix(), code)
        for page in pages(ROOT)
        if page.name != "CHANGELOG.md"
        for code in inline_code(page.read_text())
        if code.startswith("vitrim ")
    ]


def test_commands_in_running_text_are_ones_that_vitrim_has() -> None:
    wrong = []
    for page, code in vitrim_codes():
        _, *words = shlex.split(code)
        if words[0].startswith("-"):
            continue
        found, rest = command_at(words)
        options = {name for parameter in found.params for name in parameter.opts} | {"--help", "--version", "--json"}
        unknown = [word for word in rest if word.startswith("-") and word.partition("=")[0] not in options]
        if unknown or (hasattr(found, "commands") and rest):
            wrong.append((page, code))

    assert len(vitrim_codes()) > 20
    assert wrong == []


def test_goals_in_running_text_are_ones_that_make_has() -> None:
    goals = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {
        word
        for page in pages(ROOT)
        for code in inline_code(page.read_text())
        if code.startswith("make ")
        for word in code.split()[1:]
        if "=" not in word and not word.startswith("-")
    }

    assert named - goals == set()
