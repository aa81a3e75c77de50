"""A recipe as it is read: what it says, what stands where it says nothing, and every problem at once."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.recipe import Measure, Recipe, Step, demo_recipe_path, known_stages, load_recipe
from stages.data.source import DataSource
from stages.distill.stage import DistillOptions
from stages.stage import Role
from targets.errors import InputError, RecipeError
from targets.profile import Budget, load_profile

Text = Callable[..., str]
Load = Callable[..., Recipe]
Problems = Callable[..., list[str]]

SMALLEST = "vitrim: 1\nname: small\nmodel: {timm: vit_tiny_patch16_224}\ndata: {select: {dataset: digits}}\n"

# One wrong value for every key, none of which hides another: place -> (value, sentence without its line).
WRONG: dict[str, tuple[Any, str]] = {
    "vitrim": (2, "vitrim: must be 1, got 2"),
    "name": ("a b", "name: must be a text that matches ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$, got 'a b'"),
    "modle": ({}, "modle: unknown key; did you mean 'model'?"),
    "text": (
        "x",
        "text: unknown key; known: budget, data, measure, model, name, runtime_options, runtimes, seed, steps, "
        "targets, vitrim",
    ),
    "model.image_size": (
        "big",
        "model.image_size: must be a whole number, or [a whole number, a whole number], or null, got 'big'",
    ),
    "model.pretraind": (True, "model.pretraind: unknown key; did you mean 'pretrained'?"),
    "data.train.limit": (0, "data.train.limit: must be a whole number above 0, or null, got 0"),
    "data.fit.share": ([1, 0], "data.fit: share must be [from, to] with 0 <= from < to <= 1, got [1, 0]"),
    "data.select.dataset": ("digit", "data.select.dataset: must be 'digits', or null, got 'digit'"),
    "data.evalute": ({}, "data.evalute: unknown key; did you mean 'evaluate'?"),
    "steps.0.finetune.epochs": (1.5, "steps[0].finetune.epochs: must be a whole number above 0, got 1.5"),
    "steps.1.prune_mlp.kep": (0.5, "steps[1].prune_mlp.kep: unknown key; did you mean 'keep'?"),
    "steps.2.distill.lr": ("1e-3", "steps[2].distill.lr: must be a number above 0, got '1e-3'"),
    "steps.3": (
        "exprt",
        f"steps[3]: unknown stage 'exprt'; did you mean 'export'? known: {', '.join(known_stages())}",
    ),
    "steps.4.quantize.alphas": (
        ["off", 2],
        "steps[4].quantize.alphas[1]: must be a number at least 0 and at most 1, or 'off' or 'auto', got 2",
    ),
    "targets": (
        ["cpuu"],
        "targets[0]: unknown target 'cpuu'; did you mean 'cpu'?; or give the path of your own YAML file",
    ),
    "runtimes": ([], "runtimes: must be a list of at least 1, or null, got []"),
    "budget.latency_ratio": (0, "budget.latency_ratio: must be a number above 0, or null, got 0"),
    "measure.level": ("fast", "measure.level: must be 'quick' or 'full', got 'fast'"),
    "measure.batches": ([0], "measure.batches[0]: must be a whole number above 0, got 0"),
    "seed": (-1, "seed: must be a whole number at least 0 and below 4294967296, got -1"),
}


def without_line(problem: str) -> str:
    return re.sub(r" \((line \d+|--set)\)$", "", problem)


def test_a_recipe_says_what_stands_in_it(text: Text, load: Load) -> None:
    recipe = load(text())

    assert recipe.name == "everything"
    assert recipe.model.image_size == (32, 16)
    assert recipe.model.labels == Path("/recipes/names.txt")
    assert recipe.data.fit == DataSource(
        images=(Path("/recipes/pictures"), Path("/recipes/more.zip")), share=(0, 0.5), limit=100
    )
    assert set(recipe.images()) == set(Role)
    assert [step.stage for step in recipe.steps] == ["finetune", "prune_mlp", "distill", "export", "quantize"]
    assert recipe.runtimes == ("onnxruntime",)
    assert recipe.measure.batches == (1, 8)
    assert recipe.seed == 7
    assert recipe.text == text()


def test_what_a_recipe_does_not_say_has_a_default(load: Load) -> None:
    recipe = load(SMALLEST)

    assert recipe.targets == ("cpu",)
    assert recipe.budget == Budget()
    assert recipe.measure.level == "quick"
    assert recipe.seed == 0
    assert [step.stage for step in recipe.steps] == ["export"]


def test_a_budget_replaces_the_target_s_key_by_key(load: Load) -> None:
    profile = load_profile("cpu").replace(budget=Budget(accuracy_drop_points=3, latency_p50_ms=10, engine_bytes=5))
    recipe = load(SMALLEST + "budget: {accuracy_drop_points: 1, engine_bytes: null}\n")

    assert recipe.budget_for(profile) == Budget(accuracy_drop_points=1, latency_p50_ms=10)
    assert recipe.replace(targets=("cpu",)).budget_for(profile) == recipe.budget_for(profile)


@given(st.sets(st.sampled_from(sorted(WRONG))))
def test_any_set_of_wrong_values_is_told_completely(text: Text, problems: Problems, keys: set[str]) -> None:
    # A stage that is not known leaves the steps behind it as they are.
    changes = {key: WRONG[key][0] for key in sorted(keys)}

    assert sorted(map(without_line, problems(text(changes)))) == sorted(WRONG[key][1] for key in keys)


@given(st.sets(st.sampled_from(["vitrim", "name", "model"]), min_size=1))
def test_every_missing_key_is_told(text: Text, problems: Problems, keys: set[str]) -> None:
    told = problems(text(without=tuple(keys)))

    assert {problem.partition(":")[0] for problem in told} == keys
    assert all("is missing; it must be" in problem for problem in told)


def test_a_problem_ends_with_its_line(problems: Problems) -> None:
    told = problems(SMALLEST + "steps:\n  - quantize\n  - distill:\n      lr: 0\nseed: x\n")

    assert told == [
        "data.fit: is missing; steps[0].quantize cannot work without these images (line 4)",
        "steps[1]: distill works on a model, but steps[0].quantize has made an ONNX graph of it; "
        "put distill before that (line 7)",
        "steps[1].distill.lr: must be a number above 0, got 0 (line 8)",
        "seed: must be a whole number at least 0 and below 4294967296, got 'x' (line 9)",
    ]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"model": {}}, "model: give timm (a model's name), folder"),
        ({"model": {"timm": "vit", "folder": "x"}}, "one of them"),
        ({"model.arguments": {"num_classes": 3}}, "set the option classes in place of timm's num_classes"),
        ({"model.arguments": {"a": [1]}}, "model.arguments.a: must be true or false, or a whole number"),
        ({"data": "digits"}, "data: must be keys and values, got 'digits'"),
        ({"data.fit": "pictures"}, "data.fit: must be keys and values, or null, got 'pictures'"),
        ({"data.fit": {}}, "data.fit: give either images (folders, zips) or dataset"),
        ({"data.fit.images": 3}, "data.fit.images: must be a path, or a list, or null, got 3"),
        ({"data.fit.images": ["a", 3]}, "data.fit.images[1]: must be a path, got 3"),
        ({"data.fit.images": []}, "data.fit: images is an empty list"),
        ({"measure.metric": "zero_shot"}, "measure: metric zero_shot needs text_embeddings"),
        ({"measure.metric": "command"}, "measure: metric command needs a command with {bundle}"),
        ({"targets": []}, "targets: must be a list of at least 1, got []"),
        ({"targets": "cpu"}, "targets: must be a list of at least 1, got 'cpu'"),
        ({"targets": [3]}, "targets[0]: must be a text, got 3"),
        ({"targets": ["cpu", "cpu"]}, "targets[1]: is called 'cpu', as is targets[0]; name each target once"),
        ({"targets": ["none.yaml"]}, "targets[0]: target '/recipes/none.yaml' cannot be read"),
        ({"budget": None}, "budget: must be keys and values, got null"),
        ({"seed": True}, "seed: must be a whole number"),
        ({"seed": "7"}, "seed: must be a whole number"),
        ({"vitrim": True}, "vitrim: must be 1, got true"),
        ({"vitrim": "1"}, "vitrim: must be 1, got '1'"),
        ({"a\nb": 1}, "'a\\nb': unknown key"),
        ({"k" * 999: 1}, "kkk ... kkk"),
        ({"model.classes": "\n" * 500}, "model.classes: must be a whole number at least 0, or null, got '\\n"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_problem_is_one_line_with_what_is_allowed(
    text: Text, problems: Problems, changes: dict[str, Any], part: str
) -> None:
    [told] = problems(text(changes))

    assert part in told
    assert len(told.splitlines()) == 1
    assert len(told) < 300


def test_every_problem_of_a_target_s_file_is_told(text: Text, problems: Problems, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nbatch: 0\n")
    told = problems(text({"targets": [str(tmp_path / "mine.yaml")]}))

    assert len(told) == 5  # summary, board, runtimes, verified and batch
    assert all(problem.startswith(f"targets[0]: target '{tmp_path}/mine.yaml': ") for problem in told)


def test_two_targets_with_one_name_would_write_over_each_other(text: Text, problems: Problems, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        target = load_profile("cpu").replace(name="mine").model_dump_json()
        (tmp_path / folder / "mine.yaml").write_text(target)
    told = problems(text({"targets": [f"{tmp_path}/a/mine.yaml", f"{tmp_path}/b/mine.yaml"]}))

    assert [problem.partition(";")[0] for problem in told] == ["targets[1]: is called 'mine', as is targets[0]"]


# Digest.


def written(recipe: Recipe) -> str:
    """A recipe with every default written out."""
    plain = recipe.model_dump(mode="json")
    plain["steps"] = [{step["stage"]: step["options"]} for step in plain["steps"]]
    plain["budget"] = recipe.budget.model_dump(exclude_unset=True)
    return json.dumps(plain)


def test_defaults_written_out_give_the_same_digest(text: Text, load: Load) -> None:
    for recipe in (load(text()), load(SMALLEST)):
        assert load(written(recipe)).digest() == recipe.digest()
        assert load(written(recipe)).steps == recipe.steps


def test_neither_the_name_nor_the_order_of_keys_nor_that_of_images_decides(text: Text, load: Load) -> None:
    data = json.loads(text({"name": "other", "data.fit.images": ["more.zip", "pictures"]}))
    other = json.dumps(dict(reversed(data.items())))

    assert load(other).digest() == load(text()).digest()


@given(
    st.sampled_from(["seed", "budget", "steps.1.prune_mlp.keep", "data.fit.limit", "model.classes", "measure.level"])
)
def test_what_decides_the_outcome_changes_the_digest(text: Text, load: Load, place: str) -> None:
    values = {"budget": {}, "steps.1.prune_mlp.keep": 0.25, "measure.level": "quick"}

    assert load(text({place: values.get(place, 3)})).digest() != load(text()).digest()


def test_replacing_targets_keeps_the_rest(text: Text, load: Load) -> None:
    recipe = load(text())
    other = recipe.replace(targets=("cpu", "other"))

    assert other.steps == recipe.steps
    assert isinstance(other.steps[2].options, DistillOptions)
    assert other.text == recipe.text


# Files.


def test_a_file_is_named_in_its_problems(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(SMALLEST + "seed: x\nsteps: 3\n")

    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "bad.yaml")
    assert caught.value.origin == f"recipe '{tmp_path}/bad.yaml'"
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("name", ["none.yaml", "none/none.yaml", "x" * 300])
def test_a_file_that_is_not_there_says_how_to_get_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"^recipe '.*' cannot be read: .*; `vitrim init` writes one to start from$"):
        load_recipe(tmp_path / name)


@pytest.mark.parametrize("bad", ["- a\n", "", "a: [\n", "vitrim: 1\n---\nvitrim: 1\n", "a:\n\t- b\n"])
def test_what_is_no_recipe_at_all_is_one_line(problems: Problems, bad: str) -> None:
    [told] = problems(bad)

    assert told.startswith("recipe ")
    assert len(told.splitlines()) == 1


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_no_text_ends_in_anything_but_a_recipe_or_a_refusal(problems: Problems, text: str) -> None:
    for written in (text, SMALLEST + text, f"{SMALLEST}steps: {text}"):
        assert all(len(problem.splitlines()) == 1 for problem in problems(written))


# Recipes that ship.


def recipes() -> list[Path]:
    return sorted((Path(__file__).resolve().parents[3] / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_every_recipe_that_ships_loads(path: Path) -> None:
    recipe = load_recipe(path)

    assert "export" in [step.stage for step in recipe.steps]


@pytest.mark.real
def test_what_the_real_recipe_names_is_there(assets: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRIM_ASSETS", str(assets))
    recipe = load_recipe(root / "recipes" / "vit_tiny_imagenet.yaml")
    named = [*recipe.model.files().values()]
    for source in recipe.images().values():
        named += [*source.paths, *([source.labels] if source.labels else [])]

    assert set(recipe.images()) == set(Role)
    assert [path for path in named if not path.exists() or not path.is_relative_to(assets.absolute())] == []


def test_the_demo_is_there_and_needs_no_file() -> None:
    recipe = load_recipe(demo_recipe_path())

    assert {source.dataset for source in recipe.images().values()} == {"digits"}
    assert recipe.model.files() == {}
    assert set(recipe.images()) == set(Role)


def test_a_step_has_a_name_of_its_own(load: Load) -> None:
    data = "data: {train: {dataset: digits}}\n"
    recipe = load(SMALLEST.replace("data: {select: {dataset: digits}}\n", data) + "steps: [distill, distill]\n")

    assert [step.title for step in recipe.steps] == ["distill", "distill#2", "export"]
    assert all(isinstance(step, Step) for step in recipe.steps)


# The page about recipes.


def test_the_example_on_the_page_is_a_recipe(root: Path, load: Load) -> None:
    page = (root / "docs" / "recipe.md").read_text()
    example = page.split("```yaml\n")[1].split("```")[0]

    assert set(yaml.safe_load(example)) == set(Recipe.model_fields) - {"text"}
    assert load(example).steps[1].title == "distill"
    for pair in re.findall(r"--set (?:'([^']+)'|(\S+))", page.split("```sh\n")[1].split("```")[0]):
        assert "#" in "".join(pair) or load(example, "".join(pair))


def test_the_page_names_every_key(root: Path) -> None:
    page = (root / "docs" / "recipe.md").read_text()
    keys = {*Recipe.model_fields, *Measure.model_fields, *Budget.model_fields, *known_stages()} - {"text"}

    assert [key for key in keys if f"`{key}`" not in page] == []


def test_the_problems_on_the_page_are_those_that_are_told(root: Path, problems: Problems) -> None:
    page = (root / "docs" / "recipe.md").read_text()
    example = page.split("```yaml\n")[1].split("```")[0].replace("model:", "modle:").replace("0.75", "1.5")
    shown = page.split("```text\n")[1].split("```")[0].splitlines()[1:]

    assert sorted(re.sub(r" \(line \d+\)", "", one.strip()) for one in shown) == sorted(
        without_line(one) for one in problems(example)
    )
