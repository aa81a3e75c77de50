"""Overrides: the same as writing the value into the file, with the same words for the same mistakes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.recipe import Recipe
from targets.strict_yaml import spell

Text = Callable[..., str]
Load = Callable[..., Recipe]
Problems = Callable[..., list[str]]

PLACES = (
    "name",
    "seed",
    "model.timm",
    "model.image_size",
    "model.arguments",
    "data.fit.share",
    "data.select.limit",
    "data.evaluate.where",
    "steps.0.finetune.epochs",
    "steps.1.prune_mlp.keep",
    "steps.1.prune_mlp.ridge",
    "steps.2.distill",
    "steps.4.quantize.alphas",
    "steps",
    "targets",
    "budget.accuracy_drop_points",
    "budget",
    "measure.batches",
    "unknown",
    "data.fit.unknown",
)
VALUES = st.sampled_from(
    [
        None,
        True,
        0,
        1,
        0.5,
        -3,
        32,
        "auto",
        "off",
        "cpu",
        "no",
        [],
        [0, 1],
        [0.25, 0.5],
        ["off"],
        ["cpu"],
        ["export"],
        {},
        {"a": "b"},
    ]
)


@given(st.sampled_from(PLACES), VALUES)
def test_an_override_is_the_same_as_the_value_in_the_file(
    text: Text, load: Load, problems: Problems, place: str, value: Any
) -> None:
    pair = f"{place}={json.dumps(value)}"
    in_file, overridden = problems(text({place: value})), problems(text(), pair)

    assert sorted(one.rpartition(" (")[0] or one for one in overridden) == sorted(
        one.rpartition(" (")[0] or one for one in in_file
    )
    if not in_file:
        assert load(text(), pair).digest() == load(text({place: value})).digest()
        assert load(text(), pair).name == load(text({place: value})).name


@pytest.mark.parametrize(
    "key",
    [
        "steps.distill.lr",
        "steps.2.distill.lr",
        "steps[2].distill.lr",
        "steps.distill#1.lr",
        " steps.distill.lr ",
    ],
)
def test_a_step_is_named_by_stage_position_or_both(text: Text, load: Load, key: str) -> None:
    assert load(text(), f"{key} = 0.125").steps[2].options.lr == 0.125  # type: ignore[attr-defined]


@given(st.integers(0, 4))
def test_a_place_spelled_in_a_message_is_a_key(text: Text, load: Load, index: int) -> None:
    names = ("finetune", "prune_mlp", "distill", "export", "quantize")
    keys = ("epochs", "round_to", "batch_size", "opset", "images")
    place = spell(("steps", index, names[index], keys[index]))
    recipe = load(text(), f"{place}=19")

    assert getattr(recipe.steps[index].options, keys[index]) == 19


def test_a_stage_that_stands_twice_is_named_by_its_number(text: Text, load: Load, problems: Problems) -> None:
    twice = text({"steps": ["distill", "prune_mlp", "distill"]})
    [told] = problems(twice, "steps.distill.lr=1")
    recipe = load(twice, "steps.distill#2.lr=1")

    assert "'distill' stands 2 times; write steps.distill#1 or steps.distill#2" in told
    assert [getattr(step.options, "lr", None) for step in recipe.steps] == [3e-4, None, 1, None]


def test_a_stage_without_options_takes_them(text: Text, load: Load) -> None:
    written: list[Any] = [["export"], [{"export": None}], [{"export": {}}]]
    for steps in written:
        assert load(text({"steps": steps}), "steps.export.opset=18").steps[0].options.opset == 18  # type: ignore[attr-defined]


def test_whole_steps_and_lists_can_be_replaced(text: Text, load: Load) -> None:
    assert [step.stage for step in load(text(), "steps=[export]").steps] == ["export"]
    assert [step.stage for step in load(text(), "steps.1=distill").steps][1] == "distill"
    assert load(text(), "steps.prune_mlp={r: 2}").steps[1].options.r == 2  # type: ignore[attr-defined]
    assert load(text(), "measure.batches.1=16").measure.batches == (1, 16)


def test_null_takes_a_value_away(text: Text, load: Load) -> None:
    bare = load(text({"steps": [{"prune_mlp": {"keep": 0.5}}]}), "steps.prune_mlp=null", "budget.latency_p50_ms=null")

    assert bare.steps == load(text({"steps": ["prune_mlp"]})).steps
    assert bare.budget.model_fields_set == {"accuracy_drop_points", "latency_p50_ms"}
    assert load(text(), "data.fit.limit=null").data.fit.limit is None  # type: ignore[union-attr]
    assert load(text(), "steps=null").steps == load(text({"steps": []})).steps


def test_parts_that_the_recipe_does_not_have_are_made(load: Load) -> None:
    small = "vitrim: 1\nname: small\nmodel: {timm: vit}\ndata:\n"
    recipe = load(small, "data.select.dataset=digits", "budget.accuracy_drop_points=1", "measure.level=full")

    assert recipe.data.select is not None
    assert recipe.budget.accuracy_drop_points == 1
    assert recipe.budget.model_fields_set == {"accuracy_drop_points"}
    assert recipe.measure.level == "full"


def test_overrides_are_applied_one_after_the_other(text: Text, load: Load) -> None:
    recipe = load(text(), "seed=1", "seed=2", "steps=[prune_mlp]", "steps.prune_mlp.keep=0.25")

    assert recipe.seed == 2
    assert recipe.steps[0].options.keep == 0.25  # type: ignore[attr-defined]


def test_a_value_may_hold_anything(text: Text, load: Load) -> None:
    assert load(text(), "measure.metric=command", "measure.command=a=b {bundle}").measure.command == "a=b {bundle}"
    assert load(text(), "data.evaluate.where={a.b: no}").data.evaluate.where == {"a.b": "no"}  # type: ignore[union-attr]
    emoji = json.dumps("vit 😀")
    assert load(text(), f"model.timm={emoji}").model.timm == "vit 😀"


def test_the_recipe_s_own_text_stays_as_it_is(text: Text, load: Load) -> None:
    assert load(text(), "seed=1").text == text()


@pytest.mark.parametrize(
    ("pair", "problem"),
    [
        ("nonsense", "--set 'nonsense': must be KEY=VALUE, like steps.prune_mlp.keep=0.5"),
        ("=1", "--set '=1': must be KEY=VALUE"),
        ("a..b=1", "--set 'a..b=1': must be KEY=VALUE"),
        ("seed=[1", "--set 'seed=[1': the value is not valid YAML"),
        ("seed=!!set {a}", "--set 'seed=!!set {a}': values of kind 'set' are not understood"),
        ("sed=1", "sed: unknown key; did you mean 'seed'? (--set)"),
        ("modl.timm=x", "modl: unknown key; did you mean 'model'? (--set)"),
        ("model.tim=x", "model.tim: unknown key; did you mean 'timm'? (--set)"),
        ("steps.prune_mlp.kep=1", "steps[1].prune_mlp.kep: unknown key; did you mean 'keep'? (--set)"),
        (
            "steps.prune_mlp.keep=2",
            "steps[1].prune_mlp.keep: must be a number above 0 and at most 1, or null, got 2 (--set)",
        ),
        (
            "steps.prune_mpl.keep=1",
            "--set 'steps.prune_mpl.keep=1': the recipe has no step 'prune_mpl'; did you mean 'prune_mlp'?",
        ),
        ("steps.distill#2.lr=1", "--set 'steps.distill#2.lr=1': the recipe has no step 'distill#2'"),
        ("steps.distill#x.lr=1", "--set 'steps.distill#x.lr=1': the recipe has no step 'distill#x'"),
        (
            "steps.1.distill.lr=1",
            "--set 'steps.1.distill.lr=1': step 1 is 'prune_mlp', not 'distill'; write steps.1.prune_mlp.OPTION",
        ),
        ("steps.9.distill.lr=1", "--set 'steps.9.distill.lr=1': steps has 5 elements, counted from 0; there is no '9'"),
        ("steps.9=export", "--set 'steps.9=export': steps has 5 elements"),
        ("targets.1=cpu", "--set 'targets.1=cpu': targets has 1 elements"),
        ("seed.x=1", "--set 'seed.x=1': seed is 7 and has no keys"),
        ("data.fit=", "data.fit: is missing; steps[1].prune_mlp, steps[4].quantize cannot work"),
    ],
    ids=str,
)
def test_a_wrong_override_is_told_in_one_line(text: Text, problems: Problems, pair: str, problem: str) -> None:
    [told] = problems(text(), pair)

    assert told.startswith(problem)
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("step", [3, None, {"prune_mlp": {}, "keep": 1}, {}], ids=str)
def test_a_step_that_is_no_stage_cannot_be_set_into(text: Text, problems: Problems, step: Any) -> None:
    told = problems(text({"steps": [step]}), "steps.0.prune_mlp.keep=1")

    assert len(told) == 2
    assert told[0].startswith("--set 'steps.0.prune_mlp.keep=1': steps[0] is not a stage with its options, it is ")


def test_wrong_overrides_are_told_with_all_other_problems(text: Text, problems: Problems) -> None:
    told = problems(text({"seed": -1}), "nonsense", "sed=1", "budget.latency_ratio=0")

    assert len(told) == 4
    assert [problem.endswith("(--set)") for problem in told] == [False, True, True, False]


def test_steps_of_a_recipe_that_has_none_cannot_be_set(problems: Problems) -> None:
    small = "vitrim: 1\nname: small\nmodel: {timm: vit}\ndata: {select: {dataset: digits}}\n"

    assert problems(small, "steps.prune_mlp.keep=1") == [
        "--set 'steps.prune_mlp.keep=1': the recipe has no step 'prune_mlp'; none are known"
    ]


def test_a_relative_path_in_an_override_starts_at_the_current_folder(
    text: Text, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load(text(), "model.checkpoint=mine.pth", "data.fit={images: [here, ../there]}", "data.train.limit=3")

    assert recipe.model.checkpoint == tmp_path / "mine.pth"
    assert recipe.model.labels == Path("/recipes/names.txt")
    assert recipe.data.fit is not None
    assert recipe.data.fit.paths == (tmp_path / "here", tmp_path.parent / "there")
    assert recipe.data.train is not None
    assert recipe.data.train.paths == (Path("/recipes/pictures"),)
