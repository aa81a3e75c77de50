"""The measurement measured: a runtime that sleeps has a latency that is known."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sleep_runtime
from tiny_graphs import images, save_fp32

from targets.errors import InputError
from targets.measure.contender import LEAD_IN
from targets.measure.latency import LEVELS, EngineUnderTest, Procedure, compare
from targets.measure.measurement import Comparison
from targets.measure.percentiles import p50_ci95, p50_of, paired_ratio, tail_percentile
from targets.worker import Worker

PROCEDURE = Procedure(
    processes=2, queries=64, seconds=0, blocks=16, warmup_queries=5, warmup_seconds=0, warmup_limit_seconds=10
)


def sleeper(threads: int | None) -> Worker:
    return Worker(threads, runtimes={"sleep": Path(sleep_runtime.__file__)})


def compare_sleepers(
    folder: Path,
    procedure: Procedure = PROCEDURE,
    start: Callable[[int | None], Worker] = sleeper,
    **plans: dict[str, float],
) -> Comparison:
    engines = {
        role: EngineUnderTest(folder=sleep_runtime.make_engine(folder / role, **plan), batch=1, threads=1)
        for role, plan in plans.items()
    }
    return compare(engines, images(16), level="quick", start=start, procedure=procedure)


@pytest.mark.serial
def test_a_known_latency_is_measured_right(tmp_path: Path) -> None:
    found = compare_sleepers(
        tmp_path, baseline={"milliseconds": 24}, engine={"milliseconds": 16}, again={"milliseconds": 16}
    ).measurements

    assert 24 <= p50_of(found["baseline"]) < 28  # a busy machine wakes sleepers a little late
    assert 16 <= p50_of(found["engine"]) < 20
    low, high = p50_ci95(found["engine"])
    assert 16 <= low <= p50_of(found["engine"]) <= high < 20
    ratio, (low, high) = paired_ratio(found["baseline"], found["engine"])
    assert 1.3 < low <= ratio <= high < 1.6
    ratio, (low, high) = paired_ratio(found["again"], found["engine"])
    assert low < 1.05
    assert high > 0.95
    assert 0.9 < ratio < 1.1


@pytest.mark.serial
@pytest.mark.parametrize(
    ("stall_every", "slow"),
    [(8, {0.9: True, 0.99: True}), (50, {0.9: False, 0.99: True}), (10_000, {0.9: False})],
    ids=["one in 8 stalls", "one in 50 stalls", "none stalls"],
)
def test_stalls_show_in_the_tails_they_belong_to_and_not_in_the_median(
    tmp_path: Path, stall_every: int, slow: dict[float, bool]
) -> None:
    plan = {"milliseconds": 1, "stall_every": stall_every, "stall_milliseconds": 30}
    procedure = Procedure(
        processes=2, queries=400, seconds=0, blocks=8, warmup_queries=5, warmup_seconds=0, warmup_limit_seconds=1
    )

    measurement = compare_sleepers(tmp_path, procedure, engine=plan).measurements["engine"]

    samples = [sample for run in measurement.runs for sample in run.samples]
    tails = {share: tail_percentile(samples, share) for share in slow}
    assert len(samples) == 800
    assert 1 <= p50_of(measurement) < 5
    assert {share: tail is not None and tail >= 30 for share, tail in tails.items()} == slow


def test_everything_needed_to_judge_a_comparison_is_in_its_record(tmp_path: Path) -> None:
    comparison = compare_sleepers(tmp_path, baseline={"milliseconds": 1}, engine={"milliseconds": 2})

    assert set(comparison.measurements) == {"baseline", "engine"}
    for measurement in comparison.measurements.values():
        assert len(measurement.engine_sha256) == 64
        assert [len(run.samples) for run in measurement.runs] == [64, 64]
        assert all(run.blocks == (4,) * 16 for run in measurement.runs)
        assert all(run.peak_memory_bytes and run.warmup_queries >= 5 for run in measurement.runs)
    assert {"load_average", "governors", "throttle_count", "cpu_quota"} <= comparison.conditions_before.keys()
    assert comparison.conditions_after["time"] >= comparison.conditions_before["time"]
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison


@pytest.mark.serial
def test_a_fast_engine_gets_more_queries_until_the_time_is_full(tmp_path: Path) -> None:
    procedure = Procedure(
        processes=1, queries=10, seconds=0.5, blocks=5, warmup_queries=9, warmup_seconds=0, warmup_limit_seconds=2
    )

    found = compare_sleepers(tmp_path, procedure, fast={"milliseconds": 2}, slow={"milliseconds": 100}).measurements

    assert len(found["slow"].runs[0].samples) == 10
    assert len(found["fast"].runs[0].samples) > 50
    assert len(found["fast"].runs[0].blocks) == len(found["slow"].runs[0].blocks) == 5


def test_the_engines_take_turns_in_changing_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    measure = Worker.measure

    def listen(worker: Worker, queries: int) -> list[int]:
        if queries != LEAD_IN:
            asked.append((threading.current_thread().name, worker.pid))
        return measure(worker, queries)

    monkeypatch.setattr(Worker, "measure", listen)
    compare_sleepers(tmp_path, a={"milliseconds": 0}, b={"milliseconds": 0}, c={"milliseconds": 0})

    rounds = [[pid for _, pid in asked[start : start + 3]] for start in range(0, len(asked), 3)]
    assert all(len(set(one)) == 3 for one in rounds)
    assert len({tuple(one) for one in rounds[:16]}) > 1
    assert len({pid for _, pid in asked}) == 6  # fresh processes in the second round


def test_while_one_engine_works_the_others_stand_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers: list[Worker] = []
    seen: list[tuple[str, list[str]]] = []
    measure = Worker.measure

    def start(threads: int | None) -> Worker:
        workers.append(sleeper(threads))
        return workers[-1]

    def listen(worker: Worker, queries: int) -> list[int]:
        samples = measure(worker, queries)
        alive = [one for one in workers[-2:] if one is not worker]
        seen.append((state_of(worker.pid), [state_of(one.pid) for one in alive]))
        return samples

    monkeypatch.setattr(Worker, "measure", listen)
    compare_sleepers(tmp_path, start=start, a={"milliseconds": 0}, b={"milliseconds": 0})

    assert len(seen) == 2 * 2 * PROCEDURE.blocks * PROCEDURE.processes  # lead-in and block of both
    assert {others for _, [others] in seen} == {"T"}
    assert "T" not in {own for own, _ in seen}


def state_of(pid: int) -> str:
    """State of a process as the system writes it: T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_an_unsteady_engine_is_flagged(tmp_path: Path) -> None:
    plan = {"milliseconds": 1, "stall_every": 2, "stall_milliseconds": 30}
    procedure = Procedure(
        processes=1, queries=4, seconds=0, blocks=2, warmup_queries=10, warmup_seconds=0, warmup_limit_seconds=0.1
    )

    measurement = compare_sleepers(tmp_path, procedure, engine=plan).measurements["engine"]

    assert measurement.flags == ("unstable_warmup",)
    assert not measurement.runs[0].stable


