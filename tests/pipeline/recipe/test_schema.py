"""The published schema: what it accepts is what is loaded, and it knows every stage with its options."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from pipeline.recipe import Recipe, known_stages, recipe_schema
from pipeline.recipe.model import IMPLIED
from stages.catalog import CATALOG, get_stage

Text = Callable[..., str]
Problems = Callable[..., list[str]]


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    Draft202012Validator.check_schema(recipe_schema())
    return Draft202012Validator(recipe_schema())


def test_it_knows_every_key_of_a_recipe_and_no_other(validator: Draft202012Validator) -> None:
    assert set(recipe_schema()["properties"]) == set(Recipe.model_fields) - {"text"}
    assert recipe_schema()["additionalProperties"] is False


def test_every_stage_stands_with_its_own_options() -> None:
    schema = recipe_schema()
    steps = {
        next(iter(one["properties"])): one
        for one in schema["properties"]["steps"]["items"]["anyOf"]
        if "properties" in one
    }

    assert set(steps) == set(known_stages()) == set(CATALOG) - set(IMPLIED)
    for name, step in steps.items():
        reference = step["properties"][name]["anyOf"][0]["$ref"].rpartition("/")[2]
        assert set(schema["$defs"][reference]["properties"]) == set(get_stage(name).options.model_fields)


def test_nothing_in_it_is_unused() -> None:
    text = json.dumps(recipe_schema())

    assert [name for name in recipe_schema()["$defs"] if f'"#/$defs/{name}"' not in text] == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": []},
        {"steps": ["export", {"quantize": None}]},
        {"model.image_size": 224, "measure.batches": []},
        {"seed": "7"},
        {"seed": True},
        {"sed": 7},
        {"vitrim": 2},
        {"name": "a b"},
        {"model.labels": 3},
        {"data.fit.limit": 0},
        {"data.fit.shar": [0, 1]},
        {"data.fit.share": [0, 1, 2]},
        {"steps": {"export": {}}},
        {"steps": ["exprt"]},
        {"steps": ["compile"]},
        {"steps": [{"prune_mlp": {"keep": 2}}]},
        {"steps": [{"prune_mlp": {"kep": 0.5}}]},
        {"steps.2.distill.learning_rate": 0.1},
        {"steps.4.quantize": {"precison": "int8"}},
        {"model.pretraind": True},
        {"vitrim": True},
        {"steps": [{"prune_mlp": {}, "keep": 2}]},
        {"targets": []},
        {"targets": "cpu"},
        {"budget": {"latency_ratio": 0}},
        {"measure": {"level": "fast"}},
    ],
    ids=str,
)
def test_the_schema_and_the_reader_agree(
    text: Text, problems: Problems, validator: Draft202012Validator, changes: dict[str, Any]
) -> None:
    written = text(changes)

    assert validator.is_valid(json.loads(written)) == (problems(written) == [])


def test_recipes_that_ship_satisfy_it(validator: Draft202012Validator, root: Path) -> None:
    for path in (root / "recipes").rglob("*.yaml"):
        assert list(validator.iter_errors(yaml.safe_load(path.read_text()))) == [], path
