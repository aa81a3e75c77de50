"""Nights that are made up."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from pipeline.nightly.judge import judge
from pipeline.nightly.record import Night, Verdict
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
