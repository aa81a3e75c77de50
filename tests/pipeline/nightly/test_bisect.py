"""Bisection on a real git repository with a planted slow-down; the board is pretended."""

import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fake_boards import FakeBoard, FakeBuilder

from pipeline.nightly.bisect import Bisection, Bisector, code_of
from pipeline.nightly.builder import Unit
from pipeline.nightly.repository import commit_of
from pipeline.nightly.rules import Policy
from stages.data.images import open_images
from stages.data.source import DataSource
from stages.stage import Role
from targets.errors import InputError

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *settings, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Callable[..., list[str]]:
    """repository(speeds): a repository with a commit per entry of `speed.txt`; returns the commits."""

    def make(speeds: list[str]) -> list[str]:
        folder = tmp_path / "repository"
        folder.mkdir()
        git(folder, "init", "-q", "-b", "main")
        (folder / "recipe.yaml").write_text("a recipe\n")
        commits = []
        for index, speed in enumerate(speeds):
            (folder / "speed.txt").write_text(speed)
            (folder / "count.txt").write_text(str(index))
            git(folder, "add", "-A")
            git(folder, "commit", "-q", "-m", f"change {index}")
            commits.append(git(folder, "rev-parse", "HEAD"))
        return commits

    return make


def speed(unit: Unit) -> float:
    return float((unit.recipe.parent / "speed.txt").read_text().partition(",")[0])


def wrong(unit: Unit) -> int:
    return int((unit.recipe.parent / "speed.txt").read_text().partition(",")[2] or 0)


def broken(unit: Unit) -> str | None:
    return "it does not build" if speed(unit) == 0 else None


def bisected(tmp_path: Path, good: str, bad: str, **more: Any) -> tuple[Bisection, FakeBoard]:
    board = FakeBoard("red", noise=0.05)  # from measurement to measurement: only the ratio can tell
    folder = tmp_path / "repository"
    bisector = Bisector(
        folder=folder,
        board=board,
        builder=lambda checkout: FakeBuilder(speed=speed, wrong=wrong, trouble=broken),
        unit=Unit(name="digits", recipe=folder / "recipe.yaml", target="cpu"),
        cell="digits@red",
        level="full",
        policy=Policy(),
        **{"metric": "latency_p50_ms", "images": None, **more},
    )
    return bisector.run(good, bad, now=lambda: NOW), board


def test_the_commit_with_the_planted_slow_down_is_found_by_halving(repository: Any, tmp_path: Path) -> None:
    commits = repository(["1.0"] * 11 + ["1.05"] * 9)

    found, board = bisected(tmp_path, commits[0], commits[-1])

    assert found.reproduced
    assert found.suspects == (commits[11],)
    assert "'change 11'" in found.sentence
    assert "ratio 1.05" in found.sentence
    assert len(board.asked) <= 7  # the bad end, and the logarithm of 18
    assert all(set(roles) == {"engine", "good"} for roles in board.asked)


def test_a_bisection_leaves_the_repository_as_it_was(repository: Any, tmp_path: Path) -> None:
    commits = repository(["1.0", "1.0", "1.06"])
    folder = tmp_path / "repository"
    before = (git(folder, "status", "--porcelain"), git(folder, "rev-parse", "HEAD"), git(folder, "branch"))
    bisected(tmp_path, commits[0], commits[-1])

    assert (git(folder, "status", "--porcelain"), git(folder, "rev-parse", "HEAD"), git(folder, "branch")) == before
    assert git(folder, "worktree", "list").count("\n") == 0


def test_commits_that_do_not_build_are_passed_over_and_left_among_the_suspects(repository: Any, tmp_path: Path) -> None:
    commits = repository(["1.0", "1.0", "0", "0", "1.06", "1.06"])

    found, _ = bisected(tmp_path, commits[0], commits[-1])

    assert found.suspects == (commits[2], commits[3], commits[4])
    assert "is one of 3" in found.sentence
    assert {one.reason for one in found.tried if one.outcome == "unknown"} == {"it does not build"}


def test_what_is_no_slower_beside_the_good_one_is_not_bisected(repository: Any, tmp_path: Path) -> None:
    commits = repository(["1.0"] * 8)

    found, board = bisected(tmp_path, commits[0], commits[-1])

    assert not found.reproduced
    assert "nothing to bisect" in found.sentence
    assert len(board.asked) <= 3


def test_lost_accuracy_is_bisected_by_its_answers(repository: Any, tmp_path: Path) -> None:
    commits = repository(["1.0,0"] * 4 + ["1.0,30"] * 4)
    images = open_images(DataSource(dataset="digits", share=(0.5, 1.0)), Role.EVALUATE, index_cache=None)

    found, _ = bisected(tmp_path, commits[0], commits[-1], metric="top1", images=images)

    assert found.suspects == (commits[4],)


def test_commits_in_the_wrong_order_are_refused(repository: Any, tmp_path: Path) -> None:
    commits = repository(["1.0", "1.06"])

    with pytest.raises(InputError, match="there are no commits from"):
        bisected(tmp_path, commits[1], commits[0])
    with pytest.raises(InputError, match="git rev-parse"):
        bisected(tmp_path, "0" * 40, commits[0])


def test_a_repository_that_holds_vitrim_builds_with_its_own(tmp_path: Path, root: Path) -> None:
    assert code_of(root, tmp_path) == root
    assert code_of(tmp_path, root) == root


def test_a_checkout_with_changes_says_so(repository: Any, tmp_path: Path) -> None:
    (commit,) = repository(["1.0"])
    folder = tmp_path / "repository"

    assert commit_of(folder) == commit
    (folder / "speed.txt").write_text("2")
    assert commit_of(folder) == f"{commit}+changes"
    assert commit_of(tmp_path) == ""