def test_one_engine_that_cannot_be_loaded_ends_all_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Worker] = []

    def start(threads: int | None) -> Worker:
        started.append(sleeper(threads))
        return started[-1]

    good = EngineUnderTest(folder=sleep_runtime.make_engine(tmp_path / "good"), batch=1)
    bad = EngineUnderTest(folder=tmp_path / "absent", batch=1)
    with pytest.raises(InputError, match="absent"):
        compare({"baseline": good, "engine": bad}, images(4), level="quick", start=start)

    assert len(started) == 2
    assert all(not Path(f"/proc/{worker.pid}").exists() for worker in started)


def test_a_real_engine_is_measured_with_progress(tmp_path: Path) -> None:
    output, told = tmp_path / "engine", []
    output.mkdir()
    with Worker(threads=1) as worker:
        worker.build(save_fp32(tmp_path / "graph.onnx"), output, runtime="onnxruntime", precision="fp32", batch=2)
    engine = EngineUnderTest(folder=output, batch=2, threads=1)

    start = time.perf_counter()
    comparison = compare(
        {"engine": engine},
        images(16),
        level="quick",
        procedure=PROCEDURE,
        tell=lambda message, share: told.append(share),
    )

    assert comparison.seconds <= time.perf_counter() - start
    assert told == sorted(told)
    assert 0 <= told[0] <= told[-1] <= 1
    assert 0 < p50_of(comparison.measurements["engine"]) < 100


def test_full_backs_its_tail_and_quick_does_not_claim_one() -> None:
    full, quick = LEVELS["full"], LEVELS["quick"]

    assert (full.processes, full.queries, full.seconds) == (5, 662, 10)
    assert (quick.processes, quick.queries) == (2, 64)
    assert quick.processes * quick.queries < 662


def test_an_engine_of_another_input_size_is_timed_with_images_of_its_own(tmp_path: Path) -> None:
    ours, theirs = images(16), images(16) + 1
    given: list[bool] = []

    class Noting(Worker):
        def rotate(self, inputs: Any, **how: Any) -> None:
            given.append(inputs is theirs)
            super().rotate(inputs, **how)

    def start(threads: int | None) -> Worker:
        return Noting(threads, runtimes={"sleep": Path(sleep_runtime.__file__)})

    engines = {
        role: EngineUnderTest(
            folder=sleep_runtime.make_engine(tmp_path / role, milliseconds=0), batch=1, threads=1, inputs=own
        )
        for role, own in (("baseline", None), ("engine", theirs))
    }
    procedure = Procedure(
        processes=2, queries=4, seconds=0, blocks=2, warmup_queries=1, warmup_seconds=0, warmup_limit_seconds=1
    )
    compare(engines, ours, level="quick", start=start, procedure=procedure)

    assert given == [False, True] * 2
