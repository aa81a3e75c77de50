"""Shapes that SNP published are reached by the options of our stages, with its counts of parameters and MACs."""

import pytest

from benchmarks.published_shapes import PUBLISHED
from stages.prune_attention.options import PruneAttentionOptions
from stages.prune_attention.options import reshaped as attention_reshaped
from stages.prune_mlp.options import PruneMlpOptions, widths_asked
from stages.prune_width.options import PruneWidthOptions
from stages.prune_width.options import reshaped as width_reshaped
from stages.vit.counts import count_macs, count_params


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_those_published(name: str) -> None:
    shape = PUBLISHED[name]

    assert round(count_params(shape.spec) / 1e6, 2) == shape.params_millions
    assert round(count_macs(shape.spec) / 1e9, 3) == shape.macs_billions


@pytest.mark.parametrize(
    ("name", "millions"), [("snp_deit_tiny", 5.72), ("snp_deit_small", 22.05), ("snp_deit_base", 86.57)]
)
def test_the_unpruned_networks_are_the_deits(name: str, millions: float) -> None:
    assert round(count_params(PUBLISHED[name].source_spec) / 1e6, 2) == millions


@pytest.mark.parametrize("name", PUBLISHED)
def test_three_stages_lead_from_the_source_to_the_published_shape(name: str) -> None:
    shape = PUBLISHED[name]
    attention = {"shapes": [{"heads": shape.heads, "d_qk": d_qk, "d_v": d_v} for d_qk, d_v, _ in shape.blocks]}
    mlp = PruneMlpOptions(widths=tuple(width for _, _, width in shape.blocks))

    spec = width_reshaped(PruneWidthOptions(width=shape.width, method="snp"), shape.source_spec)
    spec = attention_reshaped(PruneAttentionOptions.model_validate({"method": "snp", **attention}), spec)
    widths = widths_asked(mlp, spec)
    blocks = tuple(block.replace(mlp_width=width) for block, width in zip(spec.blocks, widths, strict=True))

    assert spec.replace(blocks=blocks) == shape.spec
