"""The verdict follows from intervals, and its sentence says why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.figures import budget_value
from pipeline.report.record import Accuracy, Latency, LatencyFigures, Parity
from pipeline.statistics import images_to_decide, paired_interval
from pipeline.verdict import WORST_FIRST, exit_code, judge
from targets.measure.measurement import Energy
from targets.profile import Budget

RANK = {status: rank for rank, status in enumerate(reversed(WORST_FIRST))}


def accuracy(drop=0.6, interval=(-0.2, 1.4), images=1100, needed=None, metric="top1"):
    return Accuracy(
        metric=metric,
        baseline=0.79,
        engine=0.79 - drop / 100,
        drop_points=drop,
        drop_ci95=interval,
        agreement=0.95,
        images=images,
        images_to_decide=needed,
    )


def figures(p50, *, p99=None, ci95=None, stable=True, throttled=(), energy=()):
    return LatencyFigures(
        p50=p50,
        p90=p50 * 1.1,
        p99=p99,
        ci95=ci95 or (p50 * 0.98, p50 * 1.02),
        queries=128,
        processes=2,
        stable=stable,
        throttled=throttled,
        energy=energy,
    )


def latency(p50=4.31, *, p99=None, ratio=0.6, speedup=1.9, ci95=None, speedup_ci95=None, stable=True):
    return Latency(
        batch=1,
        level="full" if p99 else "quick",
        baseline=figures(8.4),
        unpruned=figures(7.0),
        engine=figures(p50, p99=p99, ci95=ci95, stable=stable),
        speedup=speedup,
        speedup_ci95=speedup_ci95 or (speedup * 0.97, speedup * 1.03),
        ratio=ratio,
        ratio_ci95=(ratio * 0.95, ratio * 1.05),
    )


def parity(*, passed=True):
    return Parity(
        images=16,
        max_abs_error=3.21,
        mean_abs_error=0.1,
        cosine=0.412,
        tolerance="mean cosine at least 0.9",
        passed=passed,
    )


def judged(budget, **measured):
    defaults = dict.fromkeys(("accuracy", "latency", "memory_bytes", "engine_bytes", "parity"))
    return judge(budget, **{**defaults, "baseline_runtime": "onnxruntime", **measured})


# Status.


@given(st.floats(0, 10), st.floats(-5, 10), st.floats(0, 5), st.floats(0, 5))
def test_the_interval_decides_and_not_the_value(limit, drop, below, above):
    interval = (drop - below, drop + above)
    verdict = judged(Budget(accuracy_drop_points=limit), accuracy=accuracy(drop, interval))

    if interval[1] <= limit:
        assert verdict.status == "within"
    elif interval[0] > limit:
        assert verdict.status == "over"
    else:
        assert verdict.status == "undecided"


@given(st.integers(50, 3000), st.floats(0, 0.1), st.floats(0, 0.1), st.floats(0, 5))
def test_an_undecided_drop_says_how_many_images_would_decide(images, lost_share, gained_share, limit):
    lost, gained = int(images * lost_share), int(images * gained_share)
    low, high = (100 * end for end in paired_interval(lost, gained, images))
    needed = images_to_decide(limit, lost=lost, gained=gained, images=images)
    measured = accuracy(100 * (lost - gained) / images, (low, high), images, needed)
    verdict = judged(Budget(accuracy_drop_points=limit), accuracy=measured)

    if verdict.status == "undecided":
        assert needed is None or f"about {needed:,} images would decide" in verdict.sentence
    else:
        assert needed is None


LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "accuracy_drop_points": st.sampled_from([0.1, 1.0, 2.0]),
        "latency_p50_ms": st.sampled_from([4.0, 4.31, 5.0]),
        "latency_p99_ms": st.sampled_from([4.0, 6.0]),
        "latency_ratio": st.sampled_from([0.5, 0.6, 0.7]),
        "memory_bytes": st.sampled_from([100, 300]),
        "engine_bytes": st.sampled_from([1, 6]),
    },
)


@given(LIMITS, st.booleans(), st.booleans(), st.booleans(), st.sampled_from([None, 5.2]))
def test_the_worst_check_is_the_verdict_and_only_what_the_budget_names_is_judged(limits, labels, timed, same, p99):
    verdict = judged(
        Budget(**limits),
        accuracy=accuracy() if labels else None,
        latency=latency(p99=p99) if timed else None,
        memory_bytes=200.0 if timed else None,
        engine_bytes=5,
        parity=parity(passed=same),
    )
    ranks = [RANK[check.status] for check in verdict.checks]

    assert [check.name for check in verdict.checks] == [name for name in Budget.model_fields if name in limits]
    if not same:
        assert verdict.status == "failed"
    else:
        assert RANK[verdict.status] == max(ranks, default=RANK["not_measured"])
    assert "\n" not in verdict.sentence
    assert "None" not in verdict.sentence


def test_each_key_is_judged_by_its_own_measurement():
    budget = Budget(
        accuracy_drop_points=2,
        latency_p50_ms=4.3,
        latency_p99_ms=5,
        latency_ratio=0.5,
        memory_bytes=200,
        engine_bytes=6,
    )
    verdict = judged(budget, accuracy=accuracy(), latency=latency(p99=4.9), memory_bytes=200, engine_bytes=7)

    assert {check.name: check.status for check in verdict.checks} == {
        "accuracy_drop_points": "within",
        "latency_p50_ms": "undecided",
        "latency_p99_ms": "within",
        "latency_ratio": "over",
        "memory_bytes": "within",
        "engine_bytes": "over",
    }
    assert verdict.checks[1].interval == pytest.approx((4.31 * 0.98, 4.31 * 1.02))


def test_one_number_without_an_interval_can_only_be_over():
    budget = Budget(accuracy_drop_points=2)
    good = judged(budget, accuracy=accuracy(0.1, None, metric="mIoU"))
    bad = judged(budget, accuracy=accuracy(2.1, None, metric="mIoU"))

    assert (good.status, bad.status) == ("undecided", "over")
    assert "mIoU drop 0.1 points of at most 2.0, on 1,100 images (the metric gives one number" in good.sentence


def test_a_broken_engine_failed_whatever_else_holds():
    verdict = judged(Budget(accuracy_drop_points=50), accuracy=accuracy(), parity=parity(passed=False))

    assert verdict.status == "failed"
    assert verdict.sentence.startswith(
        "failed: the engine's outputs are not the model's: cosine 0.4120, largest error 3.21"
    )


def test_a_warm_up_that_did_not_settle_is_noted():
    verdict = judged(Budget(latency_p50_ms=10, latency_ratio=1), latency=latency(stable=False))

    assert [check.note for check in verdict.checks] == ["the warm-up of engine did not settle"] * 2


# The sentence.


def test_within_says_the_speed_and_the_drop():
    verdict = judged(Budget(accuracy_drop_points=2.0), accuracy=accuracy(), latency=latency())

    assert verdict.sentence == (
        "within budget: 1.9x faster than fp32 ONNX Runtime (8.4 → 4.3 ms); "
        "top-1 drop 0.6 points [\N{MINUS SIGN}0.2, 1.4] of at most 2.0, on 1,100 images"
    )


def test_over_and_undecided_say_first_what_decided():
    over = judged(Budget(accuracy_drop_points=2, engine_bytes=5_000_000), accuracy=accuracy(), engine_bytes=5_912_345)
    open_ = judged(
        Budget(accuracy_drop_points=1.0), accuracy=accuracy(images=300, needed=5230), latency=latency(speedup=0.5)
    )

    assert over.sentence == (
        "over budget: engine size 5.91 MB of at most 5.00 MB; "
        "top-1 drop 0.6 points [\N{MINUS SIGN}0.2, 1.4] of at most 2.0, on 1,100 images"
    )
    assert open_.sentence == (
        "undecided: top-1 drop 0.6 points [\N{MINUS SIGN}0.2, 1.4] of at most 1.0, on 300 images "
        "(about 5,230 images would decide); 2.0x slower than fp32 ONNX Runtime (8.4 → 4.3 ms)"
    )


def test_what_was_not_measured_is_said():
    quick = judged(Budget(latency_p99_ms=5), latency=latency())
    nothing = judged(Budget(accuracy_drop_points=1, latency_p50_ms=3))

    assert quick.sentence.startswith(
        "not measured: latency p99 not measured (level quick: 128 queries back no p99); 1.9x"
    )
    assert nothing.sentence == (
        "not measured: accuracy drop not measured (no images to evaluate on); latency p50 not measured"
    )


def test_without_a_budget_nothing_is_judged_but_the_figures_are_told():
    verdict = judged(Budget(), accuracy=accuracy(), latency=latency())

    assert (verdict.status, verdict.checks) == ("not_measured", ())
    assert verdict.sentence == (
        "no budget was set: 1.9x faster than fp32 ONNX Runtime (8.4 → 4.3 ms); "
        "top-1 drop 0.6 points [\N{MINUS SIGN}0.2, 1.4], on 1,100 images"
    )
    assert judged(Budget()).sentence == "no budget was set"


def test_a_speed_up_within_noise_is_none():
    verdict = judged(Budget(), latency=latency(speedup=1.02, speedup_ci95=(0.97, 1.07)))

    assert "no faster or slower than fp32 ONNX Runtime beyond noise" in verdict.sentence


def test_rounding_never_hides_why():
    # 2.04 would be written "2.0 of at most 2.0" and look as if it were within.
    verdict = judged(Budget(accuracy_drop_points=2.0), accuracy=accuracy(1.1, (0.2, 2.04)))

    assert "1.10 points [0.20, 2.04] of at most 2.00" in verdict.sentence


@pytest.mark.parametrize(
    ("status", "code", "strict"),
    [("within", 0, 0), ("not_measured", 0, 1), ("undecided", 0, 1), ("over", 1, 1), ("failed", 1, 1)],
)
def test_exit_codes(status, code, strict):
    assert (exit_code(status), exit_code(status, strict=True)) == (code, strict)


# A target that is not at hand.


def test_what_a_proxy_answered_judges_no_budget_of_accuracy():
    seen = accuracy(drop=9.0, interval=(8.0, 10.0)).replace(proxy="the same graph in another runtime")
    verdict = judged(Budget(accuracy_drop_points=1.0, latency_p50_ms=5.0), accuracy=seen, never_ran="it never ran")
    by_name = {check.name: check for check in verdict.checks}

    assert verdict.status == "not_measured"
    assert {check.status for check in verdict.checks} == {"not_measured"}
    assert "by proxy: top-1 drop 9.0 points [8.0, 10.0]" in by_name["accuracy_drop_points"].note
    assert by_name["latency_p50_ms"].note == "the engine never ran"
    assert verdict.sentence.startswith("not measured: it never ran; top-1 drop 9.0 points [8.0, 10.0]")
    assert verdict.sentence.endswith("by the same graph in another runtime")


def test_what_can_be_counted_is_judged_although_the_engine_never_ran():
    verdict = judged(Budget(parameters=10), parameters=11, never_ran="it never ran")

    assert verdict.status == "over"
    assert verdict.sentence.startswith("over budget: parameters 11 of at most 10; it never ran")


def test_a_graph_that_is_not_the_model_fails_by_proxy_too():
    verdict = judged(Budget(), parity=parity(passed=False).replace(proxy="another runtime"), never_ran="it never ran")

    assert verdict.status == "failed"
    assert "the graph's outputs are not the model's" in verdict.sentence


def test_what_a_profile_demands_and_did_not_happen_fails_the_build():
    verdict = judged(Budget(parameters=10), parameters=1, broken=("attention is not fused",))

    assert verdict.status == "failed"
    assert verdict.sentence == "failed: attention is not fused"


# A machine that slowed itself down.


@pytest.mark.parametrize(
    "budget",
    [
        {"latency_p50_ms": 5.0},
        {"latency_p50_ms": 1.0},
        {"latency_p99_ms": 9.0},
        {"latency_ratio": 0.9},
        {"latency_ratio": 0.1},
    ],
    ids=str,
)
def test_times_of_a_machine_that_throttled_decide_nothing(budget):
    hot = latency(p99=6.0).replace(engine=figures(4.31, p99=6.0, throttled=("software thermal slowdown",)))
    verdict = judged(Budget(**budget), latency=hot)

    assert verdict.status == "undecided"
    assert "the machine throttled (software thermal slowdown)" in verdict.checks[0].note
    assert "the machine throttled (software thermal slowdown)" in verdict.sentence


def test_a_throttled_baseline_leaves_the_budget_of_the_engine_alone():
    hot = latency().replace(baseline=figures(8.4, throttled=("processor throttled",)))

    assert judged(Budget(latency_p50_ms=5.0, latency_ratio=0.9), latency=hot).status == "within"


def test_what_is_no_time_is_judged_although_the_machine_throttled():
    hot = latency().replace(engine=figures(4.31, throttled=("over-current",)))

    assert judged(Budget(engine_bytes=10), latency=hot, engine_bytes=5).status == "within"


@pytest.mark.parametrize(("key", "limit", "told"), [("power_w", 15.0, "15.0 W"), ("energy_mj", 40.0, "40.0 mJ")])
def test_power_and_energy_that_nothing_measured_say_so(key: str, limit: float, told: str) -> None:
    verdict = judged(Budget(**{key: limit}), accuracy=accuracy(), latency=latency())
    (check,) = verdict.checks

    assert verdict.status == "not_measured"
    assert (exit_code(verdict.status), exit_code(verdict.status, strict=True)) == (0, 1)
    assert check.note == "nothing tells power here"
    assert check.note in verdict.sentence
    assert budget_value(key, check.limit) == told


@pytest.mark.parametrize(
    ("budget", "value", "status"),
    [
        ({"power_w": 11.0}, 10.0, "within"),
        ({"power_w": 9.0}, 10.0, "over"),
        ({"energy_mj": 51.0}, 50.0, "within"),
        ({"energy_mj": 49.0}, 50.0, "over"),
    ],
    ids=str,
)
def test_power_and_energy_are_those_of_the_widest_scope(budget, value, status):
    used = tuple(
        Energy(scope=scope, covers=covers, mean_power_w=watts, joules_per_image=joules, seconds=5.0)
        for scope, covers, watts, joules in (
            ("board", "module rails", 10.0, 0.05),
            ("gpu", "GPU board", 1.0, 0.005),
        )
    )
    verdict = judged(Budget(**budget), latency=latency().replace(engine=figures(4.31, energy=used)))
    (check,) = verdict.checks

    assert (check.value, check.status) == (value, status)
    assert "module rails" in check.note
