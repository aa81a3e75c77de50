"""An engine that is for certain processors runs on those, all its threads, and on none that are not there."""

import json
import os
from pathlib import Path

import pytest
from tiny_graphs import images, save_fp32

from targets.agent.cores import spans
from targets.errors import InputError
from targets.runtimes.ort.library import thread_affinities
from targets.worker import Worker

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins no processes")


def built(
    worker: Worker, folder: Path, cores: list[int] | None, threads: int = 1, runtime: str = "onnxruntime"
) -> Path:
    model = save_fp32(folder / "graph.onnx")
    output = folder / f"engine-{runtime}-{len(cores or ())}"
    output.mkdir()
    more = {"at_load": {"cores": cores}} if cores else {}
    worker.build(model, output, runtime=runtime, precision="fp32", batch=4, threads=threads, **more)
    return output


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_pinned_engine_runs_on_its_cores_and_the_next_one_wherever_it_may(tmp_path: Path, runtime: str) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    with Worker(threads=1) as worker:
        pinned = built(worker, tmp_path, allowed[-1:], runtime=runtime)
        free = built(worker, tmp_path, None, runtime=runtime)
        loaded = worker.load(pinned)
        on_one = os.sched_getaffinity(worker.pid)
        answers = worker.infer(images(4))
        worker.load(free)
        on_all = os.sched_getaffinity(worker.pid)

    assert json.loads((pinned / "engine.json").read_text())["at_load"]["cores"] == allowed[-1:]
    assert loaded.facts["cores"] == allowed[-1:]
    assert on_one == {allowed[-1]}
    assert on_all == set(allowed)
    assert next(iter(answers.values())).shape == (4, 10)


def test_each_thread_has_a_core_of_its_own(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("this process may use one processor only")
    with Worker(threads=2) as worker:
        facts = worker.load(built(worker, tmp_path, allowed[:2], threads=2), threads=2).facts

    assert facts["cores"] == allowed[:2]
    assert facts["thread_affinities"] == str(allowed[1] + 1), "the library counts from 1, and the first is the caller's"


def test_cores_that_are_not_there_are_refused_in_one_line(tmp_path: Path) -> None:
    with Worker(threads=1) as worker:
        folder = built(worker, tmp_path, [0, 4095])
        with pytest.raises(
            InputError, match=r"processors 0, 4095, and this process may not use .*4095; it may use "
        ) as caught:
            worker.load(folder)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cores", "threads", "told"),
    [((4, 5, 6, 7), 4, "6;7;8"), ((4, 5, 6, 7), 2, "6"), ((4,), 1, ""), ((), 4, ""), ((4,), 2, "")],
)
def test_the_library_is_told_of_all_threads_but_the_caller_s(cores: tuple[int, ...], threads: int, told: str) -> None:
    assert thread_affinities(cores, threads) == told


def test_processors_are_spelled_as_spans() -> None:
    assert spans({0, 1, 2, 3, 6, 9, 8}) == "0-3, 6, 8-9"
