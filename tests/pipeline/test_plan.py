"""The plan: which steps lead to which engine, what they share, and what each key depends on."""

from collections.abc import Callable
from pathlib import Path

import pytest
from planning import LADDER, RECIPE, TRAINED, own_target

from pipeline.plan import AwayPlan, Plan, TargetPlan
from pipeline.planner import PlannedStep
from pipeline.search.record import Decision
from pipeline.search.replan import replan
from targets.errors import InputError

Planned = Callable[..., Plan]


def keys(plan: Plan) -> dict[str, str]:
    winner = plan.targets[0].candidates[0].engine
    return {step.stage: step.key for step in winner.line()}


def test_the_engine_goes_through_every_step_in_order(planned: Planned) -> None:
    line = [step.stage for step in planned().targets[0].candidates[0].engine.line()]

    assert line == ["source", "finetune", "prune_mlp", "distill", "export", "quantize", "compile"]


def test_the_unpruned_counterpart_is_quantized_alike_but_not_pruned(planned: Planned) -> None:
    plan = planned()
    unpruned = plan.targets[0].candidates[0].unpruned.line()

    assert [step.stage for step in unpruned] == ["source", "finetune", "export", "quantize", "compile"]
    assert unpruned[3].options == plan.targets[0].candidates[0].engine.line()[5].options


def test_the_baseline_is_the_fp32_source_on_the_first_runtime(planned: Planned) -> None:
    target = planned().targets[0]
    baseline = target.baselines[1]

    assert [step.stage for step in baseline.line()] == ["source", "finetune", "export", "compile"]
    assert (baseline.options.runtime, baseline.options.precision) == ("onnxruntime", "fp32")  # type: ignore[attr-defined]


def test_a_model_trained_for_int8_is_compared_with_the_source_quantized_alike_but_not_trained(
    planned: Planned,
) -> None:
    plan = planned(text=TRAINED)
    candidate = plan.targets[0].candidates[0]
    engine, unpruned = candidate.engine.line(), candidate.unpruned.line()

    assert candidate.precision == "int8"
    assert [step.stage for step in engine] == [
        "source", "finetune", "prune_mlp", "distill", "quantize_aware", "compile",
    ]  # fmt: skip
    assert [step.stage for step in unpruned] == ["source", "finetune", "export", "quantize", "compile"]
    told = unpruned[3].options.model_dump()
    assert (told["precision"], told["alphas"], told["images"]) == ("int8", (0.5,), 20)
    for name in ("symmetric", "half_range", "select_images"):
        assert told[name] == getattr(engine[4].options, name)
    assert unpruned[2].options.model_dump()["opset"] == 19
    assert [step.stage for step in plan.targets[0].baselines[1].line()] == ["source", "finetune", "export", "compile"]


def test_what_a_target_demands_of_int8_graphs_it_demands_of_trained_ones(planned: Planned) -> None:
    plan = planned("targets=[rtx-4090]", text=TRAINED)
    target = plan.targets[0]
    assert isinstance(target, AwayPlan)

    assert {one.precision for one in target.candidates} == {"int8"}
    assert all(one.graph.options.symmetric for one in target.candidates)  # type: ignore[attr-defined]
    assert [step.stage for step in target.source_graph.line()] == ["source", "finetune", "export"]


def test_without_pruning_engine_and_unpruned_are_one_step(planned: Planned) -> None:
    candidate = planned(text=RECIPE.split("steps:")[0] + "steps: [export]\n").targets[0].candidates[0]

    assert candidate.engine.key == candidate.unpruned.key


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ("model.classes=11", "source"),
        ("steps.finetune.lr=0.01", "finetune"),
        ("steps.prune_mlp.keep=0.25", "prune_mlp"),
        ("steps.distill.lr=0.01", "distill"),
        ("steps.quantize.images=17", "quantize"),
    ],
)
def test_a_changed_option_changes_the_keys_from_its_step_on(planned: Planned, change: str, first: str) -> None:
    before, after = keys(planned()), keys(planned(change))
    order = list(before)

    assert [name for name in order if before[name] != after[name]] == order[order.index(first) :]


def test_images_to_evaluate_on_decide_no_key(planned: Planned) -> None:
    assert keys(planned("data.evaluate.share=[0.5, 1]")) == keys(planned())


def test_images_decide_the_keys_of_the_steps_that_read_them(planned: Planned) -> None:
    before, after = keys(planned()), keys(planned("data.fit.share=[0, 0.1]"))

    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"prune_mlp", "distill", "export", "quantize", "compile"}


def test_two_targets_share_everything_but_their_engines(planned: Planned, tmp_path: Path) -> None:
    other = own_target(tmp_path, "mine", batch=4)
    plan = planned(f"targets=[cpu, {other}]")
    one, two = ([step.key for step in target.candidates[0].engine.line()] for target in plan.targets)

    assert one[:-1] == two[:-1]
    assert one[-1] != two[-1]


