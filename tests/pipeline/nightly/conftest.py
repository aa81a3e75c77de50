"""Nights that are made up."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for fake_boards.py

from fake_boards import FakeBoard, FakeBuilder

from pipeline.nightly.history import HistoryStore, open_history
from pipeline.nightly.judge import judge
from pipeline.nightly.matrix import Matrix, load_matrix
from pipeline.nightly.record import Night, Verdict
from pipeline.nightly.report.compose import compose
from pipeline.nightly.report.record import NightReport
from pipeline.nightly.run import NightRun
from pipeline.nightly.simulation import FIRST, SERIES

Judged = list[tuple[Night, Verdict]]


@pytest.fixture(scope="session")
def night() -> Callable[..., Night]:
    """night(index, value, ...): a night of a series, each with an engine and a commit of its own."""

    def make(index: int, value: float = 10.0, **fields: Any) -> Night:
        usual = {
            "artifact": f"engine {index}",
            "commit": f"commit {index}",
            "environment": {"driver": "560"},
            "values": (value,),
        }
        return Night(series=SERIES, at=FIRST + timedelta(days=index), **{**usual, **fields})

    return make


@pytest.fixture(scope="session")
def judged() -> Callable[..., Judged]:
    """judged(nights, ...): each with its verdict, given those before it."""

    def make(nights: Sequence[Night], **options: Any) -> Judged:
        history: Judged = []
        for one in nights:
            history.append((one, judge(history, one, **options)))
        return history

    return make


RECIPE = """\
vitrim: 1
name: {name}
model:
  timm: vit_tiny_patch16_224
  pretrained: false
  image_size: 16
  classes: 10
  arguments: {{patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}}
data:
  select: {{dataset: digits, share: [0, 0.1]}}
  evaluate: {{dataset: digits, share: [0.8, 1]}}
"""
MATRIX = """\
format: vitrim.matrix/1
name: lab
recipes:
  - recipe: digits.yaml
devices: [red, green, blue]
level: quick
retry_wait: 0s
"""


@dataclass
class Lab:
    """Boards with a matrix and a history, night after night."""

    folder: Path
    matrix: Matrix
    store: HistoryStore
    boards: dict[str, FakeBoard]
    builder: FakeBuilder
    nights: int = 0
    said: list[str] = field(default_factory=list)

    def night(self, *, commit: str | None = None, **more: Any) -> NightReport:
        """Run one night, one day after the last."""
        at = FIRST + timedelta(days=self.nights)
        self.nights += 1
        run = NightRun(
            matrix=self.matrix,
            folder=self.folder,
            boards=self.boards,
            builder=self.builder,
            store=self.store,
            tell=self.said.append,
            now=lambda: at,
            commit=f"commit-{self.nights - 1}" if commit is None else commit,
            **more,
        )
        return self.report(run.go())

    def report(self, run: str | None = None) -> NightReport:
        """What a run found."""
        return compose(self.store, self.matrix, self.store.run(self.matrix.name, run))

    def change(self, **fields: Any) -> None:
        """Change keys of the matrix."""
        self.matrix = self.matrix.model_copy(update=fields)


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """make_lab(text=...): three fake boards that measure one recipe."""
    opened: list[HistoryStore] = []

    def make(text: str = MATRIX, *, recipes: tuple[str, ...] = ("digits",)) -> Lab:
        for name in recipes:
            (tmp_path / f"{name}.yaml").write_text(RECIPE.format(name=name))
        (tmp_path / "matrix.yaml").write_text(text)
        matrix = load_matrix(tmp_path / "matrix.yaml")
        store = open_history(matrix)
        opened.append(store)
        boards = {name: FakeBoard(name) for name in matrix.devices}
        return Lab(folder=tmp_path, matrix=matrix, store=store, boards=boards, builder=FakeBuilder())

    yield make
    for store in opened:
        store.__exit__()


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """Three boards, one recipe."""
    return make_lab()
