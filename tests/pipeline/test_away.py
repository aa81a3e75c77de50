"""The rule for targets at which nothing can be measured."""

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.away import by_rule
from targets.profile import Budget

PEAKS = {"fp16": 330.0, "int8": 660.0, "fp8": 660.0}


def plan(*candidates: tuple[str, str, bool], budget: Budget | None = None) -> Any:
    found = [
        SimpleNamespace(name=f"{runtime} {precision}", precision=precision, engine="built" if built else None)
        for runtime, precision, built in candidates
    ]
    return SimpleNamespace(candidates=tuple(found), budget=budget or Budget())


RTX = (("rtx", "fp32", True), ("rtx", "fp16", True), ("rtx", "int8", True), ("trt", "int8", False))
GOOD = {"rtx fp32": 1.0, "rtx fp16": 0.996, "rtx int8": 0.995, "trt int8": 0.995}


def test_the_highest_peak_among_those_that_agree() -> None:
    assert by_rule(plan(*RTX), GOOD, PEAKS).name == "rtx int8"
    assert by_rule(plan(*RTX), {**GOOD, "rtx int8": 0.9}, PEAKS).name == "rtx fp16"


def test_a_budget_of_accuracy_allows_as_much_disagreement() -> None:
    agreements = {**GOOD, "rtx int8": 0.975}

    assert by_rule(plan(*RTX), agreements, PEAKS).name == "rtx fp16"
    assert by_rule(plan(*RTX, budget=Budget(accuracy_drop_points=3.0)), agreements, PEAKS).name == "rtx int8"


def test_what_could_be_built_comes_before_what_could_not() -> None:
    candidates = (("trt", "int8", False), ("rtx", "fp32", True))

    assert by_rule(plan(*candidates), GOOD, PEAKS).name == "rtx fp32"


@pytest.mark.parametrize("peaks", [{}, PEAKS])
def test_where_nothing_is_built_and_all_are_alike_the_profile_s_order_decides(peaks: dict[str, float]) -> None:
    candidates = (("ort", "int8", False), ("ov", "int8", False))

    assert by_rule(plan(*candidates), {"ort int8": 0.99, "ov int8": 0.99}, peaks).name == "ort int8"


def test_without_any_that_agrees_the_best_peak_still_stands() -> None:
    assert by_rule(plan(("rtx", "int8", True)), {"rtx int8": float("nan")}, PEAKS).name == "rtx int8"
