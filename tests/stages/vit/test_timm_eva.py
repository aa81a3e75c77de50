"""timm's Eva: fused and separate projections, rotary positions of every kind, and the sizes that papers print."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import RmsNorm
from timm.models.eva import Eva
from torch import nn

from stages.prune_mlp.options import PruneMlpOptions, reshaped
from stages.vit import timm_eva
from stages.vit.counts import count_macs, count_params, params_by_part
from stages.vit.files import build_empty, load_model, save_model
from stages.vit.spec import ViTSpec
from stages.vit.timm_reader import read_spec, read_timm
from targets.errors import InputError

Randomize = Callable[..., nn.Module]
SMALL: dict[str, Any] = {
    "img_size": (24, 40),
    "patch_size": 8,
    "num_classes": 5,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
}
ROPE: dict[str, Any] = {"use_rot_pos_emb": True}
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "post_norm": {"use_post_norm": True, "global_pool": "token"},
    "no_qkv_bias": {"qkv_bias": False},
    "separate_projections": {"qkv_fused": False},
    "separate_projections_without_bias": {"qkv_fused": False, "qkv_bias": False},
    "attention_norm": {"scale_attn_inner": True},
    "packed_swiglu": {"swiglu_mlp": True},
    "aligned_swiglu": {"swiglu_mlp": True, "swiglu_align_to": 8},
    "swiglu_with_norm": {"swiglu_mlp": True, "scale_mlp": True},
    "mlp_norm": {"scale_mlp": True},
    "layer_scale": {"init_values": 1e-5},
    "layer_scale_of_attention_alone": {"init_values": 1e-5, "attn_only_layer_scale": True},
    "clip": {"use_pre_transformer_norm": True},
    "no_position": {"use_abs_pos_emb": False},
    "registers": {"num_reg_tokens": 3, "no_embed_class": True},
    "no_class_token": {"class_token": False},
    "rms_norm": {"norm_layer": RmsNorm, "qk_norm": True},
    "rope": ROPE,
    "rope_alone": {**ROPE, "use_abs_pos_emb": False},
    "rope_eva02": {**ROPE, "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "ref_feat_shape": (4, 4)},
    "rope_with_registers": {**ROPE, "num_reg_tokens": 2, "no_embed_class": True},
    "rope_half": {**ROPE, "rope_rotate_half": True},
    "rope_by_columns": {**ROPE, "rope_grid_indexing": "xy", "rope_grid_offset": 1.0},
    "rope_other_attention": {**ROPE, "attn_type": "rope"},
    "rope_other_attention_apart": {**ROPE, "attn_type": "rope", "qkv_fused": False},
    "rope_with_qk_norm": {**ROPE, "qk_norm": True},
    "rope_mixed": {**ROPE, "rope_type": "mixed"},
    "rope_mrope": {**ROPE, "rope_type": "mrope", "embed_dim": 128},
    "rope_dinov3": {**ROPE, "rope_type": "dinov3", "rope_rotate_half": True},
    "rope_dinov3_dynamic": {**ROPE, "rope_type": "dinov3", "dynamic_img_size": True},
    "rope_dynamic": {**ROPE, "dynamic_img_size": True},
    "rope_post_norm": {**ROPE, "use_post_norm": True},
}


@pytest.fixture
def tiny_eva(randomize: Randomize) -> Callable[..., Eva]:
    """tiny_eva(qkv_fused=False, ...): 15 patches, two blocks, weights that all matter."""

    def make(**changes: Any) -> Eva:
        model = Eva(**{**SMALL, **changes})
        randomize(model)
        return model

    return make


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_is_read_so_that_outputs_and_tokens_are_timms(feature: str, tiny_eva: Callable[..., Eva]) -> None:
    reference = tiny_eva(**FEATURES[feature])
    spec, state = read_timm(reference, name=feature)
    model = build_empty(spec)
    model.load_state_dict(state, assign=True)
    images = torch.randn(3, 3, 24, 40, generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), reference(images), rtol=1e-5, atol=1e-5)
    assert spec.rope is ("rope" in feature)
    assert spec.rope_per_head is ("mixed" in feature)


@pytest.mark.parametrize("feature", ["rope_eva02", "rope_mixed", "rope_dinov3"])
def test_a_model_with_rotary_positions_survives_saving(
    feature: str, tiny_eva: Callable[..., Eva], tmp_path: Path
) -> None:
    spec, state = read_timm(tiny_eva(**FEATURES[feature]), name=feature)
    save_model(tmp_path, spec, state)
    images = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    before = build_empty(spec)
    before.load_state_dict(state, assign=True)

    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(images), before.eval()(images))


def test_positions_that_do_not_turn_are_noticed(tiny_eva: Callable[..., Eva], monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm_eva._tables
    monkeypatch.setattr(timm_eva, "_tables", lambda model: real(model).flip(3))

    with pytest.raises(InputError, match="it computes something vitrim does not know"):
        read_timm(tiny_eva(**ROPE), name="turned")


def test_neighbours_that_are_not_brought_apart_are_noticed(
    tiny_eva: Callable[..., Eva], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm_eva, "_halves", lambda state, prefix, attention, table: table)

    with pytest.raises(InputError, match="it computes something vitrim does not know"):
        read_timm(tiny_eva(**ROPE), name="neighbours")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 1}, "share keys and values"),
        ({"global_pool": "map"}, "pools by attention"),
    ],
)
def test_what_is_not_known_is_refused(changes: dict[str, Any], reason: str, tiny_eva: Callable[..., Eva]) -> None:
    with pytest.raises(InputError, match=reason):
        read_timm(tiny_eva(**changes), name="odd")


@pytest.mark.parametrize(
    ("changes", "rotatable"), [({}, True), (ROPE, False), ({"qk_norm": True}, False), ({"swiglu_mlp": True}, True)]
)
def test_q_and_k_may_be_turned_where_nothing_sees_their_channels(
    changes: dict[str, Any], rotatable: bool, tiny_eva: Callable[..., Eva]
) -> None:
    assert read_spec(tiny_eva(**changes), name="eva").rotatable_qk is rotatable


def test_rotary_positions_exclude_odd_widths_and_merging(tiny_eva: Callable[..., Eva]) -> None:
    spec = read_spec(tiny_eva(**ROPE), name="eva")

    with pytest.raises(ValueError, match="must be even"):
        spec.replace(blocks=tuple(block.replace(d_qk=7) for block in spec.blocks))
    with pytest.raises(ValueError, match="cannot be merged"):
        spec.replace(merge=(2, 2))


# Sizes, in millions of parameters, as arXiv 2506.08591 and its repository give them for r = 1 at 224 px. A CLIP tower
# is counted with its projection, which timm calls the head; the others without their classifier.
SIZES = {
    "eva02_enormous_patch14_clip_224": (1024, 4351, 1238),
    "vit_giant_patch14_clip_224": (1024, 1013, 479),
    "vit_gigantic_patch14_clip_224": (1280, 1845, 802),
    "vit_giant_patch14_dinov2": (0, 1135, 663),
    "vit_giant_patch14_reg4_dinov2": (0, 1135, 663),
    "vit_base_patch16_224": (0, 85.8, 43.3),
}


def spec_on_meta(name: str, classes: int) -> ViTSpec:
    with torch.device("meta"):
        size = {"img_size": 224} if "dinov2" in name else {}
        return read_spec(timm.create_model(name, num_classes=classes, **size), name=name)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_before_and_after_are_the_papers(name: str) -> None:
    projection, before, after = SIZES[name]
    spec = spec_on_meta(name, projection)
    pruned = reshaped(PruneMlpOptions(method="dgmr", r=1, repair="none"), spec)

    digits = 1 if before < 100 else 0
    assert round(count_params(spec) / 1e6, digits) == before
    assert round(count_params(pruned) / 1e6, digits) == after
    assert {block.mlp_width for block in pruned.blocks} == {spec.width}


@pytest.mark.parametrize(("r", "params", "macs"), [(None, 7526.8, 1950), (1, 3231.3, 846), (2, 4305.1, 1122)])
def test_a_tower_like_eva_clip_8b_shrinks_as_in_the_paper(r: int | None, params: float, macs: float) -> None:
    """In millions of parameters, and billions of multiply-accumulates at 224 px; timm has no model of this name."""
    shape: dict[str, Any] = {"patch_size": 14, "embed_dim": 4096, "depth": 32, "num_heads": 32, "mlp_ratio": 5.0}
    with torch.device("meta"):
        tower = Eva(img_size=224, num_classes=1280, norm_layer=RmsNorm, global_pool="token", **shape)
        spec = read_spec(tower, name="eva_clip_8b")
    if r is not None:
        spec = reshaped(PruneMlpOptions(method="dgmr", r=r, repair="none"), spec)

    assert count_params(spec) / 1e6 == pytest.approx(params, rel=2e-4)
    assert count_macs(spec) / 1e9 == pytest.approx(macs, rel=2e-3)


@pytest.mark.parametrize("name", ["vit_giant_patch14_clip_224", "vit_giant_patch14_dinov2"])
def test_the_count_of_a_big_model_is_timms(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7)

    assert count_params(read_spec(model, name=name)) == sum(tensor.numel() for tensor in model.parameters())


def test_the_zero_bias_of_keys_is_all_that_is_counted_beyond_timm() -> None:
    with torch.device("meta"):
        model = timm.create_model("eva02_enormous_patch14_clip_224", num_classes=0)
    spec = read_spec(model, name="eva")

    assert sum(params_by_part(spec).values()) == sum(one.numel() for one in model.parameters()) + 64 * 1792
