"""Options of a runtime's own in a plan: from the profile or the recipe to engines, boards and keys."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.build import plan_recipe
from pipeline.plan import AwayPlan, Plan
from pipeline.recipe import load_recipe
from pipeline.store import Store
from targets.errors import InputError

RECIPE = """\
vitrim: 1
name: planned
model: {timm: vit_tiny_patch16_224, pretrained: false, image_size: 16, classes: 10, arguments: {patch_size: 8}}
data: {fit: {dataset: digits, share: [0, 0.2]}, select: {dataset: digits, share: [0.2, 0.4]}}
steps: [export, quantize]
"""

Planned = Callable[..., Plan]


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    """planned("seed=1"): the plan of the recipe with overrides."""

    def plan(*overrides: str) -> Plan:
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE)
        return plan_recipe(load_recipe(path, overrides=overrides), Store(tmp_path / "store"))

    return plan


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from targets import facts

    real = facts.probe
    monkeypatch.setattr(facts, "probe", lambda: {**real(), "gpus": []})


def own_target(folder: Path, name: str, **changes: object) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "summary": "a card", "verified": "not yet", **changes}))
    return path


@pytest.mark.usefixtures("no_gpu")
def test_options_of_a_runtime_reach_engines_and_boards_and_those_of_the_recipe_go_first(
    planned: Planned, tmp_path: Path
) -> None:
    card = own_target(tmp_path, "card", extends="rtx-4090", **CARD)
    plain = planned(f"targets=[{card}]").targets[0]
    other = planned(
        f"targets=[{card}]", "runtime_options={tensorrt_rtx: {tf32: true}, tensorrt: {tf32: true}}"
    ).targets[0]
    assert isinstance(plain, AwayPlan)
    assert isinstance(other, AwayPlan)

    ahead, board = plain.candidates[0], next(one for one in plain.candidates if one.runtime == "tensorrt")
    assert ahead.engine is not None
    assert ahead.engine.options.options == {"optimization_level": 5}
    assert board.options == {"workspace_mib": 512, "tf32": False}
    assert other.candidates[0].engine is not None
    assert other.candidates[0].engine.options.options == {"optimization_level": 5, "tf32": True}
    assert other.candidates[0].engine.key != ahead.engine.key
    board = next(one for one in other.candidates if one.runtime == "tensorrt")
    assert board.options == {"workspace_mib": 512, "tf32": True}


CARD = {
    "runtimes": [
        {"name": "tensorrt_rtx", "precisions": ["fp32", "int8"], "options": {"optimization_level": 5}},
        {"name": "tensorrt", "precisions": ["fp32", "int8"], "options": {"workspace_mib": 512, "tf32": False}},
    ],
}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("{tensorrt: {workspace_mib: 1}}", "runtime_options: 'tensorrt' is no runtime of cpu; those have onnxruntime"),
        ("{trt: {}}", "runtime_options: unknown runtime 'trt'"),
        ("{tensorrt: {tf32: 3}}", "runtime_options: option 'tf32' is true or false, got 3"),
        ("{onnxruntime: {threads: 3}}", "option 'threads' is not set here: the profile's threads says it"),
    ],
)
def test_options_that_would_do_nothing_or_are_wrong_are_refused(planned: Planned, options: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        planned(f"runtime_options={options}")
