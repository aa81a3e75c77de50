"""Shapes of pruned networks that were published, as data: for comparisons, plans and tests. Light.

SNP: Shim, Yun and Choi, "SNP: Structured Neuron-level Pruning to Preserve Attention Scores", ECCV 2024,
https://arxiv.org/abs/2404.11630; per-layer ratios in Nota-NetsPresso/SNP. What is published are ratios: d_qk, d_v and
MLP width are counted from them. All heads stay, and the scale of the logits is that of the unpruned d_qk of 64.
"""

from dataclasses import dataclass

from stages.vit.spec import BlockSpec, ViTSpec
from targets.preprocess import Preprocess

UNPRUNED_D_QK = 64
REMOVED: dict[str, tuple[int, ...]] = {"unpruned": (), "40 %": (0, 1, 3, 4, 6), "50 %": (0, 1, 3, 4, 6, 9)}
"""share -> the blocks of DeiT-B without attention, NOSE's own choice (arXiv 2404.05657)"""


@dataclass(frozen=True)
class PublishedShape:
    """One pruned network; `blocks` holds (d_qk, d_v, MLP width) of each block."""

    source: str
    """the network that it was pruned from"""
    source_width: int
    heads: int
    width: int
    blocks: tuple[tuple[int, int, int], ...]
    params_millions: float
    """as published"""
    macs_billions: float
    """as published, "FLOPs" there"""

    @property
    def spec(self) -> ViTSpec:
        """Architecture of the pruned network: a DeiT of 224 x 224 images with 1,000 classes."""
        return _deit(self.source, self.heads, self.width, self.blocks)

    @property
    def source_spec(self) -> ViTSpec:
        """Architecture of the unpruned network."""
        blocks = ((UNPRUNED_D_QK, UNPRUNED_D_QK, 4 * self.source_width),) * len(self.blocks)
        return _deit(self.source, self.heads, self.source_width, blocks)


def _deit(name: str, heads: int, width: int, blocks: tuple[tuple[int, int, int], ...]) -> ViTSpec:
    return ViTSpec(
        architecture=name,
        preprocess=Preprocess(height=224, width=224),
        patch_size=(16, 16),
        width=width,
        classes=1000,
        blocks=tuple(
            BlockSpec(
                heads=heads,
                d_qk=d_qk,
                d_v=d_v,
                scale=UNPRUNED_D_QK**-0.5,
                mlp_width=mlp_width,
                norm1_eps=1e-6,
                norm2_eps=1e-6,
            )
            for d_qk, d_v, mlp_width in blocks
        ),
    )


PUBLISHED: dict[str, PublishedShape] = {
    "snp_deit_tiny": PublishedShape(
        source="deit_tiny_patch16_224",
        source_width=192,
        heads=3,
        width=153,
        blocks=(
            *((39, 51, 614), (39, 51, 614), (39, 38, 614), (32, 31, 614), (26, 38, 614), (32, 19, 460)),
            *((26, 38, 537), (20, 38, 537), (20, 31, 614), (20, 25, 537), (20, 19, 460), (20, 19, 383)),
        ),
        params_millions=3.01,
        macs_billions=0.638,
    ),
    "snp_deit_small": PublishedShape(
        source="deit_small_patch16_224",
        source_width=384,
        heads=6,
        width=307,
        blocks=(
            *((25, 51, 1228), (25, 38, 1228), (25, 38, 1228), (25, 38, 1228), (25, 31, 1228), (25, 31, 1075)),
            *((25, 31, 1228), (13, 25, 921), (13, 19, 921), (13, 19, 921), (13, 12, 307), (13, 12, 307)),
        ),
        params_millions=10.06,
        macs_billions=2.037,
    ),
    "snp_deit_small_smaller": PublishedShape(
        source="deit_small_patch16_224",
        source_width=384,
        heads=6,
        width=345,
        blocks=((26, 12, 1382), (20, 19, 1075), (20, 19, 1075), *((13, 12, 307),) * 9),
        params_millions=6.47,
        macs_billions=1.265,
    ),
    "snp_deit_base": PublishedShape(
        source="deit_base_patch16_224",
        source_width=768,
        heads=12,
        width=538,
        blocks=(
            *((19, 19, 2150), (19, 19, 1229), (19, 19, 2150), (19, 19, 2150), (19, 19, 2150), (26, 26, 1536)),
            *((19, 19, 2150), (19, 26, 1843), (19, 19, 2150), (19, 19, 1843), (26, 38, 1843), (19, 32, 922)),
        ),
        params_millions=31.59,
        macs_billions=6.322,
    ),
}
