"""Lets tests of this folder import what they share, and the programs that they start as processes; plans of recipes."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "targets"))

from planning import RECIPE

from pipeline.build import plan_recipe
from pipeline.plan import Plan
from pipeline.recipe import load_recipe
from pipeline.store import Store

Planned = Callable[..., Plan]


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    """planned("steps.prune_mlp.keep=0.25", text=RECIPE): the plan of a recipe with overrides."""

    def plan(*overrides: str, text: str = RECIPE) -> Plan:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return plan_recipe(load_recipe(path, overrides=overrides), Store(tmp_path / "store"))

    return plan


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from targets import facts

    real = facts.probe
    monkeypatch.setattr(facts, "probe", lambda: {**real(), "gpus": []})
