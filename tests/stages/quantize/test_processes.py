"""The processes that calibrate: what becomes of them when one fails, when we are interrupted, when we die."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.quantize.calibrate import Job
from stages.quantize.candidates import make_candidates
from stages.vit.spec import ViTSpec
from targets.errors import StageError

MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(graph: Path, spec: ViTSpec, tmp_path: Path) -> MakeJob:
    """make_job(alpha=..., ...): one calibration of the small graph."""
    np.save(tmp_path / "pixels.npy", np.zeros((4, 16, 16, 3), np.uint8))

    def make(alpha: Any = "off", **changes: Any) -> Job:
        fields = {
            "model": graph / "model.onnx",
            "output": tmp_path / f"alpha_{alpha}.onnx",
            "progress": tmp_path / f"alpha_{alpha}.share",
            "pixels": tmp_path / "pixels.npy",
            "preprocess": spec.preprocess,
            "alpha": alpha,
            "symmetric": False,
            "keep_float": (),
            "bias_correction": True,
        }
        return Job.model_validate({**fields, **changes})

    return make


def processes_about(folder: Path) -> Iterator[int]:
    """Every process that has this folder in its command line."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words and b"stages.quantize.calibrate" in words:
            yield int(entry.name)


def test_a_calibration_that_fails_is_told_in_one_line_with_its_last_words(make_job: MakeJob, tmp_path: Path) -> None:
    jobs = [make_job("off", pixels=tmp_path / "absent.npy"), make_job(0.5)]

    with pytest.raises(
        StageError, match=r"calibration with alpha 'off' ended with code 1; it said: .*absent\.npy"
    ) as e:
        make_candidates(jobs, model_bytes=1, tell=lambda message, share: None)

    assert "\n" not in str(e.value)
    assert not list(processes_about(tmp_path))
    assert not jobs[0].output.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_whoever_interrupts_leaves_no_process_behind(
    error: type[BaseException], make_job: MakeJob, tmp_path: Path
) -> None:
    seen: list[int] = []

    def interrupt(message: str, share: float | None) -> None:
        seen.extend(processes_about(tmp_path))
        raise error

    with pytest.raises(error):
        make_candidates([make_job("off"), make_job(0.5)], model_bytes=1, tell=interrupt)

    assert seen
    assert not list(processes_about(tmp_path))


def test_large_graphs_are_quantized_one_after_the_other(make_job: MakeJob, tmp_path: Path) -> None:
    found: list[int] = []

    def count(message: str, share: float | None) -> None:
        found.append(len(list(processes_about(tmp_path))))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_candidates([make_job("off"), make_job(0.5)], model_bytes=2_000_000_000, tell=count)

    assert found == [1]


def test_a_calibration_ends_with_whoever_started_it(make_job: MakeJob, tmp_path: Path, root: Path) -> None:
    job = make_job("off")
    description = tmp_path / "job.json"
    description.write_text(job.canonical_json())
    start = time.monotonic()

    with subprocess.Popen(
        [sys.executable, "-P", "-m", "stages.quantize.calibrate", str(description)],
        cwd=root,
        env={"PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None
        process.stdin.close()  # as the kernel does when we die
        code = process.wait(60)

    assert code == 1
    assert time.monotonic() - start < 60
    assert not job.output.exists()


def test_nothing_is_reported_to_the_makers_of_the_library(root: Path) -> None:
    code = """
import sys
from stages.quantize import calibrate
try:
    calibrate.quantize_by_nncf(None)
except AttributeError:  # no job
    pass
from nncf.telemetry import telemetry
print(type(telemetry).__name__, "openvino_telemetry.main" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["MagicMock", "False"]
