"""Devices that are played: what a model would take, in milliseconds, and a search that is run."""

from collections.abc import Callable

from pipeline.search.record import Decision
from pipeline.search.search import Search
from stages.prune.options import with_shapes
from stages.vit.spec import BlockSpec, ViTSpec
from targets.profile import ShapeRules

RULES = ShapeRules(mlp_multiple=16, head_multiple=4)
Time = Callable[[ViTSpec], float]
Reshape = Callable[[ViTSpec], ViTSpec]


def additive(spec: ViTSpec) -> float:
    """Milliseconds of a device whose sublayers do not feel each other."""
    return 0.3 + sum(
        (0.05 + 0.01 * block.mlp_width if block.mlp else 0)
        + (0.05 + 0.02 * block.heads * (block.d_qk + 2 * block.d_v) if block.attention == "on" else 0)
        for block in spec.blocks
    )


def fused(spec: ViTSpec) -> float:
    """A device that runs whole blocks faster than their parts, and has a floor."""
    both = sum(block.mlp and block.attention == "on" for block in spec.blocks)
    return max(0.35 * additive(spec), 0.7 * additive(spec) - 0.04 * both) + 0.2


def scaled(spec: ViTSpec) -> float:
    """A device on which fewer tokens and a narrower stream are faster."""
    tokens = sum(spec.tokens_in(index + 1) for index in range(len(spec.blocks))) / (len(spec.blocks) or 1)
    return additive(spec) * (0.2 + 0.8 * tokens / 17) * (0.2 + 0.8 * spec.width / 16)


def steppy(spec: ViTSpec) -> float:
    """A device that only knows widths of 32."""
    return additive(
        spec.replace(
            blocks=tuple(
                block.replace(mlp_width=-(-block.mlp_width // 32) * 32) if block.mlp else block for block in spec.blocks
            )
        )
    )


def changed(spec: ViTSpec, steps: str) -> ViTSpec:
    """What the steps before the pruning make of a spec."""
    if "resize_input" in steps:
        spec = spec.replace(preprocess=spec.preprocess.replace(height=16, width=16))
    return spec.replace(width=8) if "prune_width" in steps else spec


def run(search: Search) -> Decision:
    return search.run(lambda title, work, cached=False: work(lambda message, share: None))


def blocks_of(spec: ViTSpec, decision: Decision) -> tuple[BlockSpec, ...]:
    return with_shapes(spec, decision.shapes).blocks
