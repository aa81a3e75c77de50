"""The stage as the pipeline runs it, and what its options ask of the blocks."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.merge_tokens.options import MergeTokensOptions, reshaped, schedule, schedules
from stages.merge_tokens.stage import STAGE
from stages.stage import StageContext
from stages.vit.counts import count_macs
from stages.vit.files import load_labels, load_model, load_spec, load_state, save_model
from stages.vit.model import ViT
from stages.vit.spec import BlockSpec, ViTSpec
from targets.errors import InputError
from targets.preprocess import Preprocess

MakeSpec = Callable[..., ViTSpec]


@pytest.fixture(scope="session")
def vit_tiny() -> ViTSpec:
    """The shape of ViT-Tiny at 224: 12 blocks, 196 patches, a class token."""
    block = {"heads": 3, "d_qk": 64, "d_v": 64, "scale": 0.125, "mlp_width": 768, "norm1_eps": 1e-6, "norm2_eps": 1e-6}
    return ViTSpec.model_validate(
        {
            "architecture": "vit_tiny",
            "preprocess": Preprocess(height=224, width=224),
            "patch_size": (16, 16),
            "width": 192,
            "classes": 1000,
            "blocks": (block,) * 12,
        }
    )


@pytest.fixture
def run(tmp_path: Path, tiny_spec: MakeSpec) -> Callable[..., tuple[Path, Path, dict[str, Any]]]:
    """run(options, spec changes...): source folder, output folder, facts."""

    def merge(options: MergeTokensOptions, **changes: Any) -> tuple[Path, Path, dict[str, Any]]:
        spec = tiny_spec(preprocess=Preprocess(height=32, width=32), depth=3, **changes)
        torch.manual_seed(0)
        save_model(tmp_path / "source", spec, ViT(spec.model_dump(mode="json")).state_dict(), labels=list("abcd"))
        (tmp_path / "output").mkdir(exist_ok=True)
        context = StageContext(
            input=tmp_path / "source",
            source=tmp_path / "source",
            output=tmp_path / "output",
            scratch=tmp_path,
            images={},
        )
        return tmp_path / "source", tmp_path / "output", dict(STAGE.run(options, context).facts)

    return merge


def test_only_the_spec_changes(run: Any) -> None:
    source, output, facts = run(MergeTokensOptions(counts=(4, 0, 3), proportional=False))

    before, after = load_spec(source), load_spec(output)
    assert after == before.replace(merge=(4, 0, 3), merge_proportional=False)
    assert (output / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert load_labels(output) == list("abcd")
    assert load_model(output)(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    assert facts["tokens"] == [17, 13, 13, 10]
    assert facts["macs"] == {"before": count_macs(before), "after": count_macs(after)}
    saved = round(100 * (1 - count_macs(after) / count_macs(before)))
    assert facts["summary"] == f"17 tokens become 10 over 3 blocks, {saved} % fewer MACs"


def test_the_plan_knows_the_shape_beforehand(run: Any) -> None:
    options = MergeTokensOptions(keep=0.5)
    source, output, _ = run(options)

    assert STAGE.reshape is not None
    assert STAGE.reshape(options, load_spec(source)) == load_spec(output)
    assert STAGE.roles(options) == ()


def test_nothing_merged_computes_the_same(run: Any) -> None:
    source, output, _ = run(MergeTokensOptions(r=0))
    images = torch.randn(2, 3, 32, 32)

    assert torch.equal(load_model(output)(images), load_model(source)(images))
    assert load_state(output).keys() == load_state(source).keys()


def test_blocks_judged_by_tokens_are_named(run: Any, tiny_spec: MakeSpec) -> None:
    block = tiny_spec().blocks[0]
    _, _, facts = run(MergeTokensOptions(r=2), blocks=(block, block.replace(attention="off"), block))
    assert facts["blocks_by_tokens"] == [1]


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({}, [6, 7, 6, 7, 6, 7, 6, 7, 6, 7, 6, 7]),
        ({"keep": 1.0}, [0] * 12),
        ({"keep": 0.5}, [8, 8, 8, 8, 8, 9, 8, 8, 8, 8, 8, 9]),
        ({"r": 13}, [13] * 12),
        ({"r": 8, "inflect": -1}, [16, 15, 13, 11, 11, 9, 7, 5, 5, 3, 1, 0]),
        ({"counts": [98] + [0] * 11}, [98] + [0] * 11),
    ],
)
def test_schedules(options: dict[str, Any], counts: list[int], vit_tiny: ViTSpec) -> None:
    found = schedule(MergeTokensOptions.model_validate(options), vit_tiny)

    if "inflect" in options:
        assert sum(found) == sum(counts) == 96
        assert all(abs(one - other) <= 1 for one, other in zip(found, counts, strict=True))
    else:
        assert list(found) == counts


@given(r=st.integers(0, 30), inflect=st.floats(-1, 1), depth=st.integers(1, 30))
def test_a_bent_schedule_has_r_as_its_mean_and_runs_one_way(r: int, inflect: float, depth: int) -> None:
    block = {"heads": 1, "d_qk": 1, "d_v": 1, "scale": 1, "mlp_width": 1, "norm1_eps": 1e-6, "norm2_eps": 1e-6}
    spec = ViTSpec.model_validate(
        {
            "architecture": "wide",
            "preprocess": Preprocess(height=8192, width=8192),  # so many patches that every schedule fits
            "patch_size": (16, 16),
            "width": 1,
            "classes": 1,
            "blocks": (block,) * depth,
        }
    )
    counts = schedule(MergeTokensOptions(r=r, inflect=inflect), spec)

    assert sum(counts) == r * depth
    assert all(0 <= count <= 2 * r for count in counts)
    rises = [after - before for before, after in pairwise(counts)]
    assert all(rise <= 1 for rise in rises) if inflect <= 0 else all(rise >= -1 for rise in rises)
    if depth > 1 and abs(inflect) == 1:
        assert abs(counts[0] - r * (1 - inflect)) <= 1


@given(keep=st.floats(0.001, 1), depth=st.integers(1, 12), side=st.integers(1, 14))
def test_keep_says_what_is_left_or_the_message_says_what_can_be(keep: float, depth: int, side: int) -> None:
    spec = _spec(depth=depth, side=side)
    try:
        after = reshaped(MergeTokensOptions(keep=keep), spec)
    except InputError as error:
        possible = float(str(error).split("keep can be down to ")[1].split(" ")[0])
        after = reshaped(MergeTokensOptions(keep=possible), spec)
        assume(possible > keep)
        return
    left = after.tokens_in(depth) - after.prefix_tokens
    assert left == max(1, round(keep * side * side))
    assert max(after.merge) - min(after.merge) <= 1


def _spec(*, depth: int, side: int) -> ViTSpec:
    block = {"heads": 1, "d_qk": 1, "d_v": 1, "scale": 1, "mlp_width": 1, "norm1_eps": 1e-6, "norm2_eps": 1e-6}
    return ViTSpec.model_validate(
        {
            "architecture": "small",
            "preprocess": Preprocess(height=16 * side, width=16 * side),
            "patch_size": (16, 16),
            "width": 1,
            "classes": 1,
            "blocks": (block,) * depth,
        }
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": [1, 2]}, "counts has 2 entries, the model has 12 blocks"),
        (
            {"counts": [99] + [0] * 11},
            "counts: block 0 cannot merge 99 of its 196 patch tokens; allowed: up to 98, half of them$",
        ),
        ({"r": 16}, r"r 16: block 11 cannot merge 16 of its 20 patch tokens; .*r can be up to 15 here"),
        ({"keep": 0.01}, r"keep 0\.01: block 11 cannot merge 17 .*keep can be down to 0\.0\d+ here"),
    ],
)
def test_more_than_half_is_refused_with_what_is_possible(
    options: dict[str, Any], message: str, vit_tiny: ViTSpec
) -> None:
    with pytest.raises(InputError, match=message):
        reshaped(MergeTokensOptions.model_validate(options), vit_tiny)


def test_merging_twice_is_refused(vit_tiny: ViTSpec) -> None:
    once = reshaped(MergeTokensOptions(r=2), vit_tiny)

    with pytest.raises(InputError, match="merges tokens already"):
        reshaped(MergeTokensOptions(r=2), once)


@pytest.mark.parametrize(
    "given_",
    [
        {"keep": 0},
        {"keep": 1.2},
        {"r": -1},
        {"r": 3, "inflect": 2},
        {"counts": [-1]},
        {"metric": "values"},
        {"kep": 0.5},
        {"keep": 0.5, "r": 3},
        {"r": 3, "counts": [1]},
        {"inflect": -1},
    ],
)
def test_options_that_make_no_sense_are_refused(given_: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MergeTokensOptions.model_validate(given_)


def test_the_default_written_out_is_the_same_option() -> None:
    assert MergeTokensOptions().digest() == MergeTokensOptions(keep=0.6).digest()


@given(keep=st.floats(0.05, 0.99), depth=st.integers(1, 14), side=st.integers(2, 16))
def test_every_schedule_that_a_search_tries_is_legal_and_leaves_as_many(keep: float, depth: int, side: int) -> None:
    block = BlockSpec(heads=1, d_qk=8, d_v=8, scale=0.3, mlp_width=8, norm1_eps=1e-6, norm2_eps=1e-6)
    spec = ViTSpec(
        architecture="any",
        preprocess=Preprocess(height=8 * side, width=8 * side),
        patch_size=(8, 8),
        width=8,
        classes=2,
        blocks=(block,) * depth,
    )

    for counts in schedules(keep, spec):
        merged = reshaped(MergeTokensOptions(counts=counts), spec)
        assert merged.tokens_in(depth) - merged.prefix_tokens == max(1, round(keep * side**2))


def test_a_search_tries_even_schedules_and_single_blocks(tiny_spec: MakeSpec) -> None:
    spec = tiny_spec(preprocess=Preprocess(height=64, width=64), depth=6)

    assert schedules(0.5, spec) == (
        (5, 5, 6, 5, 5, 6),
        (32, 0, 0, 0, 0, 0),
        (0, 32, 0, 0, 0, 0),
        (0, 0, 32, 0, 0, 0),
        (0, 0, 0, 32, 0, 0),
    )
    assert schedules(0.25, spec)[1] == (32, 16, 0, 0, 0, 0)
