"""Boards on loopback: real OpenSSH servers with keys of their own, the agent, and a runtime that sleeps as scripted."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from boards import SshBoard, free_port, make_keys


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with throw-away keys: `client`, `host`, `other`, each with its .pub."""
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def board(keys: Path, tmp_path: Path) -> Iterator[Callable[..., SshBoard]]:
    """board("shelf-1"): start an ssh server with a board of its own behind it; all are ended afterwards."""
    started: list[SshBoard] = []

    def start(name: str = "shelf-1", **options: Any) -> SshBoard:
        one = SshBoard(name, keys, tmp_path / name, free_port(), **options)
        started.append(one)
        one.start()
        return one

    yield start
    for one in started:
        one.stop()
