"""Reading timm models: every feature is understood or refused with a reason."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import GluMlp, LayerNormFp32, Mlp, PatchEmbed, RmsNorm, RmsNormFp32, SimpleNorm, SwiGLU, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import (
    DiffAttention,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import nn

from stages.vit.files import build_empty, load_model, save_model
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from stages.vit.timm_reader import read_spec, read_timm
from targets.errors import InputError

TinyTimm = Callable[..., VisionTransformer]

FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_classes": {"num_classes": 0},
    "average_pooling_with_fc_norm": {"global_pool": "avg"},
    "average_pooling_without_fc_norm": {"global_pool": "avg", "fc_norm": False},
    "average_pooling_without_class_token": {"global_pool": "avg", "class_token": False},
    "average_pooling_with_prefix": {"global_pool": "avg", "pool_include_prefix": True},
    "max_pooling": {"global_pool": "max"},
    "average_and_max_pooling": {"global_pool": "avgmax"},
    "token_pooling_with_fc_norm": {"fc_norm": True},
    "no_final_norm": {"final_norm": False},
    "registers": {"reg_tokens": 3},
    "registers_without_class_token": {"reg_tokens": 2, "class_token": False, "global_pool": "avg"},
    "position_without_prefix": {"no_embed_class": True, "reg_tokens": 2},
    "no_position": {"pos_embed": "none"},
    "layer_scale": {"init_values": 1e-5},
    "qk_norm": {"qk_norm": True},
    "attention_norm": {"scale_attn_norm": True},
    "mlp_norm": {"scale_mlp_norm": True},
    "no_qkv_bias": {"qkv_bias": False},
    "no_proj_bias": {"proj_bias": False},
    "clip": {"pre_norm": True, "norm_layer": partial(nn.LayerNorm, eps=1e-5)},
    "fp32_layernorm": {"norm_layer": LayerNormFp32},
    "rmsnorm": {"norm_layer": RmsNorm},
    "rmsnorm_everywhere": {"norm_layer": RmsNorm, "qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True},
    "fp32_rmsnorm": {"norm_layer": RmsNormFp32},
    "tanh_gelu": {"act_layer": "gelu_tanh"},
    "quick_gelu": {"act_layer": "quick_gelu"},
    "relu": {"act_layer": "relu"},
    "packed_swiglu": {"mlp_layer": SwiGLUPacked, "act_layer": "silu"},
    "packed_swiglu_with_norm": {"mlp_layer": SwiGLUPacked, "act_layer": "silu", "scale_mlp_norm": True},
    "glu_with_the_gate_last": {"mlp_layer": GluMlp},
    "separate_swiglu": {"mlp_layer": SwiGLU, "act_layer": "silu", "mlp_ratio": 3.0},
    "separate_swiglu_with_norm": {"mlp_layer": SwiGLU, "act_layer": "silu", "scale_mlp_norm": True},
    "post_norm": {"block_fn": ResPostBlock},
    "post_norm_with_init_values": {"block_fn": ResPostBlock, "init_values": 1e-5},
    "non_square_input": {"img_size": (24, 40)},
    "non_square_patches": {"img_size": (32, 32), "patch_size": (8, 16)},
    "patches_of_14": {"img_size": 42, "patch_size": 14},
    "patches_of_16": {"img_size": 48, "patch_size": 16},
    "patches_of_32": {"img_size": 64, "patch_size": 32},
    "dynamic_image_size": {"dynamic_img_size": True},
    "dynamic_padding": {"dynamic_img_size": True, "dynamic_img_pad": True},
    "training_only": {
        "drop_rate": 0.5,
        "pos_drop_rate": 0.5,
        "patch_drop_rate": 0.5,
        "proj_drop_rate": 0.5,
        "attn_drop_rate": 0.5,
        "drop_path_rate": 0.5,
    },
}

EXPECTED: dict[str, dict[str, Any]] = {
    "no_classes": {"classes": 0},
    "average_pooling_with_fc_norm": {"pooling": "avg", "final_norm_eps": None, "head_norm_eps": 1e-6},
    "average_pooling_without_fc_norm": {"pooling": "avg", "final_norm_eps": 1e-6, "head_norm_eps": None},
    "average_pooling_with_prefix": {"pool_includes_prefix": True},
    "registers": {"register_tokens": 3, "prefix_tokens": 4, "tokens": 20},
    "position_without_prefix": {"position_covers_prefix": False},
    "no_position": {"position": "none"},
    "layer_scale": {"layer_scale": True},
    "qk_norm": {"qk_norm_eps": 1e-6},
    "clip": {"pre_norm_eps": 1e-5, "patch_bias": False, "final_norm_eps": 1e-5},
    "fp32_layernorm": {"norm": "layernorm"},
    "rmsnorm": {"norm": "rmsnorm"},
    "tanh_gelu": {"activation": "gelu_tanh"},
    "quick_gelu": {"activation": "quick_gelu"},
    "packed_swiglu": {"mlp_kind": "glu", "mlp_gate_first": True, "activation": "silu"},
    "glu_with_the_gate_last": {"mlp_kind": "glu", "mlp_gate_first": False},
    "separate_swiglu": {"mlp_kind": "swiglu"},
    "post_norm": {"norm_placement": "post", "layer_scale": False},
    "non_square_input": {"input_shape": (3, 24, 40), "patch_tokens": 15},
    "non_square_patches": {"patch_size": (8, 16), "patch_tokens": 8},
}


def rebuild(spec: ViTSpec, state: dict[str, torch.Tensor]) -> ViT:
    model = build_empty(spec)
    model.load_state_dict(state, assign=True)
    return model.eval()


def images_for(spec: ViTSpec, count: int = 3) -> torch.Tensor:
    return torch.randn(count, *spec.input_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_is_read_so_that_outputs_and_tokens_are_timms(feature: str, tiny_timm: TinyTimm) -> None:
    reference = tiny_timm(**FEATURES[feature])
    spec, state = read_timm(reference, name=feature)
    model, images = rebuild(spec, state), images_for(spec)

    with torch.no_grad():
        torch.testing.assert_close(model(images), reference(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            model.forward_tokens(images), reference.forward_features(images), rtol=1e-5, atol=1e-5
        )
    assert {key: getattr(spec, key) for key in EXPECTED.get(feature, {})} == EXPECTED.get(feature, {})


def test_the_state_of_an_unpruned_model_keeps_timms_names_and_values(tiny_timm: TinyTimm) -> None:
    reference = tiny_timm(reg_tokens=2, init_values=0.1)
    _, state = read_timm(reference, name="small")

    assert state.keys() == reference.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in reference.state_dict().items())


def test_a_half_precision_model_is_read_as_fp32(tiny_timm: TinyTimm) -> None:
    _, state = read_timm(tiny_timm().half(), name="small")

    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_reading_leaves_the_timm_model_as_it_was(tiny_timm: TinyTimm) -> None:
    reference = tiny_timm().train()
    before = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    read_timm(reference, name="small")

    assert reference.training
    assert next(reference.parameters()).dtype == torch.float32
    assert all(torch.equal(before[name], tensor) for name, tensor in reference.state_dict().items())


def test_a_distilled_deit_is_read_with_both_heads_as_one(randomize: Callable[..., nn.Module]) -> None:
    reference = VisionTransformerDistilled(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=7)
    randomize(reference)
    spec, state = read_timm(reference, name="distilled")
    images = images_for(spec)

    assert (spec.pooling, spec.register_tokens, spec.feature_width) == ("token_pair", 1, 64)
    with torch.no_grad():
        torch.testing.assert_close(rebuild(spec, state)(images), reference(images), rtol=1e-5, atol=1e-5)


def test_a_distilled_deit_without_heads_is_refused(randomize: Callable[..., nn.Module]) -> None:
    reference = VisionTransformerDistilled(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0)
    with pytest.raises(InputError, match="distilled DeiT needs both heads"):
        read_timm(randomize(reference), name="distilled")


def test_pruned_widths_of_single_blocks_are_read(tiny_timm: TinyTimm) -> None:
    reference = tiny_timm()
    reference.blocks[1].mlp = Mlp(32, 40, 32)
    reference.blocks[1].attn.num_heads = 2
    reference.blocks[1].attn.attn_dim = 16
    reference.blocks[1].attn.qkv = nn.Linear(32, 48)
    reference.blocks[1].attn.proj = nn.Linear(16, 32)
    spec, _ = read_timm(reference, name="pruned")

    assert [(block.heads, block.mlp_width) for block in spec.blocks] == [(4, 128), (2, 40)]


@pytest.mark.parametrize("fused", [True, False])
def test_the_scale_is_the_one_that_timm_really_uses(fused: bool, tiny_timm: TinyTimm) -> None:
    reference = tiny_timm()
    for block in reference.blocks:
        block.attn.scale = 0.05
        block.attn.fused_attn = fused
    spec, _ = read_timm(reference, name="scaled")

    assert spec.blocks[0].scale == (8**-0.5 if fused else 0.05)


REAL = {
    "vit_tiny_patch16_224": {},
    "deit_tiny_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},
    "vit_medium_patch16_reg4_gap_256": {},
    "vit_base_patch16_siglip_gap_224": {"img_size": 64},
    "vit_xsmall_patch16_clip_224": {},
    "vit_base_patch32_clip_quickgelu_224": {"img_size": 64},
    "vit_small_patch14_dinov2": {"img_size": 42},
    "vit_small_patch14_reg4_dinov2": {"img_size": (56, 84)},
    "vit_giant_patch14_dinov2": {"img_size": 28, "depth": 1},
    "vit_giant_patch14_reg4_dinov2": {"img_size": 28, "embed_dim": 96, "num_heads": 6},
    "vit_giant_patch14_clip_224": {"img_size": 28, "embed_dim": 88, "num_heads": 4},
    "vit_gigantic_patch14_clip_224": {"img_size": 28, "embed_dim": 104, "num_heads": 8},
    "eva02_enormous_patch14_clip_224": {"img_size": 28, "embed_dim": 112},
    "eva_giant_patch14_clip_224": {"img_size": 28, "embed_dim": 88, "num_heads": 4},
    "eva02_tiny_patch14_224": {"img_size": 56},
    "eva02_base_patch16_clip_224": {"img_size": 64, "embed_dim": 96, "num_heads": 6},
    "vit_medium_patch16_rope_reg1_gap_256": {"img_size": 64},
    "vit_small_patch16_rope_mixed_ape_224": {"img_size": 64},
    "vit_small_plus_patch16_dinov3": {"img_size": 64},
    "vit_small_patch8_224": {"img_size": 32},
    "flexivit_small": {},
    "test_vit4": {},
}


@pytest.mark.parametrize("name", REAL)
def test_a_timm_architecture_is_read(name: str) -> None:
    arguments = {"depth": 1, **REAL[name]}
    reference = timm.create_model(name, pretrained=False, **arguments).eval()
    spec, state = read_timm(reference, name=name)
    images = images_for(spec, 1)

    with torch.no_grad():
        torch.testing.assert_close(rebuild(spec, state)(images), reference(images), rtol=1e-4, atol=1e-4)


def test_the_preprocessing_is_that_of_timms_config() -> None:
    with torch.device("meta"):
        reference = timm.create_model("vit_base_patch32_clip_224.openai", depth=1)
    preprocess = read_spec(reference, name="clip").preprocess

    assert (preprocess.crop_share, preprocess.crop_mode, preprocess.interpolation) == (0.9, "center", "bicubic")
    assert preprocess.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert preprocess.std == pytest.approx((0.26862954, 0.26130258, 0.27577711))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "parallel_scaling": ({"block_fn": ParallelScalingBlock}, "blocks are 'ParallelScalingBlock'; known: Block"),
    "parallel_things": ({"block_fn": ParallelThingsBlock}, "blocks are 'ParallelThingsBlock'"),
    "differential_attention": ({"attn_layer": "diff"}, f"attention is {DiffAttention.__name__!r}"),
    "attention_pooling": ({"global_pool": "map"}, "pools by attention .global_pool 'map'."),
    "patch_attention_pooling": ({"global_pool": "prr", "class_token": False}, "pools by attention"),
    "no_pooling": ({"global_pool": "", "num_classes": 0}, "does not pool"),
    "embedding_norm": ({"embed_norm_layer": nn.LayerNorm}, "patch embedding has a norm"),
    "activation": ({"act_layer": "sigmoid"}, "activation is 'Sigmoid'; known: gelu"),
    "one_channel": ({"in_chans": 1}, "reads 1 channels"),
    "no_affine_norm": ({"norm_layer": partial(nn.LayerNorm, elementwise_affine=False)}, "missing .norm.weight|missing"),
    "no_blocks": ({"depth": 0}, "no blocks"),
    "input_no_multiple_of_patch": ({"img_size": 36}, "input 36x36 is not a multiple of the patch 8x8"),
    "another_norm": ({"norm_layer": SimpleNorm}, "norm is 'SimpleNorm'; known: LayerNorm"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_known_is_refused_with_its_name(what: str, tiny_timm: TinyTimm) -> None:
    arguments, reason = REFUSED[what]
    with pytest.raises(InputError, match=reason) as caught:
        read_timm(tiny_timm(**arguments), name="odd")
    assert str(caught.value).startswith("cannot read the timm model 'odd': ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("resnet18", "ResNet"),
        ("swin_tiny_patch4_window7_224", "SwinTransformer"),
        ("vit_relpos_small_patch16_224", "VisionTransformerRelPos"),
    ],
)
def test_another_class_is_refused_with_the_known_ones(name: str, found: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    known = "VisionTransformer, VisionTransformerDistilled, Eva"
    with pytest.raises(InputError, match=f"its class is '{found}'; vitrim reads timm's {known}"):
        read_timm(model, name=name)


def test_a_hybrid_patch_embedding_is_refused() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_r_s16_p8_224", depth=1)
    with pytest.raises(InputError, match="patch embedding is 'HybridEmbed'; known: PatchEmbed"):
        read_timm(model, name="hybrid")


def _swap_block_attribute(name: str, value: nn.Module) -> Callable[[VisionTransformer], None]:
    return lambda model: setattr(model.blocks[1].mlp, name, value)


class _HalvedPatchEmbed(PatchEmbed):  # type: ignore[misc]  # timm has no types
    pass


TAMPERED: dict[str, tuple[Callable[[VisionTransformer], Any], str]] = {
    "a_hook": (
        lambda m: m.norm.register_forward_hook(lambda *args: args[2] * 1.001),
        "does not know: rebuilt, its tokens",
    ),
    "a_hook_on_the_head": (lambda m: m.head.register_forward_hook(lambda *args: args[2] + 0.001), "its outputs differ"),
    "blocks_of_two_kinds": (_swap_block_attribute("act", nn.ReLU()), "its blocks differ in activation"),
    "a_mask_in_attention": (
        lambda m: m.blocks[0].attn.register_forward_pre_hook(lambda module, args: (args[0] * 1.01,)),
        "does not know",
    ),
    "an_extra_parameter": (
        lambda m: m.register_parameter("bias", nn.Parameter(torch.ones(3))),
        "1 not expected .bias.",
    ),
    "a_stride": (lambda m: setattr(m.patch_embed.proj, "stride", (4, 4)), "overlap or leave gaps"),
    "mixed_norms": (lambda m: setattr(m, "norm", RmsNorm(32)), "mixes norms: layernorm, rmsnorm"),
    "one_qk_norm": (lambda m: setattr(m.blocks[0].attn, "q_norm", nn.LayerNorm(8)), "q_norm and k_norm differ"),
    "a_deeper_head": (lambda m: setattr(m, "head", nn.Sequential(nn.Linear(32, 7))), "its head is 'Sequential'"),
    "another_patch_embedding": (
        lambda m: setattr(m.patch_embed, "__class__", _HalvedPatchEmbed),
        "patch embedding is '_HalvedPatchEmbed'",
    ),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_model_that_computes_something_else_is_never_misread(how: str, tiny_timm: TinyTimm) -> None:
    tamper, reason = TAMPERED[how]
    model = tiny_timm()
    tamper(model)
    with pytest.raises(InputError, match=reason):
        read_timm(model, name="tampered")


def test_a_wrong_formula_behind_a_tiny_layer_scale_is_noticed(tiny_timm: TinyTimm) -> None:
    model = tiny_timm(init_values=1e-5)
    for block in model.blocks:
        block.ls1.gamma.data.fill_(1e-5)
    model.blocks[0].attn.register_forward_hook(lambda *args: args[2] * 1.001)
    with pytest.raises(InputError, match="does not know"):
        read_timm(model, name="tiny gamma")


@pytest.mark.parametrize("feature", ["plain", "registers", "packed_swiglu", "clip", "post_norm", "no_classes"])
def test_a_model_that_was_read_survives_saving_bit_for_bit(feature: str, tiny_timm: TinyTimm, tmp_path: Any) -> None:
    spec, state = read_timm(tiny_timm(**FEATURES[feature]), name=feature)
    save_model(tmp_path, spec, state)
    images = images_for(spec)

    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(images), rebuild(spec, state)(images))
