"""A candidate that cannot be made loses; what they share is nobody's failure."""

from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.events import Event
from pipeline.plan import TargetPlan
from pipeline.survivors import bring_candidates
from targets.errors import InputError, StageError


@dataclass
class PlayedRunner:
    """Brings steps, which are names; some fail."""

    failing: dict[str, Exception]
    target: str = "cpu"
    brought: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)

    def bring(self, step: Any) -> None:
        self.tried.append(step.key)
        if step.key in self.failing:
            raise self.failing[step.key]
        if step.key not in self.brought:
            self.brought.append(step.key)

    def watch(self, event: Event) -> None:
        self.told.append(f"{event.kind}: {event.message}")


def chain(*keys: str) -> Any:
    """The last of some steps, each built on the one before."""
    line: list[Any] = []
    for index, key in enumerate(keys):
        line.append(SimpleNamespace(key=key, line=partial(lambda upto: tuple(line[:upto]), index + 1)))
    return line[-1]


def target(*candidates: tuple[str, Any]) -> TargetPlan:
    made = tuple(SimpleNamespace(name=name, engine=engine) for name, engine in candidates)
    plan: Any = {"profile": None, "budget": None, "facts": {}, "baselines": {}}
    return TargetPlan(candidates=made, other_batches={8: made}, passed_over=(("tensorrt", "no GPU"),), **plan)  # type: ignore[arg-type]


BOTH = target(
    ("onnxruntime fp32", chain("source", "export", "compile ort")),
    ("openvino int8", chain("source", "export", "quantize", "compile ov")),
)


def bring(runner: Any, plan: TargetPlan = BOTH) -> TargetPlan:
    return bring_candidates(runner, plan, lambda one: (one.engine,))


def test_all_that_can_be_made_stay() -> None:
    runner = PlayedRunner({})

    assert bring(runner) is BOTH
    assert runner.brought == ["source", "export", "compile ort", "quantize", "compile ov"]
    assert runner.told == []


@pytest.mark.parametrize("error", [StageError("int8 collapsed"), InputError("bf16 needs opset 22")])
def test_one_that_fails_loses_with_its_reason_at_every_batch(error: Exception) -> None:
    runner = PlayedRunner({"quantize": error})

    left = bring(runner)

    assert [one.name for one in left.candidates] == ["onnxruntime fp32"]
    assert [one.name for one in left.other_batches[8]] == ["onnxruntime fp32"]
    assert left.passed_over == (("tensorrt", "no GPU"), ("openvino int8", f"failed: {error}"))
    assert runner.told == [f"warning: candidate openvino int8 is out: {error}"]


def test_what_failed_for_one_is_not_tried_again_for_another() -> None:
    graph = ("source", "export", "quantize")
    plan = target(
        ("onnxruntime int8", chain(*graph, "compile ort")),
        ("openvino int8", chain(*graph, "compile ov")),
        ("onnxruntime fp32", chain("source", "export", "compile fp32")),
    )
    runner = PlayedRunner({"quantize": StageError("out of memory after an hour")})

    left = bring(runner, plan)

    assert [one.name for one in left.candidates] == ["onnxruntime fp32"]
    assert runner.tried.count("quantize") == 1
    assert [name for name, _ in left.passed_over] == ["tensorrt", "onnxruntime int8", "openvino int8"]
    assert len(runner.told) == 2


def test_one_whose_unpruned_counterpart_cannot_be_built_is_out_too() -> None:
    def candidate(name: str) -> tuple[str, Any]:
        return name, SimpleNamespace(
            name=name, graph=SimpleNamespace(key="graph"), engine=chain("source", f"{name} engine"),
            unpruned=chain("source", f"{name} unpruned"),
        )  # fmt: skip

    made = dict([candidate("ort"), candidate("ov")])
    plan: Any = {"profile": None, "budget": None, "facts": {}, "baselines": {}, "other_batches": {}, "passed_over": ()}
    target = TargetPlan(candidates=tuple(made.values()), **plan)
    runner: Any = PlayedRunner({"ov unpruned": StageError("no memory")})

    left = bring_candidates(runner, target, target.ends_of)

    assert [one.name for one in left.candidates] == ["ort"]
    assert left.passed_over == (("ov", "failed: no memory"),)


def test_where_all_fail_the_first_says_why() -> None:
    with pytest.raises(StageError, match="the first"):
        bring(PlayedRunner({"compile ort": StageError("the first"), "quantize": StageError("the second")}))


def test_what_all_build_on_fails_at_once() -> None:
    runner = PlayedRunner({"export": StageError("no export")})

    with pytest.raises(StageError, match="no export"):
        bring(runner)

    assert runner.brought == ["source"]
    assert runner.told == []


def test_a_defect_of_ours_is_no_lost_candidate() -> None:
    with pytest.raises(ZeroDivisionError):
        bring(PlayedRunner({"quantize": ZeroDivisionError()}))
