"""A baseline that is not what is known of the model: told, unless the images are too few to say so."""

from pathlib import Path

import pytest

from pipeline.plausible import UNKNOWN, implausible, told_of_source, unlike_timm
from pipeline.recipe import load_recipe
from pipeline.report.record import Accuracy
from stages.vit.spec import BlockSpec, ViTSpec
from targets.preprocess import Preprocess


def seen(baseline: float, images: int) -> Accuracy:
    return Accuracy(
        metric="top1", baseline=baseline, engine=baseline, drop_points=0, drop_ci95=(0, 0), agreement=1, images=images
    )


@pytest.mark.parametrize(
    ("baseline", "images", "known", "told"),
    [
        (0.79, 1100, 0.755, False),
        (0.79, 1100, 0.85, False),  # within five points of the interval
        (0.683, 914, 0.839, True),
        (0.111, 914, 0.839, True),
        (0.95, 914, 0.839, True),  # labels that leak are no better news
        (0.6, 10, 0.839, False),  # ten images say next to nothing
        (0.683, 0, 0.839, True),  # a user's own metric, which has no images
    ],
)
def test_a_source_far_from_what_is_known_of_it_is_told(baseline: float, images: int, known: float, told: bool) -> None:
    said = implausible(seen(baseline, images), known)

    assert bool(said) is told
    if told:
        assert f"{100 * baseline:.1f} % here, and {100 * known:.1f} % is known of it" in said
        assert "mean, std, crop, scale" in said


def test_where_nothing_is_known_nothing_is_said() -> None:
    assert implausible(seen(0.1, 1000), None) == ""
    assert implausible(None, 0.8) == ""


def named(architecture: str, mean: float, std: float) -> ViTSpec:
    reads = Preprocess(height=16, width=16, mean=(mean,) * 3, std=(std,) * 3)
    block = BlockSpec(heads=1, d_qk=8, d_v=8, scale=0.3, mlp_width=8, norm1_eps=1e-6, norm2_eps=1e-6)
    return ViTSpec(architecture=architecture, preprocess=reads, patch_size=(8, 8), width=8, classes=2, blocks=(block,))


@pytest.mark.parametrize(
    ("architecture", "mean", "told"),
    [
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", 0.5, False),
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", 0.45, True),
        ("vit_tiny_patch16_224", 0.5, False),
        ("vit_tiny_patch16_224", 0.0, True),
        ("vit_of_my_own", 0.0, False),
        ("my-classifier", 0.0, False),
    ],
)
def test_images_that_are_normalised_otherwise_than_timm_does_are_told(
    architecture: str, mean: float, told: bool
) -> None:
    said = unlike_timm(named(architecture, mean, 0.5))

    assert bool(said) is told
    if told:
        assert f"read with mean {mean:g}, std 0.5; timm's {architecture} was trained with mean 0.5, std 0.5" in said


RECIPE = """\
vitrim: 1
name: known
model: {timm: vit_tiny_patch16_224}
data: {fit: {dataset: digits, share: [0, 0.5]}, train: {dataset: digits, share: [0, 0.5]}}
"""


@pytest.mark.parametrize(
    ("override", "labelled", "told"),
    [
        ("seed=0", True, True),
        ("seed=0", False, False),
        ("measure.known_accuracy=0.75", True, False),
        ("model.pretrained=false", True, False),
        ("steps=[{finetune: {epochs: 1}}]", True, False),
    ],
)
def test_a_recipe_that_knows_nothing_of_its_source_is_warned(
    tmp_path: Path, override: str, labelled: bool, told: bool
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)

    assert told_of_source(load_recipe(path, [override]), labelled) == (UNKNOWN if told else "")


def test_the_recipes_of_a_real_model_say_what_is_known_of_it(root: Path) -> None:
    for path in (root / "recipes").glob("vit_tiny_*.yaml"):
        assert load_recipe(path).measure.known_accuracy == 0.7545, path
