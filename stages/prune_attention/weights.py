"""The weights of an attention, head by head, and the attention with others.

Shapes: H heads, d their width (d_qk or d_v), D residual width, O width of proj's output.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.vit.model import Attention, Block


@dataclass(frozen=True)
class Projections:
    """Rows of qkv by head, in float64."""

    query: Tensor
    """[H, d_qk, D + 1]: weights, and the bias as the last column (zeros where the layer has none)"""
    key: Tensor
    """[H, d_qk, D + 1]"""
    value: Tensor
    """[H, d_v, D + 1]"""


def attention_of(block: Block) -> Attention:
    """Return the attention of a block that has one."""
    if block.attn is None:
        raise ValueError("this block has no attention")
    return block.attn


def read(attention: Attention) -> Projections:
    """Take qkv apart."""
    layer = attention.qkv
    bias = layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
    rows = torch.cat([layer.weight, bias[:, None]], dim=1).detach().double()
    heads, d_qk, d_v = attention.heads, attention.d_qk, attention.d_v
    query, key, value = torch.split(rows, [heads * d_qk, heads * d_qk, heads * d_v])
    return Projections(query.reshape(heads, d_qk, -1), key.reshape(heads, d_qk, -1), value.reshape(heads, d_v, -1))


def write(attention: Attention, parts: Projections) -> None:
    """Put qkv together again, in place, with the shapes of `parts`; proj and the inner norms are left as they are."""
    layer = attention.qkv
    attention.heads, attention.d_qk, _ = parts.query.shape
    attention.d_v = parts.value.shape[1]
    rows = torch.cat([parts.query.flatten(0, 1), parts.key.flatten(0, 1), parts.value.flatten(0, 1)])
    layer.weight = nn.Parameter(rows[:, :-1].to(layer.weight).contiguous())
    layer.out_features = len(rows)
    if layer.bias is not None:
        layer.bias = nn.Parameter(rows[:, -1].to(layer.weight))


def narrow(rows: Tensor, kept: Tensor) -> Tensor:
    """Return the rows `kept` of each head: [H, d, D + 1], indices [H, r] -> [H, r, D + 1]."""
    return rows.gather(1, kept[..., None].expand(-1, -1, rows.shape[2]))


def keep_heads(block: Block, kept: Tensor) -> None:
    """Take all other heads out of a block's attention, in place. kept: indices, which become the heads in order."""
    attention = attention_of(block)
    parts = read(attention)
    columns = head_columns(kept, attention.d_v)
    write(attention, Projections(parts.query[kept], parts.key[kept], parts.value[kept]))
    if isinstance(attention.norm, nn.LayerNorm | nn.RMSNorm):
        attention.norm.normalized_shape = (len(columns),)
        for name, values in list(attention.norm.named_parameters()):
            setattr(attention.norm, name, nn.Parameter(values[columns]))
    if attention.rope is not None and attention.rope.shape[1] > 1:  # a table for each head
        attention.rope = attention.rope[:, kept]
    put_proj(attention, attention.proj.weight[:, columns], attention.proj.bias)


def head_columns(heads: Tensor, width: int) -> Tensor:
    """Return the columns of proj that belong to these heads: [K] -> [K * width]."""
    return (heads[:, None] * width + torch.arange(width, device=heads.device)).flatten()


def put_proj(attention: Attention, weight: Tensor, bias: Tensor | None) -> None:
    """Give proj other weights, in place. weight: [O, H * d_v]; bias None: as it is."""
    like = attention.proj.weight
    attention.proj.weight, attention.proj.in_features = nn.Parameter(weight.to(like).contiguous()), weight.shape[1]
    if bias is not None:
        attention.proj.bias = nn.Parameter(bias.to(like))
