"""The stage as the pipeline runs it: another input size for the same weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError

from stages.resize_input.options import ResizeInputOptions, reshaped
from stages.resize_input.resize import resized
from stages.resize_input.stage import STAGE
from stages.stage import StageContext
from stages.vit.counts import count_macs
from stages.vit.files import load_labels, load_model, load_spec, load_state, save_model
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from stages.vit.timm_reader import read_timm
from targets.errors import InputError
from targets.preprocess import Preprocess

MakeSpec = Callable[..., ViTSpec]


def options(size: int | tuple[int, int]) -> ResizeInputOptions:
    return ResizeInputOptions.model_validate({"size": size})


@pytest.fixture
def run(tmp_path: Path, tiny_spec: MakeSpec) -> Callable[..., tuple[Path, Path, dict[str, Any]]]:
    """run(size, spec changes...): source folder, output folder, facts."""

    def resize(size: int | tuple[int, int], **changes: Any) -> tuple[Path, Path, dict[str, Any]]:
        spec = tiny_spec(preprocess=Preprocess(height=32, width=32), **changes)
        torch.manual_seed(0)
        save_model(tmp_path / "source", spec, ViT(spec.model_dump(mode="json")).state_dict(), labels=list("abcd"))
        (tmp_path / "output").mkdir()
        context = StageContext(
            input=tmp_path / "source",
            source=tmp_path / "source",
            output=tmp_path / "output",
            scratch=tmp_path,
            images={},
        )
        return context.input, context.output, dict(STAGE.run(options(size), context).facts)

    return resize


@pytest.mark.parametrize("size", [24, 16, 48, (16, 24)])
def test_a_resized_folder_reads_pictures_of_the_new_size(run: Any, size: Any) -> None:
    source, output, facts = run(size)

    height, width = size if isinstance(size, tuple) else (size, size)
    spec = load_spec(output)
    assert (spec.preprocess.height, spec.preprocess.width) == (height, width)
    assert reshaped(options(size), load_spec(source)) == spec
    assert load_model(output)(torch.zeros(2, 3, height, width)).shape == (2, 4)
    assert load_labels(output) == list("abcd")
    assert facts["macs"]["after"] == count_macs(spec)
    assert facts["tokens"] == {"before": 17, "after": 1 + height * width // 64}
    before, after = load_state(source), load_state(output)
    assert all(torch.equal(before[name], after[name]) for name in before if name != "pos_embed")


def test_the_same_size_changes_nothing(run: Any) -> None:
    source, output, _ = run(32)

    assert load_spec(output) == load_spec(source)
    assert all(torch.equal(one, load_state(output)[name]) for name, one in load_state(source).items())


@pytest.mark.parametrize(("name", "side"), [("vit_tiny_patch16_224", 64), ("vit_small_patch14_reg4_dinov2", 56)])
def test_answers_are_those_of_timm_at_that_size(name: str, side: int) -> None:
    arguments = {"embed_dim": 48, "num_heads": 3, "depth": 2, "num_classes": 7}
    torch.manual_seed(0)
    large = timm.create_model(name, img_size=2 * side, **arguments).eval()
    torch.nn.init.normal_(large.pos_embed, std=0.5)
    spec, state = read_timm(large, name=name)
    small = timm.create_model(name, img_size=side, **arguments).eval()
    position = timm.layers.resample_abs_pos_embed(
        large.pos_embed.data,
        new_size=list(small.patch_embed.grid_size),
        num_prefix_tokens=0 if small.no_embed_class else small.num_prefix_tokens,
    )
    small.load_state_dict({**large.state_dict(), "pos_embed": position})
    after = reshaped(options(side), spec)
    mine = ViT(after.model_dump(mode="json")).eval()
    mine.load_state_dict(resized(state, spec, after))
    picture = torch.randn(2, 3, side, side)

    with torch.no_grad():
        assert torch.allclose(mine(picture), small(picture), atol=1e-5)


def test_sizes_that_no_patches_fill_are_refused(run: Any) -> None:
    with pytest.raises(InputError, match="size 30x30 is no multiple of the patch 8x8; near it is 32x32"):
        run(30)


def test_models_that_merge_already_are_refused(run: Any) -> None:
    with pytest.raises(InputError, match="put resize_input before merge_tokens"):
        run(16, merge=(2, 2))


def test_rotary_positions_are_refused(run: Any) -> None:
    with pytest.raises(InputError, match=r"rotary positions.*model\.image_size"):
        run(16, rope=True)


@pytest.mark.parametrize("size", [0, -16, True, "large", [224], [224, 0], [1, 2, 3]])
def test_other_sizes_are_no_options(size: object) -> None:
    with pytest.raises(ValidationError):
        ResizeInputOptions.model_validate({"size": size})
