"""Accidents with times: a machine that throttles, and a runtime that does not wait for its result."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import no_wait_runtime
from benchmarks.accident import Accident, Said, Workshop, said_by
from benchmarks.accidents_numbers import OURS
from benchmarks.published_shapes import PUBLISHED
from pipeline.floors import floor_on
from pipeline.report.compose import latency
from pipeline.verdict import exit_code, judge
from targets.measure.latency import EngineUnderTest, Procedure, compare
from targets.profile import Budget, load_profile
from targets.worker import Worker

FAST = Procedure(
    processes=2, queries=8, seconds=0, blocks=2, warmup_queries=5, warmup_seconds=0, warmup_limit_seconds=2
)
GENEROUS_MS = 1.0
"""a budget that any of these engines keeps"""
BOARD = "jetson-orin-nano"


class Hot:
    """A sampler that plays a GPU which is too hot whenever an engine works."""

    def __init__(self) -> None:
        self._calls = 0

    def watch(self) -> dict[str, Any]:
        """Begin."""
        return {"sources": {"played": None}, "facts": {}}

    def watched(self) -> list[dict[str, Any]]:
        """At rest before a run, slowed down after it."""
        self._calls += 1
        working = self._calls % 2 == 0
        reason, clock = ("software thermal slowdown", 900) if working else ("idle", 1900)
        return [{"time_ns": time.monotonic_ns(), "gpu_reasons": [reason], "gpu_mhz": clock}]


def throttled(shop: Workshop) -> Said:
    """Real engines under the played sampler, and a budget that they keep."""
    engine = shop.folder("throttled/engine")
    with Worker(threads=1) as worker:
        worker.build(shop.graph() / "model.onnx", engine, runtime="onnxruntime", precision="fp32", batch=1, threads=1)
    under_test = EngineUnderTest(folder=engine, batch=1, threads=1)
    images = np.random.default_rng(0).standard_normal((16, 3, 16, 16), dtype=np.float32)
    roles = dict.fromkeys(("baseline", "unpruned", "engine"), under_test)
    found = compare(roles, images, level="quick", procedure=FAST, watcher=Hot(), rest=lambda seconds: None)
    nothing = dict.fromkeys(("accuracy", "memory_bytes", "engine_bytes", "parity"))
    measured: Any = {**nothing, "latency": latency(found, batch=1)}
    verdict = judge(Budget(latency_p50_ms=GENEROUS_MS), **measured)
    void = found.watched.void_runs if found.watched else ()
    return Said(
        caught=bool(void) and verdict.status == "undecided" and "software thermal slowdown" in verdict.sentence,
        said=verdict.sentence,
        found=f"{len(void)} runs void and repeated, the last ones kept and flagged; exit {exit_code(verdict.status)}, "
        f"{exit_code(verdict.status, strict=True)} with --strict",
    )


def faster_than_physics(shop: Workshop) -> Said:
    """A session that returns before its work is done, held against the roofline of a board."""
    spec, profile = PUBLISHED["snp_deit_base"].source_spec, load_profile(BOARD)
    floor = floor_on(profile, spec, precision="fp16", batch=1)
    work_ms = 2 * float(floor.ms or 0)
    folder = no_wait_runtime.make_engine(shop.folder("no-wait"), work_ms=work_ms)
    under_test = EngineUnderTest(folder=folder, batch=1, threads=1, floor_ms=floor.ms)
    side = no_wait_runtime.SIDE
    images = np.zeros((16, 3, side, side), np.float32)

    def measure() -> None:
        compare(
            {"engine": under_test},
            images,
            level="quick",
            procedure=FAST,
            start=lambda threads: Worker(threads, runtimes={no_wait_runtime.name: Path(no_wait_runtime.__file__)}),
        )

    said = said_by(measure, "this hardware needs", "does not wait for the result")
    return Said(
        caught=said.caught,
        said=said.said,
        found=f"floor of DeiT-B in fp16 by the peak in the profile {BOARD}: {floor.ms:.2f} ms; the work that nobody "
        f"waits for takes {work_ms:.1f} ms. Played: no engine ran on that board",
    )


TIMES = (
    Accident(
        name="throttled clock",
        done="three real engines timed under a played sampler that tells of thermal slowdown in every run",
        by="void runs, verdict",
        stage=throttled,
        tests=(
            "tests/targets/measure/test_void_runs.py::"
            "test_a_run_that_stays_throttled_is_flagged_and_later_ones_are_not_repeated",
            "tests/pipeline/test_verdict.py::test_times_of_a_machine_that_throttled_decide_nothing",
            OURS,
        ),
    ),
    Accident(
        name="faster than physics",
        done="a runtime that hands its query over and returns at once, timed as DeiT-B on a Jetson Orin Nano",
        by="roofline floor",
        stage=faster_than_physics,
        tests=(
            "tests/targets/measure/test_void_runs.py::test_a_runtime_that_does_not_wait_for_its_result_is_found_out",
            "tests/end_to_end/test_onnx.py::test_a_time_below_the_floor_of_its_target_ends_the_build",
            OURS,
        ),
    ),
)
