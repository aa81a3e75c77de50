"""The agent as a program: JSON lines in, JSON lines out, on the Python of a board."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.agent.images import batches, prepare, rotation


def talk(*lines: str, root: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "targets.agent", "--threads", "1"],
        cwd=root,
        input="".join(line + "\n" for line in lines),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_line_gets_one_answer_whatever_it_holds(root: Path) -> None:
    answers = talk('{"do": "hello"}', "garbage", '{"do": "fly"}', "[]", '{"do": "measure", "queries": 1}', root=root)

    assert answers[0]["result"]["protocol"] == "vitrim.agent/1"
    assert answers[0]["result"]["facts"]["cores"] >= 1
    assert answers[1]["error"]["kind"] == "defect"
    assert answers[2]["error"]["kind"] == "InputError"
    assert "unknown request 'fly'; known: hello, build" in answers[2]["error"]["message"]
    assert answers[3]["error"]["kind"] == "defect"
    assert answers[4]["error"] == {"kind": "WorkerError", "message": "no engine is loaded: send `load` first"}


def test_the_agent_and_all_it_imports_is_python_3_10(root: Path) -> None:
    files = [
        *(root / "targets" / "agent").glob("*.py"),
        *(root / "targets" / "runtimes").glob("*.py"),
        *(root / "targets" / name for name in ("__init__.py", "errors.py", "facts.py")),
    ]
    newer = {"tomllib", "StrEnum", "Self", "UTC", "ExceptionGroup", "assert_never", "file_digest"}
    for file in files:
        tree = ast.parse(file.read_text(), feature_version=(3, 10))

        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert not names & newer, file


@given(count=st.integers(1, 20), batch=st.integers(1, 8), pad=st.booleans())
def test_batches_hold_every_image_once_and_in_order(count: int, batch: int, pad: bool) -> None:
    images = np.arange(count, dtype=np.float32)[:, None, None, None]

    found = list(batches(images, None, batch=batch, pad=pad))

    np.testing.assert_array_equal(np.concatenate([part[:real] for part, real in found]), images)
    assert all(len(part) == (batch if pad else real) for part, real in found)


@given(count=st.integers(1, 40), batch=st.integers(1, 40))
def test_measuring_rotates_through_different_queries(count: int, batch: int) -> None:
    images = np.arange(count, dtype=np.float32)[:, None, None, None]

    feeds = [feed["x"] for feed in rotation(images, None, name="x", batch=batch)]

    assert len(feeds) >= 2
    assert all(len(feed) == batch for feed in feeds)
    assert len({feed.tobytes() for feed in feeds}) == min(16, count)


@pytest.mark.parametrize("size", [8, 224])
def test_pixels_are_normalised_bit_for_bit_as_in_a_bundle(size: int) -> None:
    from targets.preprocess import Preprocess, normalise

    preprocess = Preprocess(height=size, width=size, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    raw = np.random.default_rng(0).integers(0, 256, size=(3, size, size, 3), dtype=np.uint8)

    found = prepare(raw, {"mean": preprocess.mean, "std": preprocess.std})

    assert np.array_equal(found, normalise(raw, preprocess))
    assert found.flags.c_contiguous
