"""The rungs of the ladder in the plan: which graphs are made for which target, and what each of them must hold."""

from collections.abc import Callable
from pathlib import Path

import pytest
from planning import LADDER, TRAINED, own_target

from pipeline.plan import AwayPlan, Plan, TargetPlan

Planned = Callable[..., Plan]


def test_every_precision_that_a_runtime_runs_has_a_graph_of_its_own(planned: Planned, tmp_path: Path) -> None:
    runtimes = [
        {"name": "onnxruntime", "precisions": ["fp32", "int8", "int8_dynamic"]},
        {"name": "openvino", "precisions": ["fp32", "int8"]},
    ]
    target = planned(f"targets=[{own_target(tmp_path, 'mine', runtimes=runtimes)}]", text=LADDER).targets[0]

    assert isinstance(target, TargetPlan)
    int8 = ("int8 linears", "int8 all", "int8 mixed")
    assert [one.name for one in target.candidates] == [
        *(f"onnxruntime {one}" for one in ("fp32", *int8, "int8_dynamic")),
        *(f"openvino {one}" for one in ("fp32", *int8)),
    ]
    graphs = {one.name: one.graph for one in target.candidates}
    assert graphs["onnxruntime fp32"].stage == "export"
    for one in int8:
        assert graphs[f"onnxruntime {one}"].key == graphs[f"openvino {one}"].key
        assert graphs[f"onnxruntime {one}"].options.alphas == (0.5,)
    assert len({graphs[f"openvino {one}"].key for one in int8}) == len(int8)
    assert graphs["openvino int8 linears"].title == "quantize int8 linears"
    engine = next(one.engine for one in target.candidates if one.variant == "mixed")
    assert engine.title == "compile engine: onnxruntime int8 mixed, batch 1"
    assert graphs["onnxruntime int8_dynamic"].options.precision == "int8_dynamic"
    assert graphs["onnxruntime int8_dynamic"].previous.key == graphs["onnxruntime fp32"].key
    assert {step.options.precision for step in target.steps() if step.stage == "quantize"} == {"int8", "int8_dynamic"}
    assert not [step for step in target.steps() if "unpruned" in step.title], "only the chosen one's is built"


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_gets_a_bf16_graph_of_its_own(planned: Planned) -> None:
    target = planned("targets=[rtx-4090]", text=LADDER).targets[0]

    assert isinstance(target, AwayPlan)
    precisions = {"fp32", "bf16", "fp16", "int8", "fp8"}
    rungs = {"fp32", "bf16", "fp16", "int8 linears", "int8 attention", "int8 mixed", "fp8 linears", "fp8 attention"}
    assert {one.name for one in target.candidates if one.runtime.startswith("tensorrt")} == {
        f"{runtime} {rung}" for runtime in ("tensorrt_rtx", "tensorrt") for rung in rungs
    }
    assert "bf16" not in {one.precision for one in target.candidates if one.runtime.startswith("onnxruntime")}
    held = {one.precision: getattr(one.graph.options, "precision", "fp32") for one in target.candidates}
    assert held == {precision: precision for precision in precisions}
    assert not [reason for _, reason in target.passed_over if "bf16" in reason]


@pytest.mark.usefixtures("no_gpu")
def test_what_is_not_quantized_of_a_graph_for_tensorrt_is_fp16_unless_the_recipe_says_otherwise(
    planned: Planned,
) -> None:
    cpu, gpu = planned("targets=[cpu, rtx-4090]", text=LADDER).targets
    told = planned("targets=[rtx-4090]", "steps.quantize.rest=float32", text=LADDER).targets[0]
    alone = planned("targets=[jetson-orin-nano]").targets[0]

    def rests(target: object, *precisions: str) -> set[str | None]:
        assert isinstance(target, TargetPlan | AwayPlan)
        return {one.graph.options.rest for one in target.candidates if one.precision in precisions}  # type: ignore[attr-defined]

    assert rests(gpu, "int8", "fp8") == {"float16"}
    assert rests(cpu, "int8") == {None}
    assert rests(told, "int8", "fp8") == {"float32"}
    assert rests(alone, "int8") == {"float16"}
    assert all(one.graph.options.symmetric for one in gpu.candidates if one.precision == "int8")  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_gpu")
def test_a_model_trained_for_int8_has_the_same_rest(planned: Planned) -> None:
    target = planned("targets=[rtx-4090]", text=TRAINED).targets[0]

    assert {one.graph.options.rest for one in target.candidates} == {"float16"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("budget", "agreement"), [("{}", 0.99), ("{accuracy_drop_points: 2.5}", 0.975)])
def test_layers_go_back_to_float_until_as_many_images_agree_as_the_budget_asks_for(
    planned: Planned, budget: str, agreement: float
) -> None:
    target = planned(f"budget={budget}", text=LADDER).targets[0]
    by_hand = planned(f"budget={budget}", "steps.quantize={budget_agreement: budget}").targets[0]
    off = planned("steps.quantize.budget_agreement=off", text=LADDER).targets[0]
    number = planned("steps.quantize.budget_agreement=0.9", text=LADDER).targets[0]

    wanted = {one.variant: one.graph.options.budget_agreement for one in target.candidates if one.precision == "int8"}  # type: ignore[attr-defined]
    assert wanted == {"linears": None, "all": None, "mixed": agreement}
    assert {one.graph.options.budget_agreement for one in by_hand.candidates} == {agreement}  # type: ignore[attr-defined]
    for plan, value in ((off, "off"), (number, 0.9)):
        int8 = [one for one in plan.candidates if one.precision == "int8"]
        assert {one.variant for one in int8} == {"linears", "all"}
        assert {one.graph.options.budget_agreement for one in int8} == {value}  # type: ignore[attr-defined]


def test_a_scope_that_the_recipe_names_is_the_only_one(planned: Planned) -> None:
    target = planned("steps.quantize.scope=linears", text=LADDER).targets[0]

    assert {one.variant for one in target.candidates if one.precision == "int8"} == {"linears", "mixed"}


def test_the_ladder_sweeps_every_strength_that_is_affordable_unless_the_recipe_names_some(planned: Planned) -> None:
    text = LADDER.replace(", alphas: [0.5]", "")
    target = planned(text=text).targets[0]
    alone = planned("steps.quantize.alphas=full").targets[0]

    assert {one.graph.options.alphas for one in target.candidates if one.precision == "int8"} == {"affordable"}  # type: ignore[attr-defined]
    assert {one.graph.options.alphas for one in alone.candidates} == {"full"}  # type: ignore[attr-defined]
