"""A worker that dies, hangs, prints or is left behind: the caller hears why, and no process remains."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import sleep_runtime
from tiny_graphs import images

from targets.errors import InputError, WorkerError
from targets.preprocess import Preprocess
from targets.worker import LEAVE_SECONDS, Worker

SLEEP = {"sleep": Path(sleep_runtime.__file__)}


def sleeper(**options: float) -> Worker:
    return Worker(threads=1, runtimes=SLEEP, **options)


def is_alive(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def eventually_gone(pid: int, *, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not is_alive(pid)


def test_a_worker_leaves_nothing_behind(tmp_path: Path) -> None:
    with sleeper() as worker:
        worker.load(sleep_runtime.make_engine(tmp_path / "engine"))
        folder = Path(worker._folder.name)

        assert is_alive(worker.pid)
    assert not is_alive(worker.pid)
    assert not folder.exists()


def test_a_worker_killed_in_the_middle_says_so(tmp_path: Path) -> None:
    with sleeper() as worker:
        worker.load(sleep_runtime.make_engine(tmp_path / "engine", milliseconds=60_000))
        worker.rotate(images(2))
        threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL)).start()

        with pytest.raises(WorkerError, match="ended by SIGKILL at 'measure', probably out of memory"):
            worker.measure(1)

        assert not is_alive(worker.pid)
        with pytest.raises(WorkerError, match="SIGKILL at 'measure'"):  # and stays dead
            worker.measure(1)


def test_an_abort_is_told_with_exit_code_and_last_words(tmp_path: Path) -> None:
    with sleeper() as worker:
        worker.load(sleep_runtime.make_engine(tmp_path / "engine", fail="exit"))

        with pytest.raises(WorkerError, match="exit code 3 at 'infer'; its last words: a library aborts"):
            worker.infer(images(1))


def test_an_exception_of_the_runtime_is_told_and_the_worker_goes_on(tmp_path: Path) -> None:
    with sleeper() as worker:
        worker.load(sleep_runtime.make_engine(tmp_path / "engine", fail="raise"))

        with pytest.raises(WorkerError, match=r"RuntimeError: no kernel for this; its last words: .*RuntimeError"):
            worker.infer(images(1))
        worker.load(sleep_runtime.make_engine(tmp_path / "other"))
        assert worker.infer(images(1))["mean"].shape == (1,)
        with pytest.raises(WorkerError, match=r"^measure failed: no images to measure with[^|]*$"):
            worker.measure(1)


def test_last_words_are_about_the_last_request(tmp_path: Path) -> None:
    with sleeper() as worker:
        worker.load(sleep_runtime.make_engine(tmp_path / "noisy", fail="complain"))
        worker.infer(images(1))
        worker.load(sleep_runtime.make_engine(tmp_path / "silent", fail="exit silently"))

        with pytest.raises(WorkerError, match=r"exit code 3 at 'infer'$"):
            worker.infer(images(1))


def test_a_hanging_worker_is_ended_at_its_limit(tmp_path: Path) -> None:
    with sleeper(limit_seconds=1) as worker:
        worker.load(sleep_runtime.make_engine(tmp_path / "engine", fail="hang"))

        with pytest.raises(WorkerError, match="did not answer 'infer' within 1 s"):
            worker.infer(images(1))
        assert not is_alive(worker.pid)


def test_a_runtime_that_prints_does_not_disturb_the_protocol(tmp_path: Path) -> None:
    with sleeper() as worker:
        worker.load(sleep_runtime.make_engine(tmp_path / "engine", fail="noise"))
        pixels = images(5)

        np.testing.assert_allclose(worker.infer(pixels)["mean"], pixels.mean(axis=(1, 2, 3)), rtol=1e-5)


def owner_in_a_long_query(engine: Path) -> tuple[subprocess.Popen[str], int]:
    """A process whose worker measures for a minute, and the worker's pid. Ctrl-C would end the runner of tests, too."""
    code = f"""
import sys; from pathlib import Path; import numpy as np; from targets.worker import Worker
with Worker(runtimes={{"sleep": Path({str(SLEEP["sleep"])!r})}}) as worker:
    worker.load(Path({str(engine)!r})); worker.rotate(np.zeros((2, 3, 8, 8), np.float32))
    print(worker.pid, flush=True); worker.measure(1)
"""
    words = [sys.executable, "-c", code]
    pipe, root = subprocess.PIPE, Path(__file__).parents[2]
    owner = subprocess.Popen(words, cwd=root, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    assert owner.stdout is not None
    return owner, int(owner.stdout.readline())


def test_ctrl_c_ends_the_worker_at_once(tmp_path: Path) -> None:
    owner, pid = owner_in_a_long_query(sleep_runtime.make_engine(tmp_path / "engine", milliseconds=60_000))
    time.sleep(0.3)
    assert is_alive(pid)
    start = time.monotonic()

    os.killpg(owner.pid, signal.SIGINT)
    _, told = owner.communicate(timeout=50)

    assert owner.returncode == -signal.SIGINT, told
    assert told.rstrip().endswith("KeyboardInterrupt")
    assert not is_alive(pid)
    assert time.monotonic() - start < 50


def test_a_worker_whose_owner_was_killed_ends_itself_even_in_a_long_query(tmp_path: Path) -> None:
    owner, pid = owner_in_a_long_query(sleep_runtime.make_engine(tmp_path / "engine", milliseconds=60_000))
    with owner:
        owner.kill()

    assert eventually_gone(pid, seconds=30)


def test_a_paused_worker_goes_on_or_leaves_in_order(tmp_path: Path) -> None:
    with Worker(runtimes=SLEEP) as worker:
        worker.load(sleep_runtime.make_engine(tmp_path / "engine"))
        worker.rotate(images(2))
        worker.pause()
        worker.resume()
        assert len(worker.measure(3)) == 3
        worker.pause()
        start = time.monotonic()

    assert not is_alive(worker.pid)
    assert time.monotonic() - start < LEAVE_SECONDS  # it was not waited for in vain


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_paused_worker_whose_owner_was_killed_leaves() -> None:
    """The middle process adopts the worker within its session, so no hang-up comes from the system."""
    owner = """
from targets.worker import Worker
with Worker() as worker:
    worker.pause(); print(worker.pid, flush=True); input()
"""
    middle = f"""
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
owner = subprocess.Popen([sys.executable, "-c", {owner!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
pid = int(owner.stdout.readline())
owner.kill(); owner.wait()
print("waiting for", pid, flush=True)
print("left with", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", middle], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60
    )

    assert "left with" in done.stdout, done


def test_uint8_images_are_normalised_as_everywhere_else(tmp_path: Path) -> None:
    from targets.preprocess import normalise

    preprocess = Preprocess(height=8, width=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    raw = np.random.default_rng(0).integers(0, 256, size=(6, 8, 8, 3), dtype=np.uint8)
    with sleeper() as worker:
        worker.load(sleep_runtime.make_engine(tmp_path / "engine"))

        found = worker.infer(raw, preprocess=preprocess)["mean"]
        expected = worker.infer(normalise(raw, preprocess))["mean"]

    assert np.array_equal(found, expected)


def test_many_images_come_back_in_order_with_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.worker.CHUNK_IMAGES", 4)
    told = []
    with sleeper() as worker:
        worker.load(sleep_runtime.make_engine(tmp_path / "engine"))
        pixels = images(10)

        found = worker.infer(pixels, tell=lambda message, share: told.append((message, share)))["mean"]

    np.testing.assert_allclose(found, pixels.mean(axis=(1, 2, 3)), rtol=1e-5)
    assert told == [("4 of 10 images", 0.4), ("8 of 10 images", 0.8), ("10 of 10 images", 1.0)]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (np.zeros((2, 3, 8, 9), np.float32), "do not fit input 'image'"),
        (np.zeros((2, 3, 8, 8), np.float64), "do not fit input 'image'"),
        (np.zeros((2, 8, 8, 3), np.uint8), "need a preprocess"),
        (np.zeros((0, 3, 8, 8), np.float32), "no images"),
    ],
)
def test_images_that_do_not_fit_are_refused(tmp_path: Path, wrong: "np.ndarray", reason: str) -> None:
    with sleeper() as worker:
        worker.load(sleep_runtime.make_engine(tmp_path / "engine"))

        with pytest.raises(InputError, match=reason):
            worker.infer(wrong)


def test_an_engine_cannot_name_a_runtime_that_its_worker_was_not_given(tmp_path: Path) -> None:
    with Worker(threads=1) as worker, pytest.raises(InputError, match="unknown runtime 'sleep'"):
        worker.load(sleep_runtime.make_engine(tmp_path / "engine"))


def test_what_is_not_an_engine_is_refused(tmp_path: Path) -> None:
    with Worker(threads=1) as worker:
        with pytest.raises(InputError, match=r"not an engine: it has no engine\.json"):
            worker.load(tmp_path)
        with pytest.raises(InputError, match=r"neither an engine nor an \.onnx file"):
            worker.load(tmp_path / "nothing")


def test_a_worker_imports_neither_torch_nor_pydantic(tmp_path: Path) -> None:
    with Worker(threads=1) as worker:
        maps = Path(f"/proc/{worker.pid}/maps").read_text()

    assert "pydantic_core" not in maps
    assert "libtorch" not in maps


def test_the_peak_of_memory_is_its_own(tmp_path: Path) -> None:
    ballast = np.ones(40_000_000)  # 320 MB of ours, which a started process would show as its ru_maxrss
    with sleeper() as worker:
        peak = worker.peak_memory_bytes()

    assert peak is not None
    assert 10 * 2**20 < peak < ballast.nbytes / 2