def test_further_batch_sizes_have_their_own_engines(planned: Planned) -> None:
    target = planned("measure.batches=[1, 8]").targets[0]

    assert set(target.baselines) == {1, 8}
    assert set(target.other_batches) == {8}
    assert {one.batch for one in target.other_batches[8]} == {8}


def test_only_runtimes_that_the_recipe_names_are_tried(planned: Planned) -> None:
    target = planned("runtimes=[onnxruntime]").targets[0]

    assert {one.runtime for one in target.candidates} == {"onnxruntime"}
    assert ("openvino", "not among the recipe's runtimes") in target.passed_over


def test_a_runtime_that_the_target_does_not_have_is_refused(planned: Planned) -> None:
    with pytest.raises(InputError, match="has no runtime 'coreml'; it has onnxruntime, openvino"):
        planned("runtimes=[coreml]")


def test_for_a_target_of_another_architecture_the_graph_is_prepared(planned: Planned, tmp_path: Path) -> None:
    board = {"kind": "cpu", "description": "another one", "architecture": "aarch64"}
    if planned().targets[0].facts["architecture"] == "aarch64":
        board["architecture"] = "x86_64"
    other = own_target(tmp_path, "other", board=board)
    target = planned(f"targets=[{other}]").targets[0]

    assert isinstance(target, AwayPlan)
    assert target.away.startswith("the target is")
    assert {(one.runtime, one.precision) for one in target.candidates} == {
        ("onnxruntime", "int8"),
        ("openvino", "int8"),
    }
    assert all(one.engine is None for one in target.candidates)
    assert "compile" not in {step.stage for step in target.steps()}


@pytest.mark.usefixtures("no_gpu")
def test_what_can_be_built_ahead_of_time_comes_first_for_a_gpu_that_is_elsewhere(planned: Planned) -> None:
    target = planned("targets=[rtx-4090]").targets[0]

    assert isinstance(target, AwayPlan)
    assert [(one.name, one.engine is not None) for one in target.candidates] == [
        ("tensorrt_rtx int8", True),
        ("tensorrt int8", False),
        ("onnxruntime_tensorrt int8", False),
    ]
    assert target.candidates[-1].left == "build the engine: TensorRT builds on the GPU that runs it"
    assert ("onnxruntime_cuda", "it does not run int8 there; it runs fp32, fp16") in target.passed_over
    engine = target.candidates[0].engine
    assert engine is not None
    assert (engine.device, engine.options.compute_capability) == (None, "8.9")


@pytest.mark.usefixtures("no_gpu")
def test_tensorrt_gets_a_graph_of_its_own_whose_zero_points_are_at_zero(planned: Planned) -> None:
    cpu, gpu, jetson = planned("targets=[cpu, rtx-4090, jetson-orin-nano]").targets

    cpu, gpu, jetson = (target.candidates[0].graph for target in (cpu, gpu, jetson))
    assert cpu.options.symmetric is False
    assert gpu.options.symmetric is True
    assert gpu.key == jetson.key != cpu.key
    assert gpu.previous.key == cpu.previous.key


@pytest.mark.usefixtures("no_gpu")
def test_shapes_are_not_searched_where_nothing_can_be_measured(planned: Planned) -> None:
    with pytest.raises(InputError, match=r"'rtx-4090' is not at hand .* chooses shapes by measurement"):
        planned("targets=[rtx-4090]", text=SEARCHED)


def test_planning_writes_nothing_but_the_index_of_images(planned: Planned, tmp_path: Path) -> None:
    planned()

    assert {path.name for path in (tmp_path / "store").glob("*")} <= {"images.index"}


