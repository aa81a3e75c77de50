"""Pruning whole models: exact where exactness is possible, and errors as reported."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.prune_attention.options import AttentionShape, PruneAttentionOptions, reshaped
from stages.prune_attention.prune import prune
from stages.prune_attention.weights import attention_of, read, write
from stages.vit.counts import count_params
from stages.vit.model import Attention, ViT
from stages.vit.spec import ViTSpec
from targets.errors import InputError

MakeModel = Callable[..., tuple[ViT, ViTSpec]]

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without biases": {"qkv_bias": False, "proj_bias": False},
    "layer scale": {"layer_scale": True},
    "post-norm": {"norm_placement": "post", "layer_scale": True},
    "average pooling": {"pooling": "avg", "class_token": False},
    "rmsnorm": {"norm": "rmsnorm"},
    "one head": {"heads": 1},
}
METHODS = ("rotate", "snp", "magnitude", "energy", "corp", "random")
REPAIRS = ("sequential", "parallel", "none")


def options(**given: Any) -> PruneAttentionOptions:
    return PruneAttentionOptions.model_validate({"round_to": 1, **given})


def logits(model: ViT, pictures: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in pictures])


def turned(model: ViT, *, dead_qk: int = 0, dead_v: int = 0, turn: bool = True) -> ViT:
    """Make some dimensions of each head superfluous, and turn the axes so that no single dimension is."""
    model = deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for block in model.blocks:
            parts = read(attention_of(block))
            if dead_qk:
                parts.query[:, -dead_qk:] = 0
            if dead_v:
                parts.value[:, -dead_v:] = 0
            if turn:
                for name, rows in (("query", parts.query), ("key", parts.key), ("value", parts.value)):
                    basis, _ = torch.linalg.qr(torch.randn(rows.shape[1], rows.shape[1], generator=generator).double())
                    if name != "key":
                        saved = basis
                    rows.copy_((saved if name == "key" else basis) @ rows)
            write(attention_of(block), parts)
    return model


@pytest.mark.parametrize("repair", REPAIRS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_superfluous_directions_go_without_a_trace(
    kind: dict[str, Any], repair: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**kind)
    model = turned(model, dead_qk=3, dead_v=4)

    pruned, pruned_spec, facts = prune(model, spec, options(qk=5 / 8, v=0.5, repair=repair, ridge=0.0), pictures)

    torch.testing.assert_close(logits(pruned, pictures), logits(model, pictures), rtol=2e-3, atol=2e-3)
    assert [(block.d_qk, block.d_v) for block in pruned_spec.blocks] == [(5, 4)] * 3
    assert all(row["logit_error"] < 1e-8 for row in facts["blocks"])


@pytest.mark.parametrize("method", ["energy", "corp", "magnitude"])
def test_dead_dimensions_go_first_where_nothing_is_turned(
    method: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model()
    model = turned(model, dead_qk=3, dead_v=4, turn=False)

    pruned, _, _ = prune(model, spec, options(qk=5 / 8, v=0.5, method=method, repair="none"), pictures)

    torch.testing.assert_close(logits(pruned, pictures), logits(model, pictures), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("repair", REPAIRS)
@pytest.mark.parametrize("method", ["rotate", "energy", "corp"])
def test_a_head_that_gives_nothing_goes_first(
    method: str, repair: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model()
    with torch.no_grad():
        for index, block in enumerate(model.blocks):
            block.attn.proj.weight[:, index * 8 : index * 8 + 8] = 0

    pruned, pruned_spec, facts = prune(model, spec, options(heads=2, method=method, repair=repair, ridge=0.0), pictures)

    torch.testing.assert_close(logits(pruned, pictures), logits(model, pictures), rtol=2e-3, atol=2e-3)
    assert [row["heads_kept"] for row in facts["blocks"]] == [[1, 2], [0, 2], [0, 1]]
    assert [block.heads for block in pruned_spec.blocks] == [2, 2, 2]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("repair", REPAIRS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_spec_foretold_describes_the_pruned_model(
    kind: dict[str, Any], repair: str, method: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**kind)
    asked = options(qk=0.5, v=0.75, heads=0.7, method=method, repair=repair)

    pruned, pruned_spec, facts = prune(model, spec, asked, pictures if asked.reads_images else None)

    assert pruned_spec == reshaped(asked, spec)
    described = {name: tensor.shape for name, tensor in ViT(pruned_spec.model_dump(mode="json")).state_dict().items()}
    assert described == {name: tensor.shape for name, tensor in pruned.state_dict().items()}
    assert count_params(pruned_spec) == sum(parameter.numel() for parameter in pruned.parameters())
    assert bool(logits(pruned, pictures).isfinite().all())
    assert [row["after"] for row in facts["blocks"]] == [
        {"heads": min(2, spec.blocks[0].heads), "d_qk": 4, "d_v": 6}
    ] * 3


def test_the_scale_stays_whatever_d_qk_is_and_both_kernels_agree(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    pruned, pruned_spec, _ = prune(model, spec, options(qk=0.25), pictures)

    assert [block.scale for block in pruned_spec.blocks] == [8**-0.5] * 3
    fused = logits(pruned, pictures)
    for block in pruned.blocks:
        block.attn.fused = False
    torch.testing.assert_close(logits(pruned, pictures), fused, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [{}, {"layer_scale": True}], ids=str)
def test_the_reported_error_is_what_the_streams_miss(
    kind: dict[str, Any], make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(pooling="avg", **kind)  # no token counts more than its variance says
    pruned, _, facts = prune(model, spec, options(keep=0.5, take_back=1.0), pictures)

    with torch.no_grad():
        for row in facts["blocks"]:
            index = row["block"]
            missed, seen = [], []
            for batch in pictures:
                x, y = model.embed(batch), pruned.embed(batch)
                for block, other in zip(model.blocks[:index], pruned.blocks[:index], strict=True):
                    x, y = block(x), other(y)
                truth = model.blocks[index].after_attention(x).double()
                weight = 1 / truth.var(dim=-1, keepdim=True)
                weight = weight / weight.reciprocal().mean().reciprocal()
                missed.append((weight * (truth - pruned.blocks[index].after_attention(y)).square()).sum())
                seen.append((weight, (truth - y)))
            weights = torch.cat([w.flatten() for w, _ in seen])[:, None]
            targets = torch.cat([t.flatten(0, 1) for _, t in seen])
            mean = (weights * targets).sum(0) / weights.sum()
            expected = sum(missed) / (weights * (targets - mean).square()).sum()

            assert row["relative_error"] == pytest.approx(float(expected), rel=1e-3)


def test_repair_misses_less_than_no_repair(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    truth = logits(model, pictures)

    missed = {
        repair: float(
            (logits(prune(model, spec, options(keep=0.5, repair=repair), pictures)[0], pictures) - truth)
            .square()
            .mean()
        )
        for repair in REPAIRS
    }

    assert missed["sequential"] < missed["parallel"] < missed["none"]


@pytest.mark.parametrize("repair", ["sequential", "none"])
def test_rotating_misses_less_than_choosing(repair: str, make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    truth = logits(model, pictures)

    def missed(method: str) -> float:
        asked = options(qk=0.5, v=0.5, method=method, repair=repair)
        return float((logits(prune(model, spec, asked, pictures)[0], pictures) - truth).square().mean())

    assert missed("rotate") < min(missed(method) for method in METHODS if method != "rotate")


def test_logits_are_missed_least_by_rotating_and_less_by_compensating(
    make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model()

    def first_error(method: str, **more: Any) -> float:
        _, _, facts = prune(model, spec, options(qk=0.5, method=method, repair="none", **more), pictures)
        return float(facts["blocks"][0]["logit_error"])

    errors = {method: first_error(method) for method in METHODS if method not in ("magnitude", "random")}
    assert errors["rotate"] <= first_error("rotate", per_image=False)
    assert errors["rotate"] < errors["corp"] < errors["energy"] < 1
    assert errors["rotate"] < errors["snp"]


@pytest.mark.parametrize(("take_back", "own"), [(0.0, True), (1.0, False)])
@pytest.mark.parametrize("kind", [{}, {"layer_scale": True}], ids=str)
def test_a_block_that_takes_nothing_back_does_what_it_did(
    kind: dict[str, Any], take_back: float, own: bool, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    """Block 0 loses nearly all of its attention, block 1 only what is superfluous."""
    model, spec = make_model(**kind)
    model = turned(model, dead_qk=3, dead_v=4)
    shapes = [{"heads": 1, "d_qk": 1, "d_v": 1}, {"heads": 3, "d_qk": 5, "d_v": 4}, {"heads": 3, "d_qk": 8, "d_v": 8}]

    pruned, _, _ = prune(model, spec, options(shapes=shapes, take_back=take_back, ridge=0.0), pictures)

    with torch.no_grad():
        x = pruned.blocks[0](pruned.embed(pictures[0]))
        missed = (pruned.blocks[1].after_attention(x) - model.blocks[1].after_attention(x)).abs().max()
    assert (float(missed) < 2e-3) is own


def test_a_model_that_keeps_everything_is_the_same_model(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()

    pruned, pruned_spec, facts = prune(model, spec, options(keep=1.0), pictures)

    assert pruned_spec == spec
    assert all(
        torch.equal(a, b) for a, b in zip(pruned.state_dict().values(), model.state_dict().values(), strict=True)
    )
    assert facts["blocks"] == []


def test_the_source_model_is_left_alone(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model(proj_bias=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    prune(model, spec, options(keep=0.5, heads=2), pictures)

    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_blocks_may_have_shapes_of_their_own_and_none_at_all(make_model: MakeModel, pictures: list[Tensor]) -> None:
    model, spec = make_model()
    off = spec.blocks[1].replace(attention="off", heads=0, d_qk=0, d_v=0)
    spec = spec.replace(blocks=(spec.blocks[0], off, spec.blocks[2]))
    model = ViT(spec.model_dump(mode="json")).eval()
    shapes = [
        AttentionShape(heads=3, d_qk=8, d_v=8),
        AttentionShape(heads=0, d_qk=0, d_v=0),
        AttentionShape(heads=2, d_qk=3, d_v=5),
    ]

    _, pruned_spec, facts = prune(model, spec, options(shapes=shapes), pictures)

    assert [AttentionShape.of(block) for block in pruned_spec.blocks] == shapes
    assert [row["block"] for row in facts["blocks"]] == [2]


@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_what_reads_no_images_needs_none(method: str, make_model: MakeModel) -> None:
    model, spec = make_model()

    _, _, facts = prune(model, spec, options(keep=0.5, heads=2, method=method, repair="none"), None)

    assert facts["images"] == 0
    assert facts["summary"] == f"heads 3 to 2, d_qk 8 to 4, d_v 8 to 4 in 3 blocks, by {method}"


ROPE: dict[str, dict[str, Any]] = {
    "rope": {"rope": True},
    "rope per head": {"rope": True, "rope_per_head": True},
    "rope and qk-norm": {"rope": True, "qk_norm_eps": 1e-6},
    "rope per head and qk-norm": {"rope": True, "rope_per_head": True, "qk_norm_eps": 1e-6},
}


@pytest.mark.parametrize("kind", ROPE.values(), ids=ROPE)
@pytest.mark.parametrize("repair", REPAIRS)
def test_of_a_model_with_rotary_positions_a_head_that_gives_nothing_goes_and_the_others_turn_as_before(
    kind: dict[str, Any], repair: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**kind)
    with torch.no_grad():
        for index, block in enumerate(model.blocks):
            block.attn.proj.weight[:, index * 8 : index * 8 + 8] = 0

    pruned, pruned_spec, facts = prune(model, spec, options(keep=0.6, repair=repair, ridge=0.0), pictures)

    torch.testing.assert_close(logits(pruned, pictures), logits(model, pictures), rtol=2e-3, atol=2e-3)
    assert [row["heads_kept"] for row in facts["blocks"]] == [[1, 2], [0, 2], [0, 1]]
    assert {(block.heads, block.d_qk, block.d_v) for block in pruned_spec.blocks} == {(2, 8, 8)}


@pytest.mark.parametrize("kind", ROPE.values(), ids=ROPE)
@pytest.mark.parametrize("method", METHODS)
def test_with_rotary_positions_values_can_still_be_narrowed_and_q_and_k_stay(
    kind: dict[str, Any], method: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**kind)

    pruned, pruned_spec, facts = prune(model, spec, options(v=0.5, heads=2, method=method), pictures)

    assert {(block.heads, block.d_qk, block.d_v) for block in pruned_spec.blocks} == {(2, 8, 4)}
    described = {name: tensor.shape for name, tensor in ViT(pruned_spec.model_dump(mode="json")).state_dict().items()}
    assert described == {name: tensor.shape for name, tensor in pruned.state_dict().items()}
    assert all(row["relative_error"] < 1 for row in facts["blocks"])
    with pytest.raises(InputError, match=r"qk 0\.5 cannot be had: this model"):
        prune(model, spec, options(qk=0.5, method=method), pictures)


@pytest.mark.parametrize("kind", [{}, {"qk_norm_eps": 1e-6}, *ROPE.values()], ids=["plain", "qk-norm", *ROPE])
@pytest.mark.parametrize("repair", REPAIRS)
def test_snp_takes_the_heads_whose_pairs_lie_along_the_logits_least(
    kind: dict[str, Any], repair: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**kind)
    with torch.no_grad():  # lengths of weights must not decide: those of the pairs along the logits are cosines
        for block in model.blocks:
            block.attn.qkv.weight[:8] *= 50
            block.attn.qkv.weight[48:] = block.attn.qkv.weight[48:56].repeat(3, 1)  # nor the values
    entering = model.blocks[0].norm1(torch.cat([model.embed(batch) for batch in pictures]).detach())

    _, _, facts = prune(model, spec, options(heads=2, method="snp", repair=repair), pictures)

    attention = attention_of(model.blocks[0])
    scores = logit_alignment(attention, entering, directions=4)
    assert facts["blocks"][0]["heads_kept"] == sorted(scores.argsort(descending=True)[:2].tolist())


def logit_alignment(attention: Attention, entering: Tensor, *, directions: int) -> Tensor:
    """SNP's score of each head by its definition, with the N x N logits: [H]. entering: [B, N, D]."""
    images, tokens, _ = entering.shape
    q, k = (
        norm(rows.reshape(images, tokens, attention.heads, attention.d_qk)).transpose(1, 2)
        for norm, rows in zip(
            (attention.q_norm, attention.k_norm),
            attention.qkv(entering)[..., : 2 * attention.heads * attention.d_qk].chunk(2, dim=-1),
            strict=True,
        )
    )
    if attention.rope is not None:
        sine, cosine = attention.rope
        q, k = (
            x * cosine + torch.cat([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], dim=-1) * sine
            for x in (q, k)
        )
    q, k = q.detach().double(), k.detach().double()
    left, _, right = torch.linalg.svd(q @ k.mT)
    along_q = left[..., :directions].mT @ (q / q.norm(dim=-2, keepdim=True))
    along_k = right[..., :directions, :] @ (k / k.norm(dim=-2, keepdim=True))
    return (along_q * along_k).abs().sum(dim=(-2, -1)).mean(dim=0)


