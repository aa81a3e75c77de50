"""A runtime that pretends: it sleeps as a script says, and answers with what it computes of the pixels alone.

For the device `fake`, and for boards whose links are tested. The environment variable VITRIM_SCRIPT names the script, a
JSON file: see `targets.devices.fake`. It is in no catalog: whoever starts the agent brings it along.
"""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from targets.errors import WorkerError
from targets.runtimes.runtime import Array, Feeds, TensorFacts

name = "scripted"
FILE = "scripted.json"
VARIABLE = "VITRIM_SCRIPT"


def script() -> dict[str, Any]:
    """What is to be pretended."""
    path = os.environ.get(VARIABLE)
    return dict(json.loads(Path(path).read_text())) if path else {}


def available() -> str | None:
    """It always is."""
    return None


def version() -> str:
    """Of the software that is pretended."""
    return str(script().get("version", "1"))


def binding(facts: dict[str, Any]) -> dict[str, str]:
    """Its version alone."""
    return {"scripted": version()}


def build(model: Path, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Write down what the engine will pretend."""
    plan = script()
    if plan.get("build_fails"):
        raise WorkerError(str(plan["build_fails"]))
    time.sleep(plan.get("build_seconds", 0))
    while plan.get("build_until") and not Path(plan["build_until"]).exists():
        time.sleep(0.05)
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    delays = plan.get("milliseconds", 1.0)
    if isinstance(delays, dict):
        delays = delays.get(digest[:12], delays.get(options["precision"], delays.get("default", 1.0)))
    side, classes, batch = plan.get("side", 16), plan.get("classes", 10), options["batch"]
    told = {"milliseconds": delays, "side": side, "classes": classes, "batch": batch, "graph": digest}
    (output / FILE).write_text(json.dumps(told))
    return {"files": [FILE]}


def load(path: Path, options: dict[str, Any]) -> "ScriptedSession":
    """Pretend an engine."""
    return ScriptedSession(json.loads(path.read_text()))


class ScriptedSession:
    """Sleeps, and answers: the class is the brightness of an image, in as many steps as there are classes."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        side, batch = plan["side"], plan["batch"]
        self.inputs = (TensorFacts(name="image", shape=(batch, 3, side, side), dtype="float32"),)
        self.outputs = (TensorFacts(name="logits", shape=(batch, plan["classes"]), dtype="float32"),)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Sleep and answer."""
        time.sleep(self._plan["milliseconds"] / 1000)
        images = np.asarray(feeds["image"])
        classes = self._plan["classes"]
        bright = np.clip((images.mean(axis=(1, 2, 3)) + 1) / 2 * classes, 0, classes - 1).astype(int)
        return {"logits": np.eye(classes, dtype=np.float32)[bright]}

    def layers(self, feeds: Feeds, repeats: int) -> list[dict[str, Any]]:
        """One layer."""
        told = {"name": "pretended", "operator": "Sleep", "kernel": "sleep", "precision": "fp32", "provider": name}
        return [{**told, "macs": None, "seconds": self._plan["milliseconds"] / 1000, "calls": 1}]

    def matrix_products(self, feeds: Feeds) -> dict[str, int]:
        """None ran."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What it pretends."""
        return {"pretended": True, **self._plan}

    def close(self) -> None:
        """Nothing to give back."""
