"""The sampler, and what its samples are worth: conditions, throttling, energy."""

import ast
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.measure.energy import LEAST_SAMPLES, energy_of, mean_power_w, measures_power
from targets.measure.sampler import Sampler
from targets.measure.watching import peak_gpu_memory_bytes, real_throttling, summarise

SECOND = 1_000_000_000


class Told:
    """A source that tells the next of a list, then the last again."""

    def __init__(self, *readings: dict[str, Any], obstacle: str | None = None) -> None:
        self.name, self.obstacle, self.facts = "told", obstacle, {"power_mode": "2 MODE_15W"}
        self._readings = list(readings)

    def read(self) -> dict[str, Any]:
        return self._readings.pop(0) if len(self._readings) > 1 else self._readings[0]


def powers(watts: list[float], *, name: str = "board_power_w", hertz: int = 10) -> list[dict[str, Any]]:
    return [{"time_ns": index * SECOND // hertz, name: one} for index, one in enumerate(watts)]


# Sampling.


def test_samples_come_from_a_side_thread_until_it_is_closed() -> None:
    sampler = Sampler([Told({"cpu_mhz": 1.0})], hertz=500)
    told = sampler.watch()
    end = time.monotonic() + 20
    found: list[dict[str, Any]] = []
    while len(found) < 10 and time.monotonic() < end:
        time.sleep(0.05)
        found += sampler.watched()
    sampler.close()

    assert told == {"sources": {"told": None}, "facts": {"power_mode": "2 MODE_15W"}}
    assert len(found) >= 10
    assert all(sample["cpu_mhz"] == 1.0 for sample in found)
    times = [sample["time_ns"] for sample in found]
    assert times == sorted(times)


def test_the_last_sample_of_a_span_is_the_first_of_the_next() -> None:
    sampler = Sampler([Told(*({"cpu_throttle_count": count} for count in range(9)))])

    first, second = sampler.watched(), sampler.watched()

    assert [sample["cpu_throttle_count"] for sample in first] == [0]
    assert [sample["cpu_throttle_count"] for sample in second] == [0, 1]


def test_where_nothing_tells_there_is_no_thread_and_no_sample() -> None:
    sampler = Sampler([Told({}, obstacle="not here")])

    assert sampler.watch() == {"sources": {"told": "not here"}, "facts": {}}
    assert sampler._thread is None
    assert sampler.watched() == []


def test_the_sampler_needs_nothing_but_the_standard_library(root: Path) -> None:
    code = (
        "import sys, targets.measure.sampler, targets.agent.open_loop;"
        "print([name for name in ('numpy', 'pydantic', 'scipy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_what_runs_on_a_board_is_written_in_python_3_10(root: Path) -> None:
    files = [
        root / "targets/facts.py",
        root / "targets/measure/sampler.py",
        *(root / "targets/measure/sources").glob("*.py"),
        *(root / "targets/agent").glob("*.py"),
    ]

    for file in files:
        ast.parse(file.read_text(), feature_version=(3, 10))
        assert "import UTC" not in file.read_text(), file


# Conditions and throttling.


def test_settings_and_rest_are_no_throttling() -> None:
    samples = [{"gpu_reasons": ["idle", "application clocks", "display clock"], "cpu_throttle_count": 3}] * 4

    assert real_throttling(samples) == ()
    assert real_throttling([]) == ()


def test_every_real_cause_is_named_once() -> None:
    samples: list[dict[str, Any]] = [
        {"gpu_reasons": ["software power cap"], "cpu_throttle_count": 3, "overcurrent_count": 1},
        {"gpu_reasons": ["software power cap", "idle"], "cpu_throttle_count": 4, "overcurrent_count": 1},
    ]

    assert real_throttling(samples) == ("processor throttled", "software power cap")


def test_a_summary_has_the_spread_of_what_was_told_and_none_for_the_rest() -> None:
    samples: list[dict[str, Any]] = [{"cpu_mhz": mhz, "gpu_reasons": ["idle"]} for mhz in (1000, 3000, 2000)]
    found = summarise(samples, {"sources": {"cpu": None, "rapl": "root only"}, "facts": {}}, void=["process 1: hot"])

    assert found["figures"]["cpu_mhz"] == {"min": 1000, "median": 2000, "max": 3000}
    assert found["figures"]["gpu_power_w"] is None
    assert found["sources"] == {"cpu": "", "rapl": "root only"}
    assert found["reasons"] == {"idle": 3}
    assert found["void_runs"] == ["process 1: hot"]


def test_peak_memory_on_the_gpu_is_that_of_the_process() -> None:
    samples = [{"gpu_process_bytes": {"7": 10, "8": 99}}, {"gpu_process_bytes": {"7": 30}}, {}]

    assert peak_gpu_memory_bytes(samples, 7) == 30
    assert peak_gpu_memory_bytes(samples, 9) is None


# Energy.


@given(watts=st.floats(0.5, 500), images=st.integers(1, 10_000), start=st.floats(1, 5), seconds=st.floats(2, 10))
def test_constant_power_gives_its_energy_per_image(watts: float, images: int, start: float, seconds: float) -> None:
    window = (int(start * SECOND), int((start + seconds) * SECOND))
    (found,) = energy_of(powers([watts] * 200), [window], images=[images])

    assert found["scope"] == "board"
    assert found["mean_power_w"] == pytest.approx(watts, rel=0.01)
    assert found["joules_per_image"] == pytest.approx(watts * (window[1] - window[0]) / SECOND / images, rel=0.01)


def test_each_engine_is_charged_for_its_own_blocks_only() -> None:
    samples = powers([5.0] * 50 + [20.0] * 50 + [5.0] * 50 + [20.0] * 50)  # 5 s each
    low = energy_of(samples, [(0, 5 * SECOND - 1), (10 * SECOND, 15 * SECOND - 1)], images=[10, 10])
    high = energy_of(samples, [(5 * SECOND, 10 * SECOND - 1)], images=[50])

    assert low[0]["mean_power_w"] == pytest.approx(5, rel=0.03)
    assert high[0]["mean_power_w"] == pytest.approx(20, rel=0.03)
    assert high[0]["joules_per_image"] == pytest.approx(20 * 5 / 50, rel=0.03)
    assert mean_power_w(samples) == {"board": pytest.approx(12.5, rel=0.02)}


def test_a_counter_goes_before_a_power_that_lags() -> None:
    samples = [
        {"time_ns": index * SECOND // 10, "gpu_energy_j": 3.0 * index / 10, "gpu_power_w": 99.0} for index in range(100)
    ]
    (found,) = energy_of(samples, [(SECOND, 6 * SECOND)], images=[5])

    assert (found["scope"], found["mean_power_w"]) == ("gpu", pytest.approx(3.0))
    assert found["joules_per_image"] == pytest.approx(3.0)


def test_a_sensor_that_lags_a_second_is_not_believed_before() -> None:
    samples = powers([10.0] * 20 + [100.0] * 60, name="gpu_power_w")  # the load began at 1 s, the sensor saw it at 2 s
    (found,) = energy_of(samples, [(SECOND, 6 * SECOND)], images=[1])

    assert found["mean_power_w"] == pytest.approx(100, rel=0.02)


def test_blocks_too_short_for_the_samples_give_no_energy() -> None:
    samples = powers([10.0] * 100)
    short = [(index * SECOND, index * SECOND + SECOND * (LEAST_SAMPLES - 1) // 10) for index in range(1, 8)]

    assert energy_of(samples, short, images=[1] * len(short)) == []
    assert energy_of([], short, images=[1] * len(short)) == []
    assert not measures_power([{"time_ns": 1, "cpu_mhz": 2}])
    assert measures_power(samples)


def test_a_block_that_was_not_sampled_does_not_count() -> None:
    assert energy_of(powers([10.0] * 20), [(5 * SECOND, 9 * SECOND)], images=[1]) == []
