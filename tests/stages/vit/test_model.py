"""The module: any pruned shape computes what its spec says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stages.vit.counts import count_macs, count_params
from stages.vit.files import build_empty
from stages.vit.model import Attention, ViT
from stages.vit.spec import BlockSpec, ViTSpec
from targets.preprocess import Preprocess

MakeSpec = Callable[..., ViTSpec]
MakeModel = Callable[..., ViT]

eps = st.sampled_from([None, 1e-6])
widths = st.integers(1, 9)
blocks = st.builds(
    BlockSpec,
    attention=st.sampled_from(["on", "diluting", "off"]),
    heads=st.integers(1, 3),
    d_qk=widths,
    d_v=widths,
    scale=st.floats(0.01, 2),
    mlp=st.booleans(),
    mlp_width=widths,
    norm1_eps=st.just(1e-6),
    norm2_eps=st.just(1e-5),
)


@st.composite
def specs(draw: st.DrawFn) -> ViTSpec:
    class_token, registers = draw(st.booleans()), draw(st.integers(0, 2))
    poolings = (
        ["avg", "max", "avgmax"]
        + ["token", "token_avg"] * class_token
        + ["token_pair"] * (class_token + registers >= 2)
    )
    flags = (
        "mlp_gate_first patch_bias qkv_bias proj_bias fc1_bias fc2_bias layer_scale position_covers_prefix "
        "pool_includes_prefix head_bias"
    )
    norms = "mlp_norm_eps attention_norm_eps qk_norm_eps pre_norm_eps final_norm_eps head_norm_eps"
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    patches, merge = rows * columns, []
    drawn = tuple(draw(st.lists(blocks, max_size=3)))
    for _ in drawn:
        merge.append(draw(st.integers(0, patches // 2)))
        patches -= merge[-1]
    return ViTSpec.model_validate(
        {
            "architecture": "random",
            "preprocess": Preprocess(height=4 * rows, width=2 * columns),
            "patch_size": (4, 2),
            "width": draw(st.integers(2, 12)),
            "classes": draw(st.integers(0, 3)),
            "norm": draw(st.sampled_from(["layernorm", "rmsnorm"])),
            "norm_placement": draw(st.sampled_from(["pre", "post"])),
            "activation": draw(st.sampled_from(["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"])),
            "mlp_kind": draw(st.sampled_from(["mlp", "glu", "swiglu"])),
            "position": draw(st.sampled_from(["absolute", "none"])),
            "class_token": class_token,
            "register_tokens": registers,
            "pooling": draw(st.sampled_from(poolings)),
            **{flag: draw(st.booleans()) for flag in flags.split()},
            **{norm: draw(eps) for norm in norms.split()},
            "blocks": drawn,
            "merge": draw(st.sampled_from([(), tuple(merge)])),
            "merge_metric": draw(st.sampled_from(["keys", "tokens"])),
            "merge_proportional": draw(st.booleans()),
        }
    )


def build(spec: ViTSpec) -> ViT:
    return ViT(spec.model_dump(mode="json")).eval()


def images_for(spec: ViTSpec, count: int = 2) -> Tensor:
    return torch.randn(count, *spec.input_shape, generator=torch.Generator().manual_seed(0))


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(spec=specs())
def test_any_spec_builds_runs_and_is_counted_right(spec: ViTSpec) -> None:
    model = build(spec)
    with torch.no_grad():
        outputs = model.outputs(images_for(spec), model.output_names)
        result = model(images_for(spec))

    assert result.shape == (2, spec.classes or spec.feature_width)
    assert torch.isfinite(result).all()
    assert outputs["features"].shape == (2, spec.feature_width)
    assert outputs["patch_tokens"].shape == (2, spec.patch_tokens - sum(spec.merge), spec.width)
    assert model.forward_tokens(images_for(spec)).shape == (2, spec.tokens_in(len(spec.blocks)), spec.width)
    assert count_params(spec) == sum(parameter.numel() for parameter in model.parameters())
    assert count_macs(spec) == counted_macs(spec)


def counted_macs(spec: ViTSpec) -> int:
    """What torch counts on the module, half of its flops."""
    model = build_empty(spec).eval()
    for module in model.modules():
        if isinstance(module, Attention):
            module.fused = False
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *spec.input_shape, device="meta"))
    return counter.get_total_flops() // 2


def test_attention_with_its_own_widths_is_softmax_of_scaled_products(
    make_spec: MakeSpec, make_model: MakeModel
) -> None:
    spec = make_spec(block={"heads": 3, "d_qk": 5, "d_v": 7, "scale": 0.3})
    attention = make_model(spec).double().blocks[0].attn
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    heads = []
    rows = attention.qkv.weight, attention.qkv.bias
    for head in range(3):
        q = x @ rows[0][5 * head : 5 * head + 5].T + rows[1][5 * head : 5 * head + 5]
        k = x @ rows[0][15 + 5 * head : 20 + 5 * head].T + rows[1][15 + 5 * head : 20 + 5 * head]
        v = x @ rows[0][30 + 7 * head : 37 + 7 * head].T + rows[1][30 + 7 * head : 37 + 7 * head]
        heads.append(torch.softmax(0.3 * q @ k.transpose(1, 2), dim=-1) @ v)
    expected = torch.cat(heads, dim=-1) @ attention.proj.weight.T + attention.proj.bias

    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("d_v", [8, 5])
def test_the_fused_kernel_and_the_plain_products_agree(d_v: int, make_spec: MakeSpec, make_model: MakeModel) -> None:
    attention = make_model(make_spec(block={"d_v": d_v, "scale": 0.7})).double().blocks[0].attn
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    fused = attention(x)
    attention.fused = False

    torch.testing.assert_close(attention(x), fused)


@pytest.mark.parametrize("norm_placement", ["pre", "post"])
def test_the_steps_make_up_the_block(norm_placement: str, make_spec: MakeSpec, make_model: MakeModel) -> None:
    spec = make_spec(norm_placement=norm_placement, layer_scale=True, block={"d_v": 6})
    model = make_model(spec)
    block, x = model.blocks[0], model.embed(images_for(spec))
    attention_branch, middle = block.attention_branch(x), block.after_attention(x)

    assert block.attention_hidden(x).shape == (2, spec.tokens, 12)
    assert block.mlp_hidden(middle).shape == (2, spec.tokens, 24)
    assert torch.equal(middle, x + attention_branch)
    assert torch.equal(block(x), middle + block.mlp_branch(middle))
    output, attended = block.mlp_output(block.mlp_hidden(middle)), block.attention_output(block.attention_hidden(x))
    if norm_placement == "pre":
        assert torch.equal(block.mlp_branch(middle), block.ls2(output))
        assert torch.equal(attention_branch, block.ls1(attended))
        assert torch.equal(block.mlp_hidden(middle), block.mlp.hidden(block.norm2(middle)))
    else:
        assert torch.equal(block.mlp_branch(middle), block.norm2(block.ls2(output)))
        assert torch.equal(attention_branch, block.norm1(block.ls1(attended)))
        assert torch.equal(block.mlp_hidden(middle), block.mlp.hidden(middle))


def test_embed_blocks_and_finish_make_up_the_model(make_spec: MakeSpec, make_model: MakeModel) -> None:
    spec = make_spec(register_tokens=2)
    model, images = make_model(spec), images_for(spec)
    x = model.embed(images)
    for block in model.blocks:
        x = block(x)

    assert torch.equal(model.finish(x), model(images))


def test_a_block_without_attention_and_mlp_changes_nothing(make_spec: MakeSpec, make_model: MakeModel) -> None:
    model = make_model(make_spec(block={"attention": "off", "mlp": False}))
    block, x = model.blocks[0], torch.randn(2, 5, 16)

    assert torch.equal(block(x), x)
    assert not block.attention_branch(x).any()
    assert not block.mlp_branch(x).any()
    assert list(block.parameters()) == []
    for step in (block.attention_hidden, block.attention_output, block.mlp_hidden, block.mlp_output):
        with pytest.raises(ValueError, match="is off"):
            step(x)


@pytest.mark.parametrize("dilution", [1.0, 0.25, 0.0])
def test_dilution_goes_from_the_plain_block_to_twice_the_input(
    dilution: float, make_spec: MakeSpec, make_model: MakeModel
) -> None:
    plain = make_model(make_spec())
    diluting = make_model(make_spec(block={"attention": "diluting"}))
    block, x = diluting.blocks[0], torch.randn(2, 5, 16)
    block.dilution = dilution

    assert diluting.state_dict().keys() == plain.state_dict().keys()
    expected = (2 - dilution) * x + dilution * plain.blocks[0].attention_branch(x)
    torch.testing.assert_close(block.after_attention(x), expected)
    if dilution == 1.0:
        assert torch.equal(block(x), plain.blocks[0](x))
    if dilution == 0.0:
        assert torch.equal(block.after_attention(x), 2 * x)


def test_named_outputs_are_the_stages_of_one_pass(make_spec: MakeSpec, make_model: MakeModel) -> None:
    spec = make_spec(register_tokens=1)
    model, images = make_model(spec), images_for(spec)
    found = model.outputs(images, ["block_1", "logits", "features", "class_token", "patch_tokens", "block_0"])

    assert list(found) == ["block_1", "logits", "features", "class_token", "patch_tokens", "block_0"]
    assert torch.equal(found["logits"], model(images))
    assert torch.equal(found["block_0"], model.blocks[0](model.embed(images)))
    assert torch.equal(found["block_1"], model.blocks[1](found["block_0"]))
    tokens = model.forward_tokens(images)
    assert torch.equal(tokens, model.norm(found["block_1"]))
    assert torch.equal(found["class_token"], tokens[:, 0])
    assert torch.equal(found["patch_tokens"], tokens[:, 2:])
    assert torch.equal(found["features"], found["class_token"])
    assert torch.equal(model.head(found["features"]), found["logits"])


@pytest.mark.parametrize(
    ("changes", "name", "known"),
    [
        ({}, "block_2", "logits, features, class_token, patch_tokens, block_0, block_1"),
        ({}, "logit", "logits, features"),
        ({"classes": 0}, "logits", "features, class_token, patch_tokens, block_0, block_1"),
        ({"class_token": False, "pooling": "avg"}, "class_token", "logits, features, patch_tokens, block_0, block_1"),
    ],
)
def test_an_unknown_output_is_refused_with_the_known_ones(
    changes: dict[str, Any], name: str, known: str, make_spec: MakeSpec, make_model: MakeModel
) -> None:
    spec = make_spec(**changes)
    with pytest.raises(ValueError, match=f"unknown output '{name}'; known: {known}"):
        make_model(spec).outputs(images_for(spec), ["features", name])


def test_images_of_another_size_are_refused(make_spec: MakeSpec, make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"images must be \[B, C, 16, 16\], got \[1, 3, 24, 16\]"):
        make_model(make_spec(position="none"))(torch.zeros(1, 3, 24, 16))


def test_a_meta_model_has_no_memory_and_the_same_names(make_spec: MakeSpec, make_model: MakeModel) -> None:
    spec = make_spec(register_tokens=2)
    empty = build_empty(spec)

    assert all(parameter.is_meta for parameter in empty.parameters())
    assert empty.state_dict().keys() == make_model(spec).state_dict().keys()


EXPORTED: dict[str, dict[str, Any]] = {
    "plain": {},
    "pruned": {"block": {"heads": 3, "d_qk": 5, "d_v": 7}},
    "gated": {"mlp_kind": "glu", "mlp_norm_eps": 1e-6},
    "token_avg": {"pooling": "token_avg", "register_tokens": 2},
    "rms_post": {"norm": "rmsnorm", "norm_placement": "post", "pooling": "avgmax", "register_tokens": 1},
    "diluting": {"block": {"attention": "diluting"}},
    "off": {"block": {"attention": "off"}, "position_covers_prefix": False},
    "merging": {"merge": (1, 1), "register_tokens": 1, "pooling": "avg"},
}


@pytest.mark.parametrize("kind", EXPORTED)
def test_an_exported_graph_takes_any_batch_and_holds_plain_attention(
    kind: str, make_spec: MakeSpec, make_model: MakeModel
) -> None:
    spec = make_spec(**EXPORTED[kind])
    model = make_model(spec)
    with torch.no_grad():
        program = torch.export.export(
            model, (images_for(spec),), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},)
        )
        images = images_for(spec, 5)
        torch.testing.assert_close(program.module()(images), model(images))
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}

    assert not any("scaled_dot_product" in operator for operator in operators)
    assert any("softmax" in operator for operator in operators) == (kind != "off")


def test_a_model_trains(make_spec: MakeSpec, make_model: MakeModel) -> None:
    spec = make_spec(mlp_kind="swiglu", register_tokens=1, layer_scale=True)
    model = make_model(spec).train()
    model(images_for(spec)).square().sum().backward()

    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
