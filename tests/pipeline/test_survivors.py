"""A candidate that cannot be made loses; what they share is nobody's failure."""

from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.events import Event
from pipeline.plan import AwayPlan, TargetPlan
from pipeline.survivors import bring_candidates, leave_spare
from stages.quantize.stage import QuantizeOptions
from targets.errors import InputError, StageError, WorkerError


@dataclass
class PlayedRunner:
    """Brings steps, which are names; some fail."""

    failing: dict[str, Exception]
    target: str = "cpu"
    brought: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    graphs: dict[str, tuple[str, float]] = field(default_factory=dict)
    """content of a step's graph, and its agreement with fp32"""

    def bring(self, step: Any) -> Any:
        self.tried.append(step.key)
        if step.key in self.failing:
            raise self.failing[step.key]
        if step.key not in self.brought:
            self.brought.append(step.key)
        content, agreement = self.graphs.get(step.key, (step.key, 1.0))
        files = {"model.onnx": SimpleNamespace(sha256=content), "vit.json": SimpleNamespace(sha256="the same")}
        return SimpleNamespace(manifest=SimpleNamespace(files=files, facts={"agreement": agreement}))

    def watch(self, event: Event) -> None:
        self.told.append(f"{event.kind}: {event.message}")


def chain(*keys: str) -> Any:
    """The last of some steps, each built on the one before."""
    line: list[Any] = []
    for index, key in enumerate(keys):
        upto = partial(lambda upto: tuple(line[:upto]), index + 1)
        line.append(SimpleNamespace(key=key, line=upto, previous=line[-1] if line else None, options=None))
    return line[-1]


def target(*candidates: tuple[str, Any]) -> TargetPlan:
    made = tuple(
        SimpleNamespace(name=name, runtime=runtime, precision=precision, variant=variant, engine=engine)
        for name, engine in candidates
        for runtime, precision, variant in [(*name.split(), "")[:3]]
    )
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
            name=name,
            runtime=name,
            precision="int8",
            variant="",
            graph=SimpleNamespace(key="graph"),
            engine=chain("source", f"{name} engine"),
            unpruned=chain("source", f"{name} unpruned"),
        )

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


def ladder(*, agreement: float | None = 0.99) -> TargetPlan:
    """Three rungs of int8 on one runtime, each with a graph of its own; mixed asks for an agreement."""
    made = []
    for variant in ("linears", "all", "mixed"):
        engine = chain("source", "export", f"quantize {variant}", f"compile {variant}")
        engine.previous.options = QuantizeOptions(budget_agreement=agreement if variant == "mixed" else None)
        made.append((f"openvino int8 {variant}", engine))
    return target(*made)


def test_layers_go_back_to_float_only_where_no_other_rung_agrees_as_the_budget_asks() -> None:
    good = PlayedRunner({}, graphs={"quantize linears": ("a", 0.97), "quantize all": ("b", 0.995)})
    bad = PlayedRunner({}, graphs={"quantize linears": ("a", 0.97), "quantize all": ("b", 0.98)})

    left = bring(good, ladder())

    assert [one.name for one in left.candidates] == ["openvino int8 linears", "openvino int8 all"]
    assert [one.name for one in left.other_batches[8]] == ["openvino int8 linears", "openvino int8 all"]
    why = "not needed: openvino int8 all agrees with its fp32 graph on 99.5%, the budget asks for 99.0%"
    assert left.passed_over[-1] == ("openvino int8 mixed", why)
    assert "quantize mixed" not in good.brought
    assert good.told == []
    assert [one.name for one in bring(bad, ladder()).candidates][-1] == "openvino int8 mixed"
    assert "compile mixed" in bad.brought


def test_a_rung_that_makes_the_graph_of_another_one_gets_no_engine() -> None:
    runner = PlayedRunner({}, graphs=dict.fromkeys(("quantize linears", "quantize all"), ("the same", 0.9)))

    left = bring(runner, ladder())

    assert [one.name for one in left.candidates] == ["openvino int8 linears", "openvino int8 mixed"]
    assert left.passed_over[-1] == ("openvino int8 all", "makes the same graph as openvino int8 linears")
    assert "compile all" not in runner.brought


def test_the_graph_of_another_runtime_is_no_reason_to_leave_one_out() -> None:
    both = []
    for runtime in ("onnxruntime", "openvino"):
        engine = chain("source", "export", "quantize linears", f"compile {runtime}")
        engine.previous.options = QuantizeOptions()
        both.append((f"{runtime} int8 linears", engine))

    assert len(bring(PlayedRunner({}), target(*both)).candidates) == 2


def test_a_rung_that_fails_to_be_made_leaves_the_others() -> None:
    runner = PlayedRunner({"quantize linears": StageError("no memory")}, graphs={"quantize all": ("b", 0.5)})

    left = bring(runner, ladder())

    assert [one.variant for one in left.candidates] == ["all", "mixed"]
    assert left.passed_over[-1] == ("openvino int8 linears", "failed: no memory")


def test_what_stood_for_a_rung_and_failed_stands_for_it_no_more() -> None:
    held = {"quantize linears": ("a", 0.97), "quantize all": ("b", 0.999)}
    runner = PlayedRunner({"compile all": StageError("no kernel")}, graphs=held)

    left = bring(runner, ladder())

    assert [one.variant for one in left.candidates] == ["linears", "mixed"]


def test_where_nothing_is_left_beside_spare_rungs_the_failure_is_told() -> None:
    runner = PlayedRunner(
        {"compile linears": StageError("no kernel"), "quantize mixed": StageError("no memory")},
        graphs=dict.fromkeys(("quantize linears", "quantize all"), ("the same", 0.9)),
    )
    ordered = ladder()
    only = replace(ordered, candidates=ordered.candidates[:1] + ordered.candidates[2:])

    with pytest.raises(StageError, match="no kernel"):
        bring(runner, only)


def away(*variants: str) -> AwayPlan:
    made = [one for one in ladder().candidates if one.variant in variants]
    rungs = [SimpleNamespace(**{**vars(one), "graph": one.engine.previous}) for one in made]
    facts: Any = {"profile": None, "budget": None, "facts": {}, "source_graph": None}
    return AwayPlan(candidates=tuple(rungs), passed_over=(), away="no GPU", **facts)  # type: ignore[arg-type]


def test_a_target_that_is_not_at_hand_loses_its_spare_rungs_before_their_engines() -> None:
    runner: Any = PlayedRunner({}, graphs={"quantize linears": ("a", 0.999)})

    left = leave_spare(runner, away("linears", "all", "mixed"))

    assert [one.variant for one in left.candidates] == ["linears", "all"]
    assert [name for name, _ in left.passed_over] == ["openvino int8 mixed"]
    assert "quantize mixed" not in runner.brought


@pytest.mark.parametrize("step", ["quantize all", "compile all"])
def test_what_cannot_be_made_for_a_target_that_is_not_at_hand_is_out(step: str) -> None:
    runner: Any = PlayedRunner({step: WorkerError("float8 needs opset 19")})

    left = leave_spare(runner, away("linears", "all"))

    assert [one.variant for one in left.candidates] == ["linears"]
    assert left.passed_over == (("openvino int8 all", "failed: float8 needs opset 19"),)
    assert runner.told == ["warning: candidate openvino int8 all is out: float8 needs opset 19"]


def test_where_all_fail_for_a_target_that_is_not_at_hand_the_first_says_why() -> None:
    runner: Any = PlayedRunner({"quantize linears": StageError("the first"), "quantize all": StageError("another")})

    with pytest.raises(StageError, match="the first"):
        leave_spare(runner, away("linears", "all"))
