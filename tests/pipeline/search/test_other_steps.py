"""A search where steps come before or after the pruning, merge, or add parameters."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.search.latency import attention_shape, mlp_width
from stages.merge_tokens.options import MergeTokensOptions
from stages.merge_tokens.options import reshaped as merging
from stages.offers.record import OFFERS_FILE, MergeOffer, Offers, Sublayer
from stages.prune.options import PruneOptions, reshaped, with_shapes
from stages.vit.counts import count_macs, count_params
from stages.vit.spec import ViTSpec
from targets.profile import Budget
from tests.pipeline.search.played import additive, blocks_of, run, scaled


def shortened(spec: ViTSpec) -> ViTSpec:
    """Steps before the pruning: two blocks lose their attention and most of their MLP."""
    small = spec.blocks[0].replace(attention="off", heads=0, d_qk=0, d_v=0, mlp_width=16)
    return spec.replace(blocks=(spec.blocks[0], small, small))


def shape_of(one: Sublayer, spec: ViTSpec) -> tuple[int, ...]:
    block = spec.blocks[one.block]
    return (mlp_width(block),) if one.part == "mlp" else attention_shape(block)


def of_shortened(offers: Offers, spec: ViTSpec) -> Offers:
    """Prices of no more than each block has."""
    sublayers = []
    for one in offers.sublayers:
        most = shape_of(one, spec)
        fits = [offer for offer in one.offers if all(a <= b for a, b in zip(offer.shape, most, strict=True))]
        kept = tuple(offer.replace(loss=0.0) if offer.shape == most else offer for offer in fits)
        sublayers.append(one.replace(offers=kept))
    return offers.replace(sublayers=tuple(sublayers))


def test_a_model_that_is_faster_already_is_pruned_no_more_than_it_must(
    played: Any, plain_spec: ViTSpec, offers: Offers, tmp_path: Path
) -> None:
    start = shortened(plain_spec)
    (tmp_path / OFFERS_FILE).write_text(of_shortened(offers, start).canonical_json())
    taken = additive(start) / additive(plain_spec)
    assert taken < 0.6

    decision = run(played(additive, Budget(latency_ratio=0.9 * taken), earlier=shortened))

    reached = additive(with_shapes(start, decision.shapes)) / additive(plain_spec)
    assert 0.7 * taken < reached <= 0.9 * taken
    nothing = run(played(additive, Budget(latency_ratio=1.1 * taken), earlier=shortened))
    assert nothing.loss == 0


def test_tables_of_two_models_are_not_mixed_up(
    played: Any, plain_spec: ViTSpec, offers: Offers, tmp_path: Path
) -> None:
    (tmp_path / OFFERS_FILE).write_text(of_shortened(offers, shortened(plain_spec)).canonical_json())
    run(played(additive, Budget(latency_ratio=0.4), earlier=shortened))
    (tmp_path / OFFERS_FILE).write_text(offers.canonical_json())

    decision = run(played(additive, Budget(latency_ratio=0.6)))  # the same store, and blocks of the same shapes

    assert 0.45 < additive(plain_spec.replace(blocks=blocks_of(plain_spec, decision))) / additive(plain_spec) <= 0.6


def later_narrow(spec: ViTSpec) -> ViTSpec:
    """A step after the pruning that halves every input picture: a quarter of the tokens."""
    return spec.replace(preprocess=spec.preprocess.replace(height=16, width=16))


def test_what_later_steps_save_need_not_be_pruned(played: Any, plain_spec: ViTSpec) -> None:
    alone = scaled(later_narrow(plain_spec)) / scaled(plain_spec)
    assert alone < 0.5
    macs = count_macs(later_narrow(plain_spec))

    by_time = run(played(scaled, Budget(latency_ratio=0.5), later=later_narrow))
    by_macs = run(played(scaled, Budget(macs=macs), later=later_narrow))

    assert by_time.loss == by_macs.loss == 0


def test_merging_counts_in_multiply_accumulates(
    played: Any, plain_spec: ViTSpec, offers: Offers, tmp_path: Path
) -> None:
    merge = MergeOffer(keep=0.5, merge=(8, 0, 0), loss=0.01)
    (tmp_path / OFFERS_FILE).write_text(offers.replace(merges=(merge,)).canonical_json())
    merged = merging(MergeTokensOptions(counts=merge.merge), plain_spec)
    limit = count_macs(merged)
    assert limit < 0.8 * count_macs(plain_spec)

    decision = run(played(additive, Budget(macs=limit)))

    assert decision.merge == (8, 0, 0)
    assert decision.loss == pytest.approx(0.01)


def test_parameters_hold_the_biases_that_repair_adds(played: Any, plain_spec: ViTSpec) -> None:
    def bare(spec: ViTSpec) -> ViTSpec:
        return spec.replace(proj_bias=False, fc2_bias=False)

    limit = 0.8 * count_params(bare(plain_spec))
    decision = run(played(additive, Budget(parameters=int(limit)), earlier=bare))

    made = reshaped(PruneOptions(blocks=decision.shapes), bare(plain_spec))
    assert made.proj_bias or made.fc2_bias
    assert count_params(made) <= limit


def overlapped(spec: ViTSpec) -> float:
    """A device that runs an attention beside the MLP of its block: parts sum to more than the whole."""
    return 0.3 + sum(
        max(
            0.02 * block.heads * (block.d_qk + 2 * block.d_v) if block.attention == "on" else 0,
            0.012 * block.mlp_width if block.mlp else 0,
        )
        for block in spec.blocks
    )


@pytest.mark.parametrize("ratio", [0.7, 0.5, 0.35])
def test_parts_that_sum_to_more_than_the_whole_are_no_trap(played: Any, plain_spec: ViTSpec, ratio: float) -> None:
    decision = run(played(overlapped, Budget(latency_ratio=ratio)))

    assert decision.table.rest > 0
    assert overlapped(plain_spec.replace(blocks=blocks_of(plain_spec, decision))) / overlapped(plain_spec) <= ratio
