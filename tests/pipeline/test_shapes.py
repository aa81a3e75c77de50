"""Parameters and MACs that a plan shows, before anything runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import shapes
from pipeline.build import plan_recipe
from pipeline.recipe import load_recipe
from pipeline.shapes import Shape, shapes_of
from pipeline.store import Store
from stages.prune_mlp.stage import STAGE
from stages.source.load import load_timm
from stages.source.options import SourceOptions
from targets.errors import InputError

SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
MODEL = {"timm": "vit_tiny_patch16_224", "pretrained": False, "image_size": 16, "classes": 10, "arguments": SMALL}
DATA = {
    role: {"dataset": "digits", "share": share}
    for role, share in {"fit": [0, 0.2], "select": [0.2, 0.4], "evaluate": [0.4, 1]}.items()
}


@pytest.fixture
def shown(tmp_path: Path) -> Callable[..., list[Shape]]:
    """shown([{"prune_mlp": {...}}], model={...}): what a plan shows of a model."""

    def show(steps: list[Any], *, model: dict[str, Any] = MODEL) -> list[Shape]:
        path = tmp_path / "recipe.yaml"
        recipe = {"vitrim": 1, "name": "shown", "model": model, "data": DATA, "steps": [*steps, "export"]}
        path.write_text(yaml.safe_dump(recipe))
        store = Store(tmp_path / "store")
        return list(shapes_of(plan_recipe(load_recipe(path), store), store))

    return show


def test_every_step_that_changes_shapes_is_shown_in_order(shown: Callable[..., list[Shape]]) -> None:
    source, first, second = shown([{"prune_mlp": {"keep": 0.5}}, {"prune_mlp": {"keep": 0.5}}])

    widths = [{block.mlp_width for block in one.spec.blocks} for one in (source, first, second) if one.spec]
    assert widths == [{128}, {64}, {32}]
    per_neuron = 2 * 2 * 32 + 2  # two blocks, a row, a column and a bias each
    assert source.params - first.params == 64 * per_neuron
    assert source.macs - first.macs == 64 * 2 * 2 * 32 * 5  # five tokens
    assert first.params - second.params == 32 * per_neuron


def test_the_source_counts_what_the_real_module_has(shown: Callable[..., list[Shape]]) -> None:
    (source,) = shown([])
    _, state, _, _ = load_timm(SourceOptions.model_validate(MODEL), seed=0)

    assert source.params == sum(tensor.numel() for tensor in state.values())
    assert source.params - source.tower_params == 10 * 33


def test_the_spec_is_kept_so_that_the_next_plan_loads_no_timm(
    shown: Callable[..., list[Shape]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import stages.source.load

    once = shown([{"prune_mlp": {"r": 1}}])
    monkeypatch.setattr(stages.source.load, "expected_spec", None)

    assert shown([{"prune_mlp": {"r": 1}}]) == once


def test_a_step_that_cannot_be_done_is_refused_by_the_plan(shown: Callable[..., list[Shape]]) -> None:
    with pytest.raises(InputError, match=r"r 8\.0 asks for 256 neurons"):
        shown([{"prune_mlp": {"r": 8}}])


def test_what_images_decide_is_shown_as_a_bound_from_there_on(
    shown: Callable[..., list[Shape]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = replace(STAGE, reshapes_at_most=lambda options: options.keep == 0.75)
    real = shapes.get_stage
    monkeypatch.setattr(shapes, "get_stage", lambda name: stage if name == "prune_mlp" else real(name))

    found = shown([{"prune_mlp": {"keep": step}} for step in (0.5, 0.75, 0.5)])

    assert [one.at_most for one in found] == [False, False, True, True]


def test_a_model_on_the_hub_is_not_fetched_for_a_plan(shown: Callable[..., list[Shape]]) -> None:
    source, pruned = shown([{"prune_mlp": {"keep": 0.5}}], model={"timm": "hf-hub:nobody/nothing"})

    assert source.spec is None
    assert pruned.told()["params_without_head"] is None
