"""What Markdown pages hold: fenced blocks with the marker before them, sections, code in running text."""

import re
from dataclasses import dataclass
from pathlib import Path

SHELLS = ("sh", "bash", "console")
MARKER = re.compile(r"<!-- not run: (.+?) -->")
FENCE = re.compile(r"^```(\w*)\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block. `reason`: why it is not run, from the comment right before it."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages(root: Path) -> list[Path]:
    """Every page that a user reads."""
    folders = [root.glob("*.md"), (root / "docs").rglob("*.md"), (root / "docker").glob("*.md")]
    return sorted(page for folder in folders for page in folder)


def blocks(page: Path, *, root: Path) -> list[Block]:
    """The fenced blocks of a page, in order. Raises ValueError for a fence that is never closed."""
    found: list[Block] = []
    lines = page.read_text().splitlines()
    before, start, language, body = "", 0, "", list[str]()
    for number, line in enumerate(lines, start=1):
        fence = FENCE.match(line)
        if start:
            if line.strip() == "```":
                marker = MARKER.fullmatch(before.strip())
                reason = marker[1] if marker else None
                found.append(Block(page.relative_to(root).as_posix(), start, language, "\n".join(body), reason))
                before, start = "", 0
            else:
                body.append(line)
        elif fence:
            start, language, body = number, fence[1], []
        elif line.strip():
            before = line
    if start:
        raise ValueError(f"{page}: the block of line {start} is never closed")
    return found


def shell_blocks(root: Path) -> list[Block]:
    """All blocks that are commands."""
    return [one for page in pages(root) for one in blocks(page, root=root) if one.language in SHELLS]


def without_blocks(text: str) -> str:
    """A page's text without its fenced blocks."""
    return re.sub(r"^```.*?^```\s*$", "", text, flags=re.MULTILINE | re.DOTALL)


def section(text: str, heading: str) -> str:
    """What stands under `## heading`, empty where there is none."""
    found = re.search(rf"^## {re.escape(heading)}\s*$(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def inline_code(text: str) -> list[str]:
    """Code in running text and tables, without backticks."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", without_blocks(text))
