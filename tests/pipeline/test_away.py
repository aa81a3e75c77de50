"""The rule for targets at which nothing can be measured."""

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.away import by_rule
from targets.profile import Budget, list_profiles, load_profile

GPU = load_profile("rtx-4090")
"""its peaks: fp32 82.6, bf16 165, fp16 330, int8 and fp8 661"""


def plan(*candidates: tuple[str, str, bool], budget: Budget | None = None, profile: Any = GPU) -> Any:
    found = [
        SimpleNamespace(name=f"{runtime} {precision}", precision=precision, engine="built" if built else None)
        for runtime, precision, built in candidates
    ]
    return SimpleNamespace(candidates=tuple(found), budget=budget or Budget(), profile=profile)


RTX = (("rtx", "fp32", True), ("rtx", "fp16", True), ("rtx", "int8", True), ("trt", "int8", False))
GOOD = {"rtx fp32": 1.0, "rtx fp16": 0.996, "rtx int8": 0.995, "trt int8": 0.995}


def test_the_highest_peak_among_those_that_agree() -> None:
    assert by_rule(plan(*RTX), GOOD).name == "rtx int8"
    assert by_rule(plan(*RTX), {**GOOD, "rtx int8": 0.9}).name == "rtx fp16"


def test_a_budget_of_accuracy_allows_as_much_disagreement() -> None:
    agreements = {**GOOD, "rtx int8": 0.975}

    assert by_rule(plan(*RTX), agreements).name == "rtx fp16"
    assert by_rule(plan(*RTX, budget=Budget(accuracy_drop_points=3.0)), agreements).name == "rtx int8"


def test_what_could_be_built_comes_before_what_could_not() -> None:
    candidates = (("trt", "int8", False), ("rtx", "fp32", True))

    assert by_rule(plan(*candidates), GOOD).name == "rtx fp32"


@pytest.mark.parametrize("profile", ["cpu", "rtx-4090"])
def test_where_nothing_is_built_and_all_are_alike_the_profile_s_order_decides(profile: str) -> None:
    candidates = (("ort", "int8", False), ("ov", "int8", False))

    assert (
        by_rule(plan(*candidates, profile=load_profile(profile)), {"ort int8": 0.99, "ov int8": 0.99}).name
        == "ort int8"
    )


def test_without_any_that_agrees_the_best_peak_still_stands() -> None:
    assert by_rule(plan(("rtx", "int8", True)), {"rtx int8": float("nan")}).name == "rtx int8"


def test_what_a_profile_prefers_goes_before_its_peaks() -> None:
    cautious = GPU.replace(prefer=("fp16", "fp32"))

    assert by_rule(plan(*RTX, profile=cautious), GOOD).name == "rtx fp16"
    assert by_rule(plan(RTX[2], RTX[0], profile=cautious), GOOD).name == "rtx fp32", "what is not preferred comes last"


def test_a_processor_without_peaks_is_prepared_in_the_precision_that_its_profile_prefers() -> None:
    """Every shipped profile has an answer other than that what stands first in a list is best."""
    for name in list_profiles():
        profile = load_profile(name)
        precisions = {one for choice in profile.runtimes for one in choice.precisions}
        candidates = [("ort", one, False) for one in sorted(precisions, key=lambda one: one != "fp32")]
        agreements = {f"ort {one}": 1.0 for one in precisions}

        assert by_rule(plan(*candidates, profile=profile), agreements).precision != "fp32", name


def test_answers_that_are_not_finite_are_not_chosen() -> None:
    assert by_rule(plan(*RTX), {**GOOD, "rtx int8": float("nan")}).name == "rtx fp16"
