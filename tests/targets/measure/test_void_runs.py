"""Comparisons under a watcher that is told what to see: void runs, energy, floors, records of before."""

import time
from pathlib import Path
from typing import Any

import pytest
import sleep_runtime
from tiny_graphs import images

from targets.errors import WorkerError
from targets.measure.latency import EngineUnderTest, Procedure, compare
from targets.measure.measurement import Comparison
from targets.measure.percentiles import p50_of, throughput_ips
from targets.worker import Worker

QUICK = Procedure(
    processes=2, queries=4, seconds=0, blocks=2, warmup_queries=5, warmup_seconds=0, warmup_limit_seconds=2
)
TENTH = 100_000_000


class Seen:
    """A watcher that says of each process run whether the GPU was throttled in it; its board draws constant power."""

    def __init__(self, *hot: bool, watts: float | None = None) -> None:
        self._hot, self._watts, self._calls = list(hot), watts, 0
        self._since = time.monotonic_ns()

    def watch(self) -> dict[str, Any]:
        return {"sources": {"seen": None}, "facts": {"power_mode": "0 MAXN"}}

    def watched(self) -> list[dict[str, Any]]:
        self._calls += 1
        now = time.monotonic_ns()
        if self._watts is not None:  # exact, whatever the machine is busy with
            times = range(self._since, now + 1, TENTH // 10)
            self._since = now
            return [{"time_ns": one, "board_power_w": self._watts} for one in (*times, now)]
        run, after = divmod(self._calls - 1, 2)
        reasons = ["software thermal slowdown"] if after and run < len(self._hot) and self._hot[run] else ["idle"]
        return [{"time_ns": now, "gpu_reasons": reasons, "gpu_mhz": 1000 + run}]


def compare_sleepers(
    folder: Path, watcher: Seen, procedure: Procedure = QUICK, floor_ms: float | None = None, **plans: Any
) -> tuple[Comparison, list[float]]:
    """Also the pauses that were made."""
    pauses: list[float] = []
    engines = {
        role: EngineUnderTest(
            folder=sleep_runtime.make_engine(folder / role, **plan), batch=1, threads=1, floor_ms=floor_ms
        )
        for role, plan in plans.items()
    }
    found = compare(
        engines,
        images(16),
        level="quick",
        procedure=procedure,
        start=lambda threads: Worker(threads, runtimes={"sleep": Path(sleep_runtime.__file__)}),
        watcher=watcher,
        rest=pauses.append,
    )
    return found, pauses


def test_a_throttled_run_is_repeated_after_a_pause_and_not_flagged(tmp_path: Path) -> None:
    found, pauses = compare_sleepers(tmp_path, Seen(False, True, True, False), engine={"milliseconds": 1})

    assert found.measurements["engine"].flags == ()
    assert len(found.measurements["engine"].runs) == 2
    assert found.watched is not None
    assert found.watched.void_runs == ("process 2: software thermal slowdown",) * 2
    assert pauses == [QUICK.throttle_pause_seconds] * 2
    figure = found.watched.figures["gpu_mhz"]
    assert figure is not None
    assert (figure.min, figure.max) == (1000, 1003)  # of the runs that were kept


def test_a_run_that_stays_throttled_is_flagged_and_later_ones_are_not_repeated(tmp_path: Path) -> None:
    found, pauses = compare_sleepers(
        tmp_path, Seen(True, True, True, True, True), a={"milliseconds": 0}, b={"milliseconds": 0}
    )

    assert {role: one.flags for role, one in found.measurements.items()} == {"a": ("throttled",), "b": ("throttled",)}
    assert [run.throttled for run in found.measurements["a"].runs] == [("software thermal slowdown",)] * 2
    assert len(pauses) == 2
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_energy_of_a_known_power_is_right_to_a_percent(tmp_path: Path) -> None:
    procedure = Procedure(
        processes=1,
        queries=4,
        seconds=0,
        blocks=2,
        warmup_queries=9,
        warmup_seconds=0,
        warmup_limit_seconds=2,
        energy_seconds=1,
    )
    found, pauses = compare_sleepers(tmp_path, Seen(watts=8.0), procedure, engine={"milliseconds": 5})
    (energy,) = found.measurements["engine"].energy

    assert energy.mean_power_w == pytest.approx(8, rel=0.01)
    assert energy.scope == "board"
    assert 0.5 < energy.seconds < 30
    assert 8 * 0.005 <= energy.joules_per_image < 8 * 0.05  # the sleeper may oversleep
    assert found.watched is not None
    assert found.watched.idle_power_w == {"board": pytest.approx(8, rel=0.01)}
    assert procedure.idle_seconds in pauses


def test_where_nothing_measures_power_there_is_no_energy_and_why(tmp_path: Path) -> None:
    measured, _ = compare_sleepers(
        tmp_path / "full", Seen(), Procedure(**{**vars(QUICK), "energy_seconds": 1}), engine={"milliseconds": 0}
    )
    quick, _ = compare_sleepers(tmp_path / "quick", Seen(watts=3.0), engine={"milliseconds": 0})

    assert measured.measurements["engine"].energy == quick.measurements["engine"].energy == ()
    assert measured.measurements["engine"].energy_note == "nothing on this machine tells power"
    assert quick.measurements["engine"].energy_note == "level quick measures no energy"


def test_a_runtime_that_does_not_wait_for_its_result_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"engine 'engine' answered in .* needs 50 ms at least"):
        compare_sleepers(tmp_path, Seen(), floor_ms=50.0, engine={"milliseconds": 0})

    found, _ = compare_sleepers(tmp_path / "slow", Seen(), floor_ms=0.5, engine={"milliseconds": 1})
    assert found.measurements["engine"].floor_ms == 0.5


def test_a_comparison_from_before_there_were_samples_still_loads(root: Path) -> None:
    old = Comparison.model_validate_json((root / "tests/golden/comparison/before_watching.json").read_text())

    assert old.watched is None
    assert old.measurements["engine"].energy == ()
    assert 2 <= p50_of(old.measurements["engine"]) < 10
    assert 100 < throughput_ips(old.measurements["engine"]) < 500
    from pipeline.report.compose import latency

    assert latency(old, batch=1).engine.throttled == ()


def test_a_worker_can_watch_the_machine_it_runs_on() -> None:
    with Worker(threads=1) as worker:
        with pytest.raises(WorkerError, match="nothing is watched"):
            worker.watched()
        told = worker.watch()
        samples = worker.watched()

    assert set(told["sources"]) == {"cpu", "thermal", "rapl", "jetson", "ina3221", "nvml"}
    assert bool(samples) == (None in told["sources"].values())


def test_throughput_counts_the_stalls_that_the_median_does_not_see(tmp_path: Path) -> None:
    plan = {"milliseconds": 1, "stall_every": 4, "stall_milliseconds": 40}
    procedure = Procedure(**{**vars(QUICK), "queries": 40, "processes": 1})
    measurement = compare_sleepers(tmp_path, Seen(), procedure, engine=plan)[0].measurements["engine"]

    assert p50_of(measurement) < 20
    assert throughput_ips(measurement) < 1000 / (40 / 4)
