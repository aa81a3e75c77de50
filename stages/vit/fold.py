"""Fold the doubled identity of removed attentions into the weights: exact, because powers of two are.

Where dilution (NOSE, https://arxiv.org/abs/2404.05657) has reached 0, a block begins with x <- 2 x in the place of its
attention. A pre-norm model does not see the scale of its residual stream, but for the eps of its norms. So with k
doublings before a place

    what is written into the stream there is multiplied by 2^-k    (proj, fc2, or LayerScale behind them)
    the eps of a norm that reads the stream there by 4^-k

and no doubling is left. The answers are equal bit for bit as long as no number becomes subnormal. The stream itself is
2^-k times what it was, and so are outputs that show it without a norm: `block_3`, and tokens of a model without a
final norm.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stages.vit.spec import ViTSpec
from targets.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def fold_doubling(spec: ViTSpec, state: "Mapping[str, Tensor]") -> "tuple[ViTSpec, dict[str, Tensor]]":
    """Return spec and state with every diluting attention off, as it is at dilution 0, and its doubling folded.

    Raises InputError for models that see the scale of their residual stream.
    """
    folded = folded_spec(spec)
    state, doublings = dict(state), 0
    for index, block in enumerate(spec.blocks):
        prefix = f"blocks.{index}"
        if block.attention == "diluting":
            doublings += 1
            drop_attention(state, index)
        elif block.attention == "on":
            _scale(state, _writer(state, f"{prefix}.ls1", f"{prefix}.attn.proj"), 0.5**doublings)
        if block.mlp:
            _scale(state, _writer(state, f"{prefix}.ls2", f"{prefix}.mlp.fc2"), 0.5**doublings)
    if spec.final_norm_eps is None and spec.head_norm_eps is None:
        _scale(state, ("head.weight",), 2.0**doublings)
    return folded, state


def folded_spec(spec: ViTSpec) -> ViTSpec:
    """Return the spec alone, as `fold_doubling` does; unchanged where nothing is diluting. Light."""
    if all(block.attention != "diluting" for block in spec.blocks):
        return spec
    refuse_unfoldable(spec)
    blocks, doublings = [], 0
    for block in spec.blocks:
        if block.attention == "diluting":
            doublings += 1
            block = block.replace(attention="off")
        elif block.attention == "on":
            block = block.replace(norm1_eps=block.norm1_eps * 0.25**doublings)
        if block.mlp:
            block = block.replace(norm2_eps=block.norm2_eps * 0.25**doublings)
        blocks.append(block)
    spec = spec.replace(blocks=tuple(blocks))
    if spec.final_norm_eps is not None:
        return spec.replace(final_norm_eps=spec.final_norm_eps * 0.25**doublings)
    if spec.head_norm_eps is not None:
        return spec.replace(head_norm_eps=spec.head_norm_eps * 0.25**doublings)
    return spec


def drop_attention(state: "dict[str, Tensor]", index: int) -> None:
    """Remove the tensors of a block's attention from a state, in place."""
    parts = tuple(f"blocks.{index}.{part}." for part in ("norm1", "attn", "ls1"))
    for name in [name for name in state if name.startswith(parts)]:
        del state[name]


def refuse_unfoldable(spec: ViTSpec) -> None:
    """Raise InputError, with the reason, for models that see the scale of their residual stream."""
    if spec.norm_placement == "post":
        raise InputError(
            "this model is post-norm: its attention and MLPs read the residual stream as it is, so that doubling the "
            "stream in the place of an attention changes what they see and cannot be folded; use removal: off"
        )
    if spec.final_norm_eps is None and spec.head_norm_eps is None and not spec.classes:
        raise InputError(
            "this model gives features without a norm, so that doubling the residual stream in the place of an "
            "attention doubles its answer and cannot be folded; use removal: off"
        )


def _writer(state: "Mapping[str, Tensor]", scale: str, linear: str) -> tuple[str, ...]:
    """Names of the last tensors on the way into the stream: LayerScale where there is one, else a linear layer."""
    gamma = f"{scale}.gamma"
    return (gamma,) if gamma in state else (f"{linear}.weight", f"{linear}.bias")


def _scale(state: "dict[str, Tensor]", names: tuple[str, ...], factor: float) -> None:
    """Multiply those of the named tensors that exist."""
    for name in names:
        if name in state:
            state[name] = state[name] * factor
