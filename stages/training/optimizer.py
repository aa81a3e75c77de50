"""How weights move: AdamW with decay on matrices only, and a cosine schedule with warm-up.

Decoupled weight decay: https://arxiv.org/abs/1711.05101. Cosine: https://arxiv.org/abs/1608.03983.
Layer-wise decay of the learning rate: https://arxiv.org/abs/2106.08254, appendix (fine-tuning of BEiT).
"""

import math
import re
from typing import Any

import torch
from torch import nn

TOKENS = {"cls_token", "reg_token", "pos_embed"}
"""parameters that are added to the stream or part of it: no matrices, though they have three dimensions"""


def adamw(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """AdamW over `parameter_groups`, by torch's fused kernel."""
    groups = parameter_groups(module, weight_decay=weight_decay, layer_decay=layer_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def parameter_groups(module: nn.Module, *, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Parameters by (weight decay, learning rate scale), in the order of the module.

    Decayed are matrices (of Linears and the patch convolution); not decayed are norms, biases, LayerScale, class and
    register tokens, the position embedding. The learning rate of block i is scaled by layer_decay to the power of its
    distance from the head, which itself is not scaled; the embedding is the farthest.
    """
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    depth = 1 + max((block for name, _ in trained if (block := _block(name)) is not None), default=-1)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in trained:
        decay = weight_decay if is_decayed(name, parameter) else 0.0
        scale = layer_decay ** _distance_from_head(name, depth)
        group = groups.setdefault((decay, scale), {"params": [], "weight_decay": decay, "lr_scale": scale})
        group["params"].append(parameter)
    return list(groups.values())


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies to a parameter: only to matrices."""
    return parameter.ndim >= 2 and name.rsplit(".", 1)[-1] not in TOKENS


def learning_rate(step: int, *, steps: int, peak: float, warmup_steps: int, floor: float = 0.0) -> float:
    """Learning rate of a step (from 0): linear from peak / warmup_steps to peak, then half a cosine to the floor.

    The floor is what a step number `steps`, the first that is not made, would have.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, steps - warmup_steps)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def set_weight_decay(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """Give another weight decay to every group that has any."""
    for group in optimizer.param_groups:
        if group["weight_decay"] > 0:
            group["weight_decay"] = weight_decay


def _block(name: str) -> int | None:
    """Index of the block that a parameter belongs to; None outside the blocks."""
    found = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
    return int(found.group(1)) if found else None


def _distance_from_head(name: str, depth: int) -> int:
    """Layers between a parameter and the head: 0 head and final norm, 1 the last block, depth + 1 the embedding."""
    block = _block(name)
    if block is not None:
        return depth - block
    embedding = TOKENS | {"patch_embed", "norm_pre"}
    return depth + 1 if embedding & set(name.split(".")) else 0
