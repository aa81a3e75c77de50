"""A runtime that does not wait for its result, as one that launches work on a GPU and forgets to synchronise.

Its engine is one file of JSON: how long the work takes that nobody waits for. For `accidents.py`.
"""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from targets.runtimes.engine import write_engine
from targets.runtimes.runtime import Array, Feeds, TensorFacts

name = "no_wait"
FILE, SIDE, CLASSES = "work.json", 8, 10


def make_engine(folder: Path, *, work_ms: float) -> Path:
    """Write an engine into an existing, empty folder."""
    (folder / FILE).write_text(json.dumps({"work_ms": work_ms}))
    facts: dict[str, Any] = {"runtime": name, "version": "1", "precision": "fp16", "batch": 1}
    write_engine(folder, files=[FILE], inputs=[], outputs=[], options={}, bound_to={}, **facts)
    return folder


def available() -> str | None:
    """Always there."""
    return None


def version() -> str:
    """Of no meaning."""
    return "1"


def binding(facts: dict[str, Any]) -> dict[str, str]:
    """Runs anywhere."""
    return {}


def build(model: Path, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Nobody builds with it."""
    raise NotImplementedError("engines of no_wait are made by make_engine")


def load(path: Path, options: dict[str, Any]) -> "NoWaitSession":
    """Read how long its work takes."""
    return NoWaitSession(json.loads(path.read_text())["work_ms"])


class NoWaitSession:
    """Answers at once with what was there; its work goes on in a thread."""

    inputs = (TensorFacts(name="images", shape=(1, 3, SIDE, SIDE), dtype="float32"),)
    outputs = (TensorFacts(name="logits", shape=(1, CLASSES), dtype="float32"),)

    def __init__(self, work_ms: float) -> None:
        self._work_s, self._answer = work_ms / 1000, np.zeros((1, CLASSES), np.float32)
        self._asked = threading.Event()
        threading.Thread(target=self._work, daemon=True).start()

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Hand the query over, and not wait."""
        self._asked.set()
        return {"logits": self._answer}

    def layers(self, feeds: Feeds, repeats: int) -> list[dict[str, Any]]:
        """Nothing to look at."""
        return []

    def matrix_products(self, feeds: Feeds) -> dict[str, int]:
        """What it claims."""
        return {"fp16": 1}

    def facts(self) -> dict[str, Any]:
        """Nothing is in force."""
        return {}

    def close(self) -> None:
        """The thread ends with the process."""

    def _work(self) -> None:
        while self._asked.wait():
            self._asked.clear()
            time.sleep(self._work_s)
            self._answer = self._answer + 1
