"""Who wins among measured candidates, and the words for each loser, on measurements made up for it."""

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.contest import beyond, decide, kind_of, where_time_goes
from pipeline.report.record import CandidateRow
from targets.errors import StageError
from targets.measure.measurement import Energy, Level, Measurement, Run
from targets.profile import Budget

MB = 10**6


def measurement(
    ms: float,
    *,
    level: Level = "quick",
    memory_bytes: int = 100 * MB,
    spread: float = 0.0,
    watts: float | None = None,
) -> Measurement:
    """Two processes of four blocks, which lie by turns above and below the median: the spread makes the interval."""
    count = 200 if level == "full" else 8
    samples = [ms * (1 + spread * (-1) ** block) for block in range(4) for _ in range(count)]
    run = Run(
        samples=tuple(samples),
        blocks=(count,) * 4,
        load_seconds=0,
        first_ms=1,
        warmup_queries=1,
        warmup_seconds=1,
        stable=True,
        peak_memory_bytes=memory_bytes,
    )
    used = (
        ()
        if watts is None
        else (
            Energy(
                scope="board", covers="the board", mean_power_w=watts, joules_per_image=watts * ms / 1000, seconds=10
            ),
        )
    )
    return Measurement(level=level, engine_sha256="0", batch=1, runs=(run, run), energy=used)


def layer(operator: str, seconds: float, precision: str = "fp32") -> dict[str, Any]:
    return {"operator": operator, "seconds": seconds, "precision": precision}


INT8 = [
    layer("QLinearMatMul", 0.24, "int8"),
    layer("Softmax", 0.4),
    layer("LayerNormalization", 0.31),
    layer("Add", 0.04),
    layer("Gather", 0.01),
]


def contest(
    measured: Mapping[str, Measurement],
    *,
    fit: tuple[str, ...] | None = None,
    agreements: Mapping[str, float] | None = None,
    sizes: Mapping[str, int] | None = None,
    budget: Budget | None = None,
    layers: list[dict[str, Any]] = INT8,
) -> tuple[str, dict[str, CandidateRow]]:
    """Candidates are called `runtime precision`, or `runtime precision variant`."""
    candidates: Any = {
        name: SimpleNamespace(runtime=runtime, precision=precision, variant=variant)
        for name in measured
        for runtime, precision, variant in [(*name.split(), "")[:3]]
    }
    winner, rows = decide(
        candidates,
        agreements=agreements or dict.fromkeys(measured, 0.99),
        fit=fit if fit is not None else tuple(measured),
        measured=measured,
        sizes=sizes or dict.fromkeys(measured, 10 * MB),
        budget=budget or Budget(),
        layers=lambda name: layers,
    )
    return winner, {f"{row.runtime} {row.precision} {row.variant}".rstrip(): row for row in rows}


def test_the_fastest_wins_and_a_slower_one_is_told_by_how_much_and_where_its_time_goes() -> None:
    winner, rows = contest({"ov fp32": measurement(10), "ov int8": measurement(10.3)})

    assert winner == "ov fp32"
    assert rows["ov fp32"].reason == "fastest of those that agree with the source"
    assert rows["ov int8"].reason == (
        "3 % slower here than ov fp32 [3, 3]; 71 % of its time is in softmax and layer norm, unquantized"
    )
    assert [row.chosen for row in rows.values()] == [True, False]


def test_rungs_of_one_precision_are_told_apart() -> None:
    winner, rows = contest({"ov int8 linears": measurement(10), "ov int8 all": measurement(8)})

    assert winner == "ov int8 all"
    assert set(rows) == {"ov int8 linears", "ov int8 all"}
    assert "slower here than ov int8 all" in rows["ov int8 linears"].reason


def test_a_later_candidate_wins_only_beyond_noise() -> None:
    winner, rows = contest({"ov fp32": measurement(10, spread=0.2), "ov int8": measurement(9.99, spread=-0.2)})

    assert winner == "ov fp32"
    assert rows["ov int8"].reason.startswith("no faster than ov fp32 beyond noise: takes 1.08 [")
    assert contest({"ov fp32": measurement(10), "ov int8": measurement(5)})[0] == "ov int8"


def test_one_that_is_much_slower_is_told_as_a_multiple() -> None:
    _, rows = contest(
        {"ov int8": measurement(5), "ort fp32": measurement(20)}, layers=[layer("MatMul", 9), layer("X", 1)]
    )

    assert rows["ort fp32"].reason == (
        "takes 4.00 [4.00, 4.00] times as long as ov int8; its time: 90 % matrix products, 10 % X"
    )


def test_one_that_answers_worse_is_told_its_agreement_and_its_time_does_not_matter() -> None:
    winner, rows = contest(
        {"ov fp32": measurement(10), "ov int8": measurement(1)},
        fit=("ov fp32",),
        agreements={"ov fp32": 0.992, "ov int8": 0.61},
    )

    assert winner == "ov fp32"
    assert rows["ov int8"].reason == "agrees with the source on 61.0% of select, the best on 99.2%"


