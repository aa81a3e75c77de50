"""A recipe that says everything, and ways to change and read it. Nothing of it needs a fixture per test."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe import Recipe, parse_recipe
from targets.errors import InputError, RecipeError

FULL: dict[str, Any] = {
    "vitrim": 1,
    "name": "everything",
    "model": {
        "timm": "vit_tiny_patch16_224",
        "pretrained": False,
        "image_size": [32, 16],
        "classes": 10,
        "arguments": {"patch_size": 4, "class_token": False},
        "labels": "names.txt",
    },
    "data": {
        "fit": {"images": ["pictures", "more.zip"], "share": [0, 0.5], "limit": 100},
        "train": {"images": "pictures", "share": [0, 0.5]},
        "select": {"dataset": "digits", "share": [0.5, 0.75]},
        "evaluate": {"images": "val.zip", "labels": "val.csv", "where": {"part": "mixed"}},
    },
    "steps": [
        {"finetune": {"epochs": 2}},
        {"prune_mlp": {"keep": 0.5, "ridge": 0.01}},
        {"distill": {"images_seen": 64}},
        "export",
        {"quantize": {"alphas": ["off", 0.5]}},
    ],
    "targets": ["cpu"],
    "runtimes": ["onnxruntime"],
    "budget": {"accuracy_drop_points": 1.5, "latency_p50_ms": None},
    "measure": {"level": "full", "batches": [1, 8], "metric": "top1"},
    "seed": 7,
}

Change = dict[str, Any]
Load = Callable[..., Recipe]
Problems = Callable[..., list[str]]


def _text(changes: Change | None = None, *, without: tuple[str, ...] = ()) -> str:
    data = copy.deepcopy(FULL)
    for place, value in (changes or {}).items():
        *around, last = [int(word) if word.isdigit() else word for word in place.split(".")]
        inner: Any = data
        for word in around:
            inner = inner[word]
        inner[last] = value
    for key in without:
        del data[key]
    return json.dumps(data, indent=1, ensure_ascii=False)


def _load(text: str, *overrides: str, folder: Path = Path("/recipes")) -> Recipe:
    return parse_recipe(text, origin="recipe", folder=folder, overrides=overrides)


@pytest.fixture(scope="session")
def text() -> Callable[..., str]:
    """text({"data.fit.limit": 3}, without=("seed",)): the recipe, changed; JSON, which is YAML."""
    return _text


@pytest.fixture(scope="session")
def load() -> Load:
    """load(text, *overrides): the recipe; its relative paths start at /recipes."""
    return _load


@pytest.fixture(scope="session")
def problems() -> Problems:
    """problems(text, *overrides): what is wrong with it, one sentence each; empty where nothing is."""

    def read(text: str, *overrides: str) -> list[str]:
        try:
            _load(text, *overrides)
        except RecipeError as error:
            return list(error.problems)
        except InputError as error:
            return [str(error)]
        return []

    return read
