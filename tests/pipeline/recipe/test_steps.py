"""Steps: stages in an order in which every one finds what it works on, and the images they read."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.recipe import Recipe, known_stages
from stages.artifact import Format
from stages.catalog import get_stage

Text = Callable[..., str]
Load = Callable[..., Recipe]
Problems = Callable[..., list[str]]


def stages(recipe: Recipe) -> list[str]:
    return [step.stage for step in recipe.steps]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], ["export"]),
        (None, ["export"]),
        (["export"], ["export"]),
        (["prune_mlp"], ["prune_mlp", "export"]),
        (["quantize"], ["export", "quantize"]),
        (["prune_mlp", "distill", "quantize"], ["prune_mlp", "distill", "export", "quantize"]),
        (["prune_mlp", "export", "quantize"], ["prune_mlp", "export", "quantize"]),
        (["prune_mlp", "quantize_aware"], ["prune_mlp", "quantize_aware"]),
        (["finetune", "finetune", "prune_mlp"], ["finetune", "finetune", "prune_mlp", "export"]),
        (["prune_mlp", "distill", "prune_mlp", "distill"], ["prune_mlp", "distill", "prune_mlp", "distill", "export"]),
    ],
    ids=str,
)
def test_export_is_put_in_where_nobody_wrote_it(
    text: Text, load: Load, steps: list[str] | None, expected: list[str]
) -> None:
    assert stages(load(text({"steps": steps}))) == expected


def test_export_keeps_the_options_it_was_written_with(text: Text, load: Load) -> None:
    recipe = load(text({"steps": [{"export": {"opset": 18}}, "quantize"]}))

    assert recipe.steps[0].options.opset == 18  # type: ignore[attr-defined]


@given(st.lists(st.sampled_from(known_stages()), max_size=5))
def test_an_accepted_order_fits_together_and_a_refused_one_says_where(
    text: Text, load: Load, problems: Problems, names: list[str]
) -> None:
    told = problems(text({"steps": names}))
    if told:
        assert all(problem.startswith("steps[") for problem in told)
        return

    made = stages(load(text({"steps": names})))
    holds = Format.VIT
    for name in made:
        assert get_stage(name).consumes == holds
        holds = get_stage(name).produces
    assert holds == Format.ONNX
    assert [name for name in made if name != "export"] == [name for name in names if name != "export"]
    assert made.count("export") + made.count("quantize_aware") == 1
    assert "finetune" not in made[names.count("finetune") :]


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        (
            ["export", "distill"],
            "steps[1]: distill works on a model, but steps[0].export has made an ONNX graph of it; put distill before",
        ),
        (
            ["quantize", "prune_mlp"],
            "steps[1]: prune_mlp works on a model, but steps[0].quantize has made an ONNX graph",
        ),
        (
            ["quantize", "export"],
            "steps[0]: quantize works on an ONNX graph, but export comes later, as steps[1]; put quantize behind it",
        ),
        (["export", "export"], "steps[1]: export stands before already"),
        (["quantize", {"quantize": {}}], "steps[1]: quantize stands before already"),
        (
            ["quantize_aware", "quantize"],
            "steps[1]: quantize does what steps[0].quantize_aware has done already: it leaves an int8 graph; remove",
        ),
        (["quantize_aware", "export"], "steps[1]: export does what steps[0].quantize_aware has done already"),
        (
            ["export", "quantize_aware"],
            "steps[1]: quantize_aware trains a model and writes its int8 graph itself; put it in the place of "
            "steps[0].export",
        ),
        (["quantize_aware", "distill"], "steps[1]: distill works on a model, but steps[0].quantize_aware has made"),
        (["quantize_aware", "quantize_aware"], "steps[1]: quantize_aware stands before already"),
        (["prune_mlp", "finetune"], "steps[1]: finetune makes the model that all else is compared with; put it before"),
        (["distill", "finetune"], "steps[1]: finetune makes the model"),
        (["source"], "steps[0]: stage 'source' is part of every build, and `model` says what it reads; remove"),
        (["export", {"compile": {"runtime": "openvino"}}], "steps[1]: stage 'compile' is part of every build"),
        (["distil"], "steps[0]: unknown stage 'distil'; did you mean 'distill'?"),
        (["xyz"], "steps[0]: unknown stage 'xyz'; known: "),
        (
            [{"prune_mlp": None, "keep": 0.5}],
            "steps[0]: a step is one stage; if these are options of prune_mlp, write prune_mlp: {keep: 0.5}",
        ),
        ([{}], "steps[0]: must be a stage, or a stage with its options"),
        ([3], "steps[0]: must be a stage, or a stage with its options, like prune_mlp: {keep: 0.75}, got 3"),
        ([None], "steps[0]: must be a stage"),
        ([["export"]], "steps[0]: must be a stage"),
        ([{"export": 18}], "steps[0].export: must be keys and values, got 18"),
        ([{"export": False}], "steps[0].export: must be keys and values, got false"),
        ([{"export": []}], "steps[0].export: must be keys and values, got []"),
        ({"export": {}}, "steps: must be a list of stages, each after a dash, got {export: {}}"),
        ("export", "steps: must be a list of stages"),
    ],
    ids=str,
)
def test_a_step_that_cannot_be_is_refused_with_the_reason(
    text: Text, problems: Problems, steps: Any, problem: str
) -> None:
    [told] = problems(text({"steps": steps}))

    assert told.startswith(problem)


@pytest.mark.parametrize(
    ("role", "steps", "readers"),
    [
        ("fit", ["prune_mlp", "quantize"], "steps[0].prune_mlp, steps[1].quantize"),
        ("train", ["finetune", "prune_mlp", "distill"], "steps[0].finetune, steps[2].distill"),
        ("select", ["quantize"], "steps[0].quantize"),
    ],
)
@pytest.mark.parametrize("how", ["null", "absent"])
def test_images_that_a_stage_reads_must_be_given(
    text: Text, problems: Problems, role: str, steps: list[str], readers: str, how: str
) -> None:
    import json

    data = json.loads(text({"steps": steps, f"data.{role}": None}))
    if how == "absent":
        del data["data"][role]
    [told] = problems(json.dumps(data, indent=1))

    assert told.startswith(f"data.{role}: is missing; {readers} cannot work without these images")


def test_images_that_only_some_options_read_need_not_be_given(text: Text, problems: Problems) -> None:
    steps = [{"prune_mlp": {"method": "dgmr", "repair": "none"}}]

    assert problems(text({"steps": steps, "data.fit": None})) == []
    assert len(problems(text({"steps": ["prune_mlp"], "data.fit": None}))) == 1


def test_candidates_need_some_images_to_be_compared_on(text: Text, problems: Problems) -> None:
    nothing: dict[str, Any] = {"data.fit": None, "data.train": None, "data.select": None, "steps": []}

    assert problems(text({**nothing, "data.fit": {"dataset": "digits"}})) == []
    [told] = problems(text(nothing))
    assert told.startswith("data.select: is missing; engines are compared on these images")
    [told] = problems(text({**nothing, "steps": ["prune_mlp"]}))
    assert told.startswith("data.fit: is missing; steps[0].prune_mlp")


def test_images_that_are_wrong_are_not_called_missing(text: Text, problems: Problems) -> None:
    assert len(problems(text({"data.fit": "pictures"}))) == 1
    assert len(problems(text({"data": 3}))) == 1