def test_answers_that_are_not_finite_are_told_as_such() -> None:
    _, rows = contest(
        {"ov fp32": measurement(10), "ov fp16": measurement(1)},
        fit=("ov fp32",),
        agreements={"ov fp32": 0.99, "ov fp16": math.nan},
    )

    assert rows["ov fp16"].reason == "its answers are not finite"
    assert rows["ov fp16"].agreement is None


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(engine_bytes=15 * MB), "engine size 20.0 MB, the budget allows 15.0 MB"),
        (Budget(memory_bytes=150 * MB), "memory 200 MB, the budget allows 150 MB"),
        (Budget(power_w=10), "power 15.0 W, the budget allows 10.0 W"),
    ],
)
def test_a_limit_goes_before_speed(budget: Budget, said: str) -> None:
    fast, slow = measurement(5, memory_bytes=200 * MB, watts=15), measurement(10, watts=5)
    sizes = {"ov fp32": 20 * MB, "ov int8": 10 * MB}

    winner, rows = contest({"ov fp32": fast, "ov int8": slow}, sizes=sizes, budget=budget)

    assert winner == "ov int8"
    assert rows["ov int8"].reason == "fastest of those that agree with the source and keep the budget's limits"
    assert said in rows["ov fp32"].reason


def test_a_median_beyond_the_limit_of_p99_is_beyond_it_though_no_p99_was_measured() -> None:
    said = beyond(Budget(latency_p99_ms=8, latency_p50_ms=9), measurement(10), 1)

    assert said.split("; ")[0].startswith("latency p50 at least 10.0")
    assert said.split("; ")[1].startswith("latency p99 at least 10.0")
    assert said.endswith("the budget allows 8.00 ms")
    assert "latency p99 10." in beyond(Budget(latency_p99_ms=8), measurement(10, level="full"), 1)
    assert beyond(Budget(latency_p99_ms=10.1, latency_p50_ms=10.1), measurement(10), 1) == ""


def test_a_median_that_straddles_a_limit_is_not_beyond_it() -> None:
    assert beyond(Budget(latency_p50_ms=9.9), measurement(10, spread=0.05), 1) == ""


def test_what_is_not_known_is_beyond_nothing() -> None:
    assert beyond(Budget(power_w=0.1, energy_mj=0.1), measurement(10), 1) == ""


def test_times_of_a_machine_that_slowed_itself_down_drop_nobody() -> None:
    cool = measurement(10)
    hot = cool.replace(runs=tuple(run.replace(throttled=("heat",)) for run in cool.runs))

    assert beyond(Budget(latency_p50_ms=5), hot, 1) == ""
    assert beyond(Budget(engine_bytes=5), hot, 6) != ""


def test_where_all_are_beyond_a_limit_the_fastest_wins_and_says_so() -> None:
    winner, rows = contest({"ov fp32": measurement(10), "ov int8": measurement(5)}, budget=Budget(engine_bytes=MB))

    assert winner == "ov int8"
    assert rows["ov int8"].reason == (
        "fastest of those that agree with the source, all of which are beyond the budget: engine size 10.0 MB, "
        "the budget allows 1.00 MB"
    )
    assert rows["ov fp32"].reason.startswith("takes 2.00 ")


def test_without_any_fit_candidate_nothing_is_chosen() -> None:
    with pytest.raises(StageError, match="no candidate gives finite answers: ov fp32 nan%"):
        contest({"ov fp32": measurement(1)}, fit=(), agreements={"ov fp32": math.nan})


@pytest.mark.parametrize(
    ("precision", "rows", "said"),
    [
        ("fp16", [layer("Gemm", 6, "fp16"), layer("Softmax", 4)], "40 % of its time is in softmax, not in fp16"),
        ("int8_dynamic", INT8, "71 % of its time is in softmax and layer norm, unquantized"),
        ("int8", [layer("engine", 1, "unknown")], "its time: 100 % engine"),
        ("int8", [layer("MatMul", 1, "int8")], "its time: 100 % matrix products"),
        ("int8", [layer("MatMul", 1, "int8"), layer("Add", 0.01)], ""),
        ("fp32", [], ""),
    ],
)
def test_what_an_engine_s_time_goes_into(precision: str, rows: list[dict[str, Any]], said: str) -> None:
    assert where_time_goes(precision, rows) == said


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        ("SkipLayerNormalization", "layer norm"),
        ("LayerNormalization", "layer norm"),
        ("MVN", "layer norm"),
        ("DequantizeLinear", "conversions"),
        ("QLinearConv", "convolutions"),
        ("FullyConnected", "matrix products"),
        ("FastGelu", "GELU"),
        ("Gather", "Gather"),
    ],
)
def test_kinds_of_operators_have_words(operator: str, words: str) -> None:
    assert kind_of(operator) == words
