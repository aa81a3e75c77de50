"""Token merging: the matrix form is the gather form, prefix tokens stay, every patch is held once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from stages.vit.counts import count_macs
from stages.vit.merging import MergeState, MergeTokens
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from targets.preprocess import Preprocess

MakeSpec = Callable[..., ViTSpec]
MakeModel = Callable[..., ViT]


def merge_by_gather(
    x: Tensor, metric: Tensor, sizes: list[float], *, count: int, prefix: int
) -> tuple[Tensor, list[float], list[list[int]]]:
    """One image, token by token, as the paper says it: tokens [N, D], sizes of the patches, patches behind each."""
    patches, likeness = x[prefix:], metric[prefix:] / metric[prefix:].norm(dim=-1, keepdim=True)
    odd, even = list(range(1, len(patches), 2)), list(range(0, len(patches), 2))
    edges = []
    for place in odd:
        scores = [float(likeness[place] @ likeness[other]) for other in even]
        edges.append((max(scores), place, even[scores.index(max(scores))]))  # index: of equal ones the first
    joined = sorted(edges, key=lambda edge: -edge[0])[:count]  # stable: of equal ones the first
    gone = {place for _, place, _ in joined}
    groups = [[place] for place in odd if place not in gone]
    groups += [[place, *sorted(source for _, source, target in joined if target == place)] for place in even]
    rows = [sum(sizes[i] * patches[i] for i in group) / sum(sizes[i] for i in group) for group in groups]
    return torch.stack([*x[:prefix], *rows]), [sum(sizes[i] for i in group) for group in groups], groups


@settings(max_examples=150)
@given(st.data())
def test_the_matrix_form_is_the_gather_form_and_ties_fall_to_the_first(data: st.DataObject) -> None:
    prefix, patches = data.draw(st.integers(0, 3)), data.draw(st.integers(2, 21))
    count = data.draw(st.integers(1, patches // 2))
    seed, levels = data.draw(st.integers(0, 999)), data.draw(st.sampled_from([1, 2, 1000]))
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(2, prefix + patches, 5, generator=draw, dtype=torch.float64)
    # With two levels, tokens of one axis, scores are 0 and 1 exactly: nearly all are ties.
    ties = torch.eye(3, dtype=torch.float64)[torch.randint(levels, (2, prefix + patches), generator=draw) % 3]
    metric = ties if levels < 3 else torch.randn(2, prefix + patches, 4, generator=draw, dtype=torch.float64)
    sizes = torch.randint(1, 9, (2, patches, 1), generator=draw).double()
    state = MergeState(sizes=sizes, members=torch.eye(patches, dtype=torch.float64)[None])

    merged = MergeTokens(count=count, prefix_tokens=prefix, proportional=True)(x, metric, state)

    assert merged.shape == (2, prefix + patches - count, 5)
    for image in range(2):
        expected, left, groups = merge_by_gather(
            x[image], metric[image], sizes[image, :, 0].tolist(), count=count, prefix=prefix
        )
        torch.testing.assert_close(merged[image], expected, rtol=1e-12, atol=1e-12)
        assert state.sizes[image, :, 0].tolist() == left
        assert [row.nonzero().flatten().tolist() for row in state.members[image]] == [sorted(one) for one in groups]
        bias = torch.cat([torch.zeros(prefix), torch.tensor(left).log()]).double()
        torch.testing.assert_close(state.key_bias[image, 0, 0], bias, rtol=1e-6, atol=1e-6)


def forward_by_gather(model: ViT, images: Tensor, merge: tuple[int, ...]) -> Tensor:
    """The whole model token by token, one image after the other: logits [B, classes]."""
    rows = []
    for image in images:
        x, sizes = model.embed(image[None]), [1.0] * model.patch_tokens
        for block, count in zip(model.blocks, merge, strict=True):
            prefix, metric = model.prefix_tokens, None
            if block.attn is not None:
                attn, entering = block.attn, x if block.post_norm else block.norm1(x)
                parts = [attn.heads * attn.d_qk] * 2 + [attn.heads * attn.d_v]
                q, k, v = (part.unflatten(-1, (attn.heads, -1))[0] for part in attn.qkv(entering).split(parts, dim=-1))
                heads = []
                for head in range(attn.heads):
                    weights = (attn.scale * q[:, head] @ k[:, head].T).exp()
                    if model.spec["merge_proportional"]:  # a token of size s counts as s equal tokens
                        weights = weights * torch.tensor([1.0] * prefix + sizes, dtype=x.dtype)
                    heads.append(weights / weights.sum(dim=-1, keepdim=True) @ v[:, head])
                output = block.ls1(attn.proj(torch.cat(heads, dim=-1)[None]))
                x = x + (block.norm1(output) if block.post_norm else output)
                metric = k.mean(dim=1) if model.spec["merge_metric"] == "keys" else entering[0]
            if metric is None:
                metric = (x if block.post_norm else block.norm2(x))[0]
            if count:
                tokens, sizes, _ = merge_by_gather(x[0], metric, sizes, count=count, prefix=prefix)
                x = tokens[None]
            x = block.after_mlp(x)
        tokens, weights = model.norm(x)[0], torch.tensor(sizes, dtype=x.dtype)[:, None]
        if model.spec["pooling"] == "token":
            pooled = tokens[0]
        else:
            pooled = (weights * tokens[model.prefix_tokens :]).sum(dim=0) / weights.sum()
        rows.append(model.head(model.fc_norm(pooled)))
    return torch.stack(rows)


KINDS: dict[str, dict[str, Any]] = {
    "class token": {},
    "not proportional": {"merge_proportional": False},
    "by tokens": {"merge_metric": "tokens"},
    "by tokens, post-norm": {"merge_metric": "tokens", "norm_placement": "post"},
    "registers": {"register_tokens": 3},
    "average pooling, no prefix": {"pooling": "avg", "class_token": False},
    "average pooling, registers": {"pooling": "avg", "register_tokens": 2},
    "post-norm, LayerScale": {"norm_placement": "post", "layer_scale": True},
    "pruned heads": {"block": {"heads": 3, "d_qk": 5, "d_v": 7}},
    "attention off": {"block": {"attention": "off"}},
    "attention off, post-norm": {"block": {"attention": "off"}, "norm_placement": "post"},
    "merging late": {"merge": (0, 7)},
    "all odd ones": {"merge": (8, 4)},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_model_that_merges_computes_what_the_paper_says(
    kind: dict[str, Any], make_spec: MakeSpec, make_model: MakeModel
) -> None:
    spec = make_spec(**{"preprocess": Preprocess(height=32, width=32), "merge": (5, 3), **kind})
    model = make_model(spec).double()
    images = torch.randn(3, *spec.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        expected = forward_by_gather(model, images, spec.merge)
        torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model.outputs(images, ["logits"])["logits"], expected, rtol=1e-9, atol=1e-9)


def test_equal_patches_that_merge_change_nothing(make_spec: MakeSpec, make_model: MakeModel) -> None:
    """Proportional attention and weighted pooling make a merged token count as the equal tokens that it holds."""
    changes = {"preprocess": Preprocess(height=32, width=32), "position": "none", "pooling": "avg"}
    plain, merging = make_spec(**changes), make_spec(**changes, merge=(8, 4))
    model, other = make_model(plain), make_model(merging)
    image = torch.randn(1, 3, 1, 1).expand(1, 3, 32, 32)

    with torch.no_grad():
        torch.testing.assert_close(other(image), model(image))


@settings(max_examples=30)
@given(seed=st.integers(0, 99), first=st.integers(0, 8), second=st.integers(0, 4))
def test_every_patch_is_held_by_one_token(seed: int, first: int, second: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    state = MergeState(members=torch.eye(16)[None])
    x = torch.randn(2, 18, 4, generator=draw)
    for count in (first, second):
        if count:
            x = MergeTokens(count=count, prefix_tokens=2, proportional=False)(x, x, state)

    members = state.members
    assert members.shape[1] == 16 - first - second
    assert torch.equal(members.sum(dim=1), torch.ones_like(members.sum(dim=1)))
    if state.sizes is not None:
        assert torch.equal(members.sum(dim=2, keepdim=True), state.sizes)
        assert torch.equal(state.sizes.sum(dim=1), torch.full((2, 1), 16.0))
    assert state.key_bias is None


def test_patch_sources_says_where_the_patches_went(make_spec: MakeSpec, make_model: MakeModel) -> None:
    spec = make_spec(preprocess=Preprocess(height=32, width=32), merge=(4, 2), register_tokens=1)
    found = make_model(spec).outputs(torch.randn(3, 3, 32, 32), ["patch_sources", "patch_tokens", "block_0"])

    assert found["patch_sources"].shape == (3, 10, 16)
    assert found["patch_tokens"].shape == (3, 10, 16)
    assert found["block_0"].shape == (3, 14, 16)
    assert torch.equal(found["patch_sources"].sum(dim=1), torch.ones(3, 16))
    assert "patch_sources" not in make_model(make_spec()).output_names


def test_under_autocast_the_stream_stays_in_fp32_and_the_picks_are_those_of_fp32() -> None:
    draw = torch.Generator().manual_seed(0)
    x, metric = (torch.randn(4, 50, 8, generator=draw) for _ in range(2))
    merge, states = MergeTokens(count=12, prefix_tokens=1, proportional=True), [MergeState(), MergeState()]
    expected = merge(x, metric, states[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = merge(x, metric, states[1])

    assert torch.equal(found, expected)
    assert torch.equal(states[0].sizes, states[1].sizes)


def test_gradients_reach_every_weight(make_spec: MakeSpec, make_model: MakeModel) -> None:
    model = make_model(make_spec(preprocess=Preprocess(height=32, width=32), merge=(4, 4), layer_scale=True)).train()
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()

    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ((3, 0), "block 0 cannot merge 3 of its 4 patch tokens; allowed: 0 to 2"),
        ((2, 2), "block 1 cannot merge 2 of its 2 patch tokens; allowed: 0 to 1"),
        ((-1, 0), "block 0 cannot merge -1"),
        ((1,), "merge has 1 entries for 2 blocks"),
    ],
)
def test_more_than_half_of_the_patches_cannot_merge(merge: tuple[int, ...], message: str, make_spec: MakeSpec) -> None:
    with pytest.raises(ValidationError, match=message):
        make_spec(merge=merge)


def test_merging_costs_less_than_it_saves_on_a_real_shape(make_spec: MakeSpec) -> None:
    block = {"heads": 6, "d_qk": 64, "d_v": 64, "mlp_width": 1536}
    shape = {"preprocess": Preprocess(height=224, width=224), "patch_size": (16, 16), "width": 384, "block": block}
    plain = make_spec(**shape)
    plain = plain.replace(blocks=plain.blocks[:1] * 12)
    merged = plain.replace(merge=(13,) * 12)

    assert merged.tokens_in(0) == merged.tokens_in(0) == 197
    assert merged.tokens_in(12) == 197 - 12 * 13
    # 4.6 G; ToMe's table for DeiT-S with r = 13 says 2.7 G, without the products of merging
    assert count_macs(plain) / 1e9 == pytest.approx(4.6, abs=0.05)
    assert count_macs(merged) / 1e9 == pytest.approx(2.73, abs=0.06)
