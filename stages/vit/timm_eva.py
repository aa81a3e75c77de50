"""What timm's Eva models have that VisionTransformer has not, put into the form that `model.py` knows.

    q, k and v          projected together or apart, some without a bias: one `qkv`, zeros where there was none
    gamma_1, gamma_2    LayerScale; one that only attention has gets ones beside the MLP
    rope                rotary positions: a table of sines and cosines in every block, in the half layout

In the half layout channel i turns with channel i + d/2, so that no export needs strided slices. Where timm turns
neighbours (0 with 1, 2 with 3 …) the rows of q and k are put into that order; their product does not change.

Shapes: H heads, d channels of each (d_qk), N tokens, P patches, D residual width.
"""

from typing import Any

import torch
from timm.models.eva import Eva
from torch import Tensor


def has_qkv_bias(attention: Any) -> bool:
    """Whether any of q, k and v has a bias."""
    if attention.qkv is None:
        return any(layer.bias is not None for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    return attention.qkv.bias is not None or getattr(attention, "q_bias", None) is not None


def plain_state(model: Eva, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return an Eva's state under the names and in the order of `model.py`. state: fp32, on the CPU; left alone."""
    plain = {
        name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): tensor
        for name, tensor in state.items()
        if not name.startswith("rope.")
    }
    tables = None if model.rope is None else _tables(model)
    for index, block in enumerate(model.blocks):
        prefix, attention = f"blocks.{index}.", block.attn
        _join_qkv(plain, prefix + "attn.", attention)
        if getattr(block, "gamma_1", None) is not None and block.gamma_2 is None:
            plain[prefix + "ls2.gamma"] = torch.ones_like(plain[prefix + "ls1.gamma"])
        if tables is not None:
            table = tables[index if model.rope_mixed else 0]
            if not attention.rotate_half:
                table = _halves(plain, prefix + "attn.", attention, table)
            plain[prefix + "attn.rope"] = table
    return plain


def _join_qkv(state: dict[str, Tensor], prefix: str, attention: Any) -> None:
    if attention.qkv is None:
        parts = [state.pop(f"{prefix}{name}_proj.weight") for name in "qkv"]
        biases = [state.pop(f"{prefix}{name}_proj.bias", None) for name in "qkv"]
        state[prefix + "qkv.weight"] = torch.cat(parts)
    elif getattr(attention, "q_bias", None) is not None:
        parts = list(state[prefix + "qkv.weight"].chunk(3))
        biases = [state.pop(prefix + "q_bias"), None, state.pop(prefix + "v_bias")]
    else:
        return
    if any(bias is not None for bias in biases):
        whole = [part.new_zeros(len(part)) if bias is None else bias for part, bias in zip(parts, biases, strict=True)]
        state[prefix + "qkv.bias"] = torch.cat(whole)


def _tables(model: Eva) -> Tensor:
    """Sines and cosines of every token, prefix tokens not turned: [blocks or 1, 2, H or 1, N, d], timm's layout."""
    rope: Any = model.rope
    fixed = hasattr(rope, "feat_shape") and not model.dynamic_img_size
    table = rope.get_embed() if fixed else rope.get_embed(shape=model.patch_embed.grid_size)
    table = table.detach().to("cpu", torch.float32)
    table = table if model.rope_mixed else table[None, None]  # [blocks, H, P, 2d]
    patches = torch.stack(table.chunk(2, dim=-1), dim=1)
    still = patches.new_zeros(*patches.shape[:3], model.num_prefix_tokens, patches.shape[-1])
    still[:, 1] = 1.0
    return torch.cat([still, patches], dim=3)


def _halves(state: dict[str, Tensor], prefix: str, attention: Any, table: Tensor) -> Tensor:
    """Bring neighbours half a head apart, in the weights of q and k and in the table, which is returned."""
    heads, depth = attention.num_heads, attention.head_dim
    order = torch.cat([torch.arange(0, depth, 2), torch.arange(1, depth, 2)])
    rows = torch.arange(3 * heads * depth).view(3, heads, depth)
    rows[:2] = rows[:2, :, order]
    for name in ("qkv.weight", "qkv.bias"):
        if prefix + name in state:
            state[prefix + name] = state[prefix + name][rows.flatten()]
    for name in ("q_norm.weight", "q_norm.bias", "k_norm.weight", "k_norm.bias"):
        if prefix + name in state:
            state[prefix + name] = state[prefix + name][order]
    return table[..., order].contiguous()