@pytest.mark.parametrize("kind", [{"qk_norm_eps": 1e-6}, {"attention_norm_eps": 1e-6}], ids=str)
@pytest.mark.parametrize("method", ["rotate", "energy"])
def test_models_whose_norms_forbid_it_lose_whole_heads(
    kind: dict[str, Any], method: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model(**kind)

    pruned, pruned_spec, facts = prune(model, spec, options(keep=0.6, method=method), pictures)

    assert {(block.heads, block.d_qk, block.d_v) for block in pruned_spec.blocks} == {(2, 8, 8)}
    described = {name: tensor.shape for name, tensor in ViT(pruned_spec.model_dump(mode="json")).state_dict().items()}
    assert described == {name: tensor.shape for name, tensor in pruned.state_dict().items()}
    assert bool(logits(pruned, pictures).isfinite().all())
    assert all(row["relative_error"] < 0.9 for row in facts["blocks"])


def test_few_images_are_mentioned_and_too_few_refused(
    make_model: MakeModel, pictures: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    model, spec = make_model(heads=8)

    _, _, facts = prune(model, spec, options(keep=0.5), [pictures[0][:10]])

    assert facts["warning"].startswith("170 tokens of calibration images for 64 inputs of proj are few")
    assert "are few" in caplog.text
    with pytest.raises(InputError, match="51 tokens of calibration images cannot describe 64 inputs of proj"):
        prune(model, spec, options(keep=0.5), [pictures[0][:3]])


@pytest.mark.parametrize(
    ("kind", "given", "reason"),
    [
        ({"merge": (2, 2, 2)}, {}, "merge tokens"),
        ({"attention_norm_eps": 1e-6}, {"repair": "parallel"}, "norm before proj"),
        ({"attention_norm_eps": 1e-6, "norm_placement": "post"}, {}, "norm before proj"),
        ({"norm_placement": "post"}, {"refine": 1}, "pre-norm"),
    ],
)
def test_what_cannot_be_pruned_is_refused_with_the_reason(
    kind: dict[str, Any], given: dict[str, Any], reason: str, make_model: MakeModel, pictures: list[Tensor]
) -> None:
    model, spec = make_model()

    with pytest.raises(InputError, match=reason):
        prune(model, spec.replace(**kind), options(**given), pictures)


def test_an_attention_that_is_diluting_is_refused(make_model: MakeModel) -> None:
    model, spec = make_model()
    spec = spec.replace(blocks=tuple(block.replace(attention="diluting") for block in spec.blocks))

    with pytest.raises(InputError, match="diluting; distil it"):
        prune(model, spec, options(method="magnitude", repair="none"), None)


def distance(model: ViT, other: ViT) -> float:
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return float((model(images) - other(images)).square().mean())


def test_a_refined_model_answers_more_like_the_source(make_model: MakeModel) -> None:
    batches = list(torch.randn(160, 3, 32, 32, generator=torch.Generator().manual_seed(3)).split(16))
    model, spec = make_model()
    plain, _, _ = prune(model, spec, options(keep=0.25), batches)
    refined, _, facts = prune(model, spec, options(keep=0.25, refine=10, refine_lr=0.005), batches)
    spoilt, _, worse = prune(model, spec, options(keep=0.25, refine=1, refine_lr=100.0), batches)

    assert distance(model, refined) < distance(model, plain)
    assert all(row["refined"]["error_after"] < row["refined"]["error_before"] for row in facts["blocks"])
    assert all(row["refined"]["error_after"] > row["refined"]["error_before"] for row in worse["blocks"])
    assert distance(plain, spoilt) == 0
    assert all(parameter.grad is None for parameter in refined.parameters())