BF16 = RECIPE.replace("  - quantize\n", "  - quantize: {precision: bf16}\n")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("text", [LADDER, BF16], ids=["auto", "bf16"])
def test_bf16_is_a_hint_for_openvino_and_a_graph_for_tensorrt(
    planned: Planned, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    from targets import facts, profile

    seen = {**facts.probe(), "architecture": "x86_64", "instruction_sets": ["avx2", "avx512_vnni", "avx512_bf16"]}
    for module in (facts, profile):
        monkeypatch.setattr(module, "probe", lambda: seen)
    cpu, gpu = planned("targets=[cpu, rtx-4090]", text=text).targets

    cpu_bf16 = [one for one in cpu.candidates if one.precision == "bf16"]
    gpu_bf16 = [one for one in gpu.candidates if one.precision == "bf16"]
    assert [one.name for one in cpu_bf16] == ["openvino bf16"]
    assert (cpu_bf16[0].graph.stage, cpu_bf16[0].unpruned.previous.stage) == ("export", "export")
    assert cpu_bf16[0].engine.options.precision == "bf16"
    assert [one.name for one in gpu_bf16] == ["tensorrt_rtx bf16", "tensorrt bf16"]
    assert gpu_bf16[0].graph.options.precision == "bf16"
    assert gpu_bf16[0].graph.previous.key == cpu_bf16[0].graph.key
    assert gpu_bf16[0].engine.options.precision == "bf16"
    if text == BF16:
        assert len(cpu.candidates) == 1
        assert len(gpu.candidates) == 2


def test_a_cpu_without_bf16_is_not_asked_for_it(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    from targets import facts, profile

    seen = {**facts.probe(), "architecture": "x86_64", "instruction_sets": ["avx2", "avx512_vnni"]}
    for module in (facts, profile):
        monkeypatch.setattr(module, "probe", lambda: seen)

    with pytest.raises(InputError, match="bf16 needs avx512_bf16 or amx_bf16"):
        planned(text=BF16)


def test_a_runtime_that_does_not_run_the_precision_is_passed_over_with_the_reason(
    planned: Planned, tmp_path: Path
) -> None:
    runtimes = [{"name": "onnxruntime", "precisions": ["fp32"]}, {"name": "openvino", "precisions": ["fp32", "int8"]}]
    target = planned(f"targets=[{own_target(tmp_path, 'mine', runtimes=runtimes)}]").targets[0]

    assert [one.name for one in target.candidates] == ["openvino int8"]
    assert target.passed_over == (("onnxruntime", "it does not run int8 there; it runs fp32"),)

    runtimes[1]["precisions"] = ["fp32"]
    runtimes.append({"name": "openvino_npu", "precisions": ["int8"]})
    with pytest.raises(InputError) as caught:
        planned(f"targets=[{own_target(tmp_path, 'other', runtimes=runtimes)}]")
    for name in ("onnxruntime", "openvino"):
        assert f"{name}: it does not run int8 there; it runs fp32" in str(caught.value), "not only why there is no NPU"


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_without_bf16_says_what_it_runs_instead(planned: Planned) -> None:
    with pytest.raises(InputError, match="does not run bf16 there; it runs fp16"):
        planned("targets=[t4]", text=BF16)


@pytest.mark.parametrize(
    ("instruction_sets", "half"), [([], True), (["avx512_vnni"], False), (["avx_vnni"], False)], ids=str
)
def test_weights_have_seven_bits_where_two_products_of_eight_overflow(
    planned: Planned, monkeypatch: pytest.MonkeyPatch, instruction_sets: list[str], half: bool
) -> None:
    from targets import facts

    seen = {**facts.probe(), "architecture": "x86_64", "instruction_sets": ["avx2", *instruction_sets]}
    monkeypatch.setattr(facts, "probe", lambda: seen)
    target = planned().targets[0]

    assert isinstance(target, TargetPlan)
    assert target.candidates[0].graph.options.half_range is half


SEARCHED = RECIPE.replace("prune_mlp: {keep: 0.5}", "prune: {blocks: auto}") + "budget: {latency_ratio: 0.6}\n"


def test_what_a_search_decides_is_not_yet_planned(planned: Planned) -> None:
    candidate = planned(text=SEARCHED).targets[0].candidates[0]

    told = {step.title: step.searched for step in candidate.engine.line()}
    assert [name for name, searched in told.items() if not searched] == ["source", "finetune"]
    assert not any(step.searched for step in candidate.unpruned.line())


def test_after_a_search_the_plan_is_that_of_the_shapes_found(planned: Planned, tmp_path: Path) -> None:
    shape = {"heads": 2, "d_qk": 8, "d_v": 8, "mlp_width": 64}
    decision = Decision(
        runtime="onnxruntime",
        precision="int8",
        unit="kl_nats",
        limits={"latency": 0.6},
        shapes=[shape] * 12,
        loss=0.1,
        sublayers=(),
        table={"unpruned_p50_ms": 1.0, "rest": 0.1},
        exact=True,
        solve_ms=1,
    )
    plan = planned(text=SEARCHED)
    target = plan.targets[0]
    written = planned(text=SEARCHED.replace("auto", f"{[shape] * 12}".replace("'", "")))

    after, found = replan(plan, target, decision, {target.candidates[-1].name})

    assert [one.name for one in found.candidates] == [target.candidates[-1].name]
    wanted = next(one for one in written.targets[0].candidates if one.name == found.candidates[0].name)
    assert found.candidates[0].engine.key == wanted.engine.key
    assert found.candidates[0].unpruned.key == target.candidates[-1].unpruned.key
    assert not any(step.searched for step in found.steps())
    assert after.compressed == written.compressed


def test_size_width_and_merging_that_a_search_chose_become_steps(planned: Planned) -> None:
    decision = Decision(
        runtime="onnxruntime",
        precision="int8",
        unit="kl_nats",
        limits={"latency": 0.6},
        shapes=[{"heads": 2, "d_qk": 8, "d_v": 8, "mlp_width": 64}] * 12,
        size=(24, 24),
        width=96,
        width_method="energy",
        merge=(1,) + (0,) * 11,
        loss=0.1,
        sublayers=(),
        table={"unpruned_p50_ms": 1.0, "rest": 0.1},
        exact=True,
        solve_ms=1,
    )
    plan = planned(text=SEARCHED)

    after, _ = replan(plan, plan.targets[0], decision, {plan.targets[0].candidates[0].name})

    assert [step.stage for step in after.compressed][:4] == ["resize_input", "prune_width", "prune", "merge_tokens"]
    assert after.compressed[0].options.size == (24, 24)  # type: ignore[attr-defined]
    assert after.compressed[1].options.width == 96  # type: ignore[attr-defined]
    assert after.compressed[1].options.method == "energy"  # type: ignore[attr-defined]
    assert after.compressed[3].options.counts == decision.merge  # type: ignore[attr-defined]


def test_a_second_search_is_refused(planned: Planned) -> None:
    with pytest.raises(InputError, match="only one may have blocks: auto"):
        planned(text=SEARCHED.replace("  - distill", "  - prune\n  - distill"))


def test_the_hint_of_a_target_s_runtime_reaches_the_engines_and_their_keys(planned: Planned, tmp_path: Path) -> None:
    def engine(name: str, **more: object) -> PlannedStep:
        choice = {"name": "openvino", "precisions": ["fp32", "int8"], **more}
        [target] = planned(f"targets=[{own_target(tmp_path, name, runtimes=[choice])}]").targets
        assert isinstance(target, TargetPlan)
        return target.candidates[0].engine

    plain, many, two = engine("one"), engine("many", hint="throughput"), engine("two", hint="throughput", streams=2)

    assert (plain.options.hint, plain.options.streams) == ("latency", None)
    assert (two.options.hint, two.options.streams) == ("throughput", 2)
    assert len({plain.key, many.key, two.key}) == 3
    assert engine("written", hint="latency").key == plain.key


def test_devices_that_openvino_lacks_are_passed_over_with_the_reason(planned: Planned, tmp_path: Path) -> None:
    from targets.runtimes.intel.devices import list_devices

    if {"GPU", "NPU"} & {name.partition(".")[0] for name in list_devices().names}:
        pytest.skip("this machine has such a device")
    runtimes = [
        {"name": "openvino", "precisions": ["fp32", "int8"]},
        {"name": "openvino_gpu", "precisions": ["fp32", "fp16", "int8"]},
        {"name": "openvino_npu", "precisions": ["fp16", "int8"]},
    ]

    target = planned(f"targets=[{own_target(tmp_path, 'mine', runtimes=runtimes)}]").targets[0]

    assert [one.name for one in target.candidates] == ["openvino int8"]
    passed = dict(target.passed_over)
    assert passed["openvino_gpu"].startswith("openvino lists no GPU, only CPU: ")
    assert passed["openvino_npu"].startswith("openvino lists no NPU, only CPU: ")


@pytest.mark.usefixtures("arc_and_npu")
def test_gpu_and_npu_are_candidates_of_their_own_with_the_precisions_they_have(
    planned: Planned, tmp_path: Path
) -> None:
    runtimes = [
        {"name": "openvino", "precisions": ["fp32", "int8"]},
        {"name": "openvino_gpu", "precisions": ["fp32", "fp16", "int8"]},
        {"name": "openvino_npu", "precisions": ["fp16", "int8"]},
    ]
    target = own_target(tmp_path, "mine", runtimes=runtimes)

    def names(text: str) -> list[str]:
        return [one.name for one in planned(f"targets=[{target}]", text=text).targets[0].candidates]

    assert names(RECIPE.replace("  - quantize\n", "")) == [
        *("openvino fp32", "openvino_gpu fp32", "openvino_gpu fp16", "openvino_npu fp16"),
    ]
    assert names(RECIPE) == ["openvino int8", "openvino_gpu int8", "openvino_npu int8"]
    assert set(names(LADDER)) == {
        *("openvino fp32", "openvino_gpu fp32", "openvino_gpu fp16", "openvino_npu fp16"),
        *(f"{one['name']} int8 {rung}" for one in runtimes for rung in ("linears", "all", "mixed")),
    }


@pytest.fixture
def arc_and_npu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which OpenVINO lists a GPU and an NPU; planning asks for no more."""
    import functools

    from targets import profile

    here = functools.partial(profile.usable_runtimes, device=lambda runtime: None)
    monkeypatch.setattr(profile, "usable_runtimes", here)
