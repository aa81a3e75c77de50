"""The stage as the pipeline runs it: what it refuses before any work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.data.images import ImageSet
from stages.prune.options import BlockShape, PruneOptions
from stages.prune.stage import STAGE
from stages.stage import Role, StageContext
from stages.vit.files import load_spec
from stages.vit.spec import WEIGHTS_FILE, ViTSpec
from targets.errors import InputError


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"mlp_width": 16}, {}, r"6 images have 30 tokens, .* 64 neurons; give at least 13 .* better 128"),
        ({"d_v": 6}, {}, r"6 images have 30 tokens, .* 32 inputs of proj; give at least 7 .* better 64"),
        ({"d_v": 6}, {"repair": "none"}, "32 inputs of proj"),
        ({"d_qk": 6}, {}, "32 inputs of proj"),
    ],
)
def test_too_few_images_are_refused_before_the_weights_are_read(
    change: dict[str, int],
    options: dict[str, Any],
    words: str,
    tiny_spec: Callable[..., ViTSpec],
    tiny_folder: Callable[..., Path],
    colours: Callable[..., ImageSet],
    train_context: Callable[..., StageContext],
) -> None:
    folder = tiny_folder(tiny_spec())
    (folder / WEIGHTS_FILE).unlink()

    with pytest.raises(InputError, match=words):
        run(change, options, folder, colours(6), train_context)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({"mlp_width": 0}, {}),
        ({"d_v": 6}, {"repair": "none", "attention_method": "magnitude"}),
        ({"heads": 0, "d_qk": 0, "d_v": 0}, {}),
    ],
    ids=["MLP off", "by weights", "attention off"],
)
def test_few_images_do_where_no_layer_is_fitted_on_them(
    change: dict[str, int],
    options: dict[str, Any],
    tiny_spec: Callable[..., ViTSpec],
    tiny_folder: Callable[..., Path],
    colours: Callable[..., ImageSet],
    train_context: Callable[..., StageContext],
) -> None:
    folder = tiny_folder(tiny_spec())

    context = run(change, options, folder, colours(6), train_context)

    block = load_spec(context.output).blocks[1]
    assert {name: getattr(block, name) for name in change} == change


def run(
    change: dict[str, int],
    options: dict[str, Any],
    folder: Path,
    images: ImageSet,
    train_context: Callable[..., StageContext],
) -> StageContext:
    shapes = [BlockShape.of(block) for block in load_spec(folder).blocks]
    shapes[1] = shapes[1].replace(**change)
    asked = PruneOptions.model_validate({"blocks": shapes, **options})
    base = train_context(folder, images)
    context = StageContext(
        input=base.input, source=base.source, output=base.output, scratch=base.scratch, images={Role.FIT: images}
    )
    STAGE.run(asked, context)
    return context
