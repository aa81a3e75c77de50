"""A runtime that sleeps instead of computing, so that what is measured is known; it can also fail on purpose.

Its engine is one JSON file: milliseconds per query, stall_every n queries for stall_milliseconds, and `fail`:
noise (prints to standard output), complain (to standard error), raise, exit, exit silently, hang. With `requests` it
sleeps for that many queries at once.
"""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from targets.runtimes.engine import write_engine
from targets.runtimes.runtime import Answered, Array, Feeds, TensorFacts

name = "sleep"
FILE = "sleep.json"


def make_engine(folder: Path, **plan: Any) -> Path:
    """Write an engine of this runtime."""
    folder.mkdir(parents=True)
    (folder / FILE).write_text(json.dumps({"milliseconds": 0, **plan}))
    facts: dict[str, Any] = {"runtime": name, "version": "1", "precision": "fp32", "batch": 1}
    write_engine(folder, files=[FILE], inputs=[], outputs=[], options={}, bound_to={}, **facts)
    return folder


def available() -> str | None:
    return None


def version() -> str:
    return "1"


def binding(facts: dict[str, Any]) -> dict[str, str]:
    return {}


def build(model: Path, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    raise NotImplementedError("nobody builds sleep")


def load(path: Path, options: dict[str, Any]) -> "SleepSession":
    plan = json.loads(path.read_text())
    return SleepingPool(plan) if "requests" in plan else SleepSession(plan)


class SleepSession:
    inputs = (TensorFacts(name="image", shape=(1, 3, 8, 8), dtype="float32"),)
    outputs = (TensorFacts(name="mean", shape=(1,), dtype="float32"),)

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan, self._queries = plan, 0

    def run(self, feeds: Feeds) -> dict[str, Array]:
        self._queries += 1
        match self._plan.get("fail"):
            case "noise":
                os.write(1, b"a library prints to standard output\n")
            case "raise":
                os.write(2, b"a library complains\n")
                raise RuntimeError("no kernel for this")
            case "exit":
                os.write(2, b"a library aborts\n")
                os._exit(3)
            case "complain":
                os.write(2, b"a library complains\n")
            case "exit silently":
                os._exit(3)
            case "hang":
                time.sleep(600)
        stalls = self._plan.get("stall_every") and self._queries % self._plan["stall_every"] == 0
        time.sleep(self._plan["stall_milliseconds" if stalls else "milliseconds"] / 1000)
        return {"mean": np.asarray(feeds["image"]).mean(axis=(1, 2, 3))}

    def layers(self, feeds: Feeds, repeats: int) -> list[dict[str, Any]]:
        told = {"name": "sleep", "operator": "Sleep", "kernel": "sleep", "precision": "fp32", "provider": "test"}
        return [{**told, "macs": None, "seconds": 0.001, "calls": 1}]

    def matrix_products(self, feeds: Feeds) -> dict[str, int]:
        return {"fp32": 1}

    def facts(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


class SleepingPool(SleepSession):
    """Sleeps for several queries at once, each in a thread."""

    def __init__(self, plan: dict[str, Any]) -> None:
        super().__init__(plan)
        self.requests: int = plan["requests"]
        self.most = 0
        """queries that slept at once"""
        self._asleep: list[threading.Thread] = []

    def submit(self, feeds: Feeds, answered: Answered) -> None:
        thread = threading.Thread(target=lambda: answered(self.run(feeds)))
        self._asleep = [one for one in self._asleep if one.is_alive()] + [thread]
        thread.start()
        self.most = max(self.most, sum(one.is_alive() for one in self._asleep))

    def wait(self) -> None:
        for one in self._asleep:
            one.join()
