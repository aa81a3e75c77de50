"""A training that was killed ends as if it had not been."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("interrupted.py")


@pytest.fixture
def run_here() -> Iterator[Callable[..., None]]:
    """The script's training in this process, with one thread as in the script's own."""
    specification = importlib.util.spec_from_file_location("interrupted", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module.run
    torch.set_num_threads(threads)


def newest_step(scratch: Path) -> int:
    return max((int(path.stem.partition("-")[2]) for path in scratch.glob("step-*.json")), default=0)


def kill_after(step: int, root: Path, scratch: Path, output: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, SCRIPT, scratch, output], env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    )
    try:
        while newest_step(scratch) < step:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_training_killed_twice_gives_the_same_bytes(
    run_here: Callable[..., None], root: Path, tmp_path: Path
) -> None:
    run_here(tmp_path / "undisturbed", tmp_path / "expected")
    kill_after(12, root, tmp_path / "killed", tmp_path / "resumed")
    kill_after(37, root, tmp_path / "killed", tmp_path / "resumed")
    assert 37 <= newest_step(tmp_path / "killed") < 60
    assert not (tmp_path / "resumed").exists()
    run_here(tmp_path / "killed", tmp_path / "resumed")

    for name in ("facts.json", "weights.safetensors"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
