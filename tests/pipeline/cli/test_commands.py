"""Commands that look: what they print, as text that fits 80 columns and as JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
Recipe = Callable[..., Path]


def fits(text: str) -> bool:
    return max((len(line) for line in text.splitlines()), default=0) <= 80


def test_plan_shows_every_step_and_runs_nothing(command: Command, write_recipe: Recipe, tmp_path: Path) -> None:
    answer = command("plan", write_recipe())

    assert answer.code == 0
    assert fits(answer.out)
    for word in ("source", "prune_mlp", "export", "compile engine: onnxruntime fp32", "to run", "evaluate"):
        assert word in answer.out
    assert not list((tmp_path / "store" / "entries").glob("*"))


def test_plan_shows_the_model_before_and_after(command: Command, write_recipe: Recipe) -> None:
    steps = [{"prune_mlp": {"keep": 0.5}}, {"prune_mlp": {"method": "similarity", "threshold": 0.9}}, "export"]
    recipe = write_recipe({"steps": steps})

    told = command("plan", recipe).out
    (listed,) = json.loads(command("plan", recipe, "--json").out).values()
    source, first, second = [step for step in listed if "params" in step]

    assert fits(told)
    assert f"≤ {first['params'] / 1000:.2f} k" in told
    assert source["params"] - first["params"] == 2 * 64 * (2 * 32 + 1)
    assert source["params"] - source["params_without_head"] == 10 * 33
    assert source["macs"] > first["macs"] == second["macs"]
    assert [step["at_most"] for step in (source, first, second)] == [False, False, True]


def test_plan_counts_without_the_recipes_images(command: Command, write_recipe: Recipe) -> None:
    missing = {"data.train": {"images": "nowhere"}, "data.evaluate": {"images": "gone.zip", "labels": "gone.csv"}}
    listed = json.loads(command("plan", write_recipe(), "--json").out)["cpu"]

    recipe = write_recipe(missing)
    assert command("plan", recipe).code == 2
    told = command("plan", recipe, "--without-images")
    without = json.loads(command("plan", recipe, "--without-images", "--json").out)["cpu"]

    assert told.code == 0, told
    assert fits(told.out)
    assert "to run" not in told.out
    assert [step.get("params") for step in without] == [step.get("params") for step in listed]
    assert {(step["key"], step["finished"]) for step in without} == {(None, False)}


def test_dry_run_is_plan(command: Command, write_recipe: Recipe) -> None:
    recipe = write_recipe()

    assert command("build", recipe, "--dry-run").out == command("plan", recipe).out


def test_plan_tells_programs_keys_and_options(command: Command, write_recipe: Recipe) -> None:
    told = json.loads(command("plan", write_recipe(), "--set", "steps.prune_mlp.keep=0.25", "--json").out)
    prune = next(step for step in told["cpu"] if step["stage"] == "prune_mlp")

    assert prune["options"]["keep"] == 0.25
    assert prune["finished"] is False
    assert len(prune["key"]) == 64


def test_a_recipe_that_init_writes_loads(command: Command, tmp_path: Path) -> None:
    from pipeline.recipe import load_recipe

    written = command("init", tmp_path / "mine.yaml", "--model", "deit_small_patch16_224", "--images", "photos")

    assert written.code == 0
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe.model.timm == "deit_small_patch16_224"
    assert recipe.name == "mine"
    assert [step.stage for step in recipe.steps] == ["prune_mlp", "distill", "export", "quantize"]


@pytest.mark.parametrize("words", [("targets", "list"), ("stages",), ("doctor",), ("store", "list")], ids=" ".join)
def test_what_is_listed_fits_80_columns_and_is_json_on_request(command: Command, words: tuple[str, ...]) -> None:
    answer = command(*words)

    assert answer.code == 0, answer
    assert fits(answer.out), answer.out
    json.loads(command(*words, "--json").out)


def test_stages_tells_every_option(command: Command) -> None:
    from stages.catalog import CATALOG, get_stage

    assert all(name in command("stages").out for name in CATALOG)
    for name in CATALOG:
        text = command("stages", name).out
        assert fits(text)
        assert all(option in text for option in get_stage(name).options.model_fields), text


def test_a_shown_target_can_be_used_as_a_file(command: Command, tmp_path: Path) -> None:
    from targets.profile import load_profile

    (tmp_path / "cpu.yaml").write_text(command("targets", "show", "cpu").out)

    assert load_profile(tmp_path / "cpu.yaml") == load_profile("cpu")


def test_probe_tells_what_the_machine_is(command: Command) -> None:
    told = json.loads(command("targets", "probe").out)

    assert told["cores"] >= 1
    assert told["architecture"]


def test_store_verifies_and_cleans_an_empty_store(command: Command) -> None:
    assert command("store", "verify").code == 0
    assert "would free 0.0 MB" in command("store", "gc", "--dry-run").out


def test_help_of_every_command_fits_80_columns(command: Command) -> None:
    for words in (
        (),
        ("build",),
        ("plan",),
        ("validate",),
        ("report",),
        ("init",),
        ("demo",),
        ("doctor",),
        ("store", "gc"),
    ):
        answer = command(*words, "--help")
        assert answer.code == 0
        assert fits(answer.out), answer.out


def test_the_version_is_the_package_s(command: Command) -> None:
    from importlib.metadata import version

    assert command("--version").out.strip() == f"vitrim {version('vitrim')}"
