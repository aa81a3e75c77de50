"""Parameters and MACs from the spec: as counted on modules, and as published. Random specs: test_model.py."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from stages.vit.counts import attention_macs, count_macs, count_params, macs_by_part, mlp_macs, params_by_part
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from stages.vit.timm_reader import read_spec
from targets.preprocess import Preprocess

MakeSpec = Callable[..., ViTSpec]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {},
    "deit_small_patch16_224": {},
    "deit3_small_patch16_224": {"num_classes": 10},
    "vit_medium_patch16_reg4_gap_256": {},
    "vit_base_patch32_clip_quickgelu_224": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_giant_patch14_dinov2": {"img_size": 224},
    "vit_base_patch16_siglip_gap_224": {},
    "vit_base_patch16_rpn_224": {"pos_embed": "none"},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_timm_architecture_is_counted_as_torch_counts_it(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **ARCHITECTURES[name]).eval()
    for block in model.blocks:
        block.attn.fused_attn = False
    spec = read_spec(model, name=name)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *spec.input_shape, device="meta"))

    assert count_params(spec) == sum(parameter.numel() for parameter in model.parameters())
    assert count_macs(spec) == counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("name", "params_m", "macs_g"),
    # DeiT paper, table 1 (arXiv 2012.12877); MACs of the same models as in attention pruning papers.
    [
        ("deit_tiny_patch16_224", 5.7, 1.26),
        ("deit_small_patch16_224", 22.05, 4.61),
        ("deit_base_patch16_224", 86.6, 17.6),
    ],
)
def test_the_figures_of_deit_are_the_published_ones(name: str, params_m: float, macs_g: float) -> None:
    with torch.device("meta"):
        spec = read_spec(timm.create_model(name), name=name)

    assert count_params(spec) / 1e6 == pytest.approx(params_m, rel=0.01)
    assert count_macs(spec) / 1e9 == pytest.approx(macs_g, rel=0.01)


def test_one_block_of_deit_base_has_the_macs_of_the_formula() -> None:
    with torch.device("meta"):
        spec = read_spec(timm.create_model("deit_base_patch16_224"), name="deit")
    block = spec.blocks[0]

    assert attention_macs(spec, block) / 1e6 == pytest.approx(464.8 + 59.6, abs=0.1)
    assert mlp_macs(spec, block) / 1e6 == pytest.approx(929.5, abs=0.1)


def test_the_parts_add_up(make_spec: MakeSpec) -> None:
    spec = make_spec(layer_scale=True, qk_norm_eps=1e-6)
    model = ViT(spec.model_dump(mode="json"))
    names = {name: parameter.numel() for name, parameter in model.named_parameters()}

    def total(*fragments: str) -> int:
        return sum(count for name, count in names.items() if any(fragment in name for fragment in fragments))

    assert params_by_part(spec) == {
        "embedding": total("patch_embed", "cls_token", "pos_embed"),
        "attention": total(".attn.", ".ls1."),
        "mlp": total(".mlp.", ".ls2."),
        "norm": total("blocks.0.norm", "blocks.1.norm") + 2 * spec.width,
        "head": total("head."),
    }
    assert sum(macs_by_part(spec).values()) == count_macs(spec)


def test_the_figures_of_vit_base_are_those_of_the_literature(make_spec: MakeSpec) -> None:
    block = {"heads": 12, "d_qk": 64, "d_v": 64, "scale": 0.125, "mlp_width": 3072}
    spec = make_spec(
        preprocess=Preprocess(height=224, width=224), patch_size=(16, 16), width=768, classes=0, block=block
    )
    spec = spec.replace(blocks=spec.blocks[:1] * 12)

    assert count_params(spec) == 85_798_656  # timm, headless
    assert count_macs(spec) / 1e9 == pytest.approx(17.56, abs=0.02)  # DeiT-B, 17.6 G in most papers


def test_what_is_off_costs_nothing(make_spec: MakeSpec) -> None:
    spec = make_spec(block={"attention": "off", "mlp": False})

    assert params_by_part(spec)["attention"] == params_by_part(spec)["mlp"] == 0
    assert macs_by_part(spec)["attention"] == macs_by_part(spec)["mlp"] == 0
    assert params_by_part(spec)["norm"] == 2 * spec.width  # the final norm
