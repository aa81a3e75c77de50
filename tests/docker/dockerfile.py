"""What a Dockerfile asks for, stage by stage; and its RUN steps as a script for a folder of one's own."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Part:
    """One stage of a Dockerfile: what it starts from, and its instructions in order."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """Arguments of every instruction of this name."""
        return [value for instruction, value in self.instructions if instruction == name]


def instructions(file: Path) -> list[tuple[str, str]]:
    """Name and argument of every instruction, continued lines joined."""
    from dockerfile_parse import DockerfileParser  # type: ignore[import-untyped]

    with open(file, "rb") as source:
        parsed: list[dict[str, Any]] = DockerfileParser(fileobj=source).structure
    return [(one["instruction"], one["value"]) for one in parsed if one["instruction"] != "COMMENT"]


def parts(file: Path) -> list[Part]:
    """The stages; a base that is an argument is filled in with its default."""
    defaults: dict[str, str] = {}
    found: list[Part] = []
    for name, value in instructions(file):
        if name == "ARG" and not found:
            key, _, default = value.partition("=")
            defaults[key] = default
        elif name == "FROM":
            base = re.sub(r"\$\{(\w+)\}", lambda hit: defaults[hit[1]], value.split()[0])
            found.append(Part(base))
        else:
            found[-1].instructions.append((name, value))
    return found


def comments(file: Path) -> str:
    """The comment at the head of a file."""
    lines = file.read_text().splitlines()
    head = lines[: next(index for index, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(line.removeprefix("#").strip() for line in head)
