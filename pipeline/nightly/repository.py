"""What git says of the folder that holds the matrix, and of vitrim itself. Nothing here changes a repository."""

import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.keys import ROOT
from targets.errors import InputError

SHOWN = 8
"""commits that a hint lists"""


def git(folder: Path, *words: str) -> str:
    """What a git command prints. Raises InputError with git's own reason."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False, errors="replace"
        )
    except OSError as error:
        raise InputError(f"git cannot be started: {error.strerror or error}") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise InputError(f"git {words[0]} in {str(folder)!r}: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout.strip()


def commit_of(folder: Path) -> str:
    """The commit that is checked out, with `+changes` where tracked files differ; empty without a repository."""
    with suppress(InputError):
        head = git(folder, "rev-parse", "HEAD")
        return f"{head}+changes" if git(folder, "status", "--porcelain", "--untracked-files=no") else head
    return ""


def vitrim_version() -> str:
    """Version of this vitrim, with the commit of its checkout where it has one."""
    try:
        number = version("vitrim")
    except PackageNotFoundError:
        number = "unknown"
    commit = commit_of(ROOT) if (ROOT / ".git").exists() else ""
    head, _, changes = commit.partition("+")
    return f"{number} {head[:12]}{'+changes' if changes else ''}".strip()


def bare(commit: str) -> str:
    """A commit without the note that files were changed."""
    return commit.partition("+")[0]


def between(folder: Path, good: str, bad: str) -> list[tuple[str, str]]:
    """Commits after `good` up to `bad` (oldest first), each with its first line; empty where git cannot tell."""
    if not bare(good) or not bare(bad):
        return []
    with suppress(InputError):
        said = git(folder, "log", "--reverse", "--format=%H%x09%s", f"{bare(good)}..{bare(bad)}")
        return [(line.partition("\t")[0], line.partition("\t")[2]) for line in said.splitlines()]
    return []
