"""Token merging in fixed shapes (ToMe: Bolya et al., "Token Merging: Your ViT But Faster", arXiv 2210.09461, §3).

Between attention and MLP of a block, `count` patch tokens are averaged into others that are like them. Patch tokens at
odd places each find the one at an even place that is most like them (cosine of the metric); the `count` pairs most
alike become one token. Order behind it: prefix tokens, odd ones that are left, even ones. Prefix tokens never merge.

Which token goes where is a matrix of zeros and ones, made by comparing, and tokens are added by multiplying with it:
no Scatter, Gather or TopK on what the picture decides, so every runtime computes it with the same operators. Of equal
scores the first counts, everywhere.

Shapes: B images, N tokens, P patch tokens now (O odd, E even ones), Q patches of the image, D residual width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class MergeState:
    """What goes through the blocks beside the tokens, where tokens merge."""

    sizes: Tensor | None = None
    """patches that each patch token stands for: [B, P, 1]; None: one each"""
    members: Tensor | None = None
    """1 where a patch token holds a patch: [B, P, Q]; None: nobody asked"""
    key_bias: Tensor | None = None
    """log of the tokens' sizes, added to the logits of proportional attention: [B, 1, 1, N]; None: not added"""
    entered: Tensor | None = None
    """what the last attention read: [B, N, D]"""
    keys: Tensor | None = None
    """of the last attention: [B, H, N, d_qk]"""


class MergeTokens(nn.Module):
    """Merge `count` patch tokens away; tokens and their number per image are fixed, the pairs are not."""

    def __init__(self, *, count: int, prefix_tokens: int, proportional: bool) -> None:
        super().__init__()
        self.count, self.prefix_tokens, self.proportional = count, prefix_tokens, proportional

    def forward(self, x: Tensor, metric: Tensor, state: MergeState) -> Tensor:
        """Return the tokens that are left, [B, N - count, D], and bring the state up to date.

        x: [B, N, D], metric: [B, N, d]. In fp32 at least, also under autocast: x is the residual stream.
        """
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self._merge(x.float(), metric.float(), state)
        return self._merge(x, metric, state)

    def similarity(self, metric: Tensor) -> Tensor:
        """Return the cosine of every patch token at an odd place with every one at an even place: [B, O, E]."""
        patches = metric[:, self.prefix_tokens :]
        patches = patches / torch.linalg.vector_norm(patches, dim=-1, keepdim=True).clamp(min=1e-6)
        similarity: Tensor = patches[:, 1::2] @ patches[:, ::2].transpose(1, 2)
        return similarity

    def assign(self, metric: Tensor) -> Tensor:
        """Return 1 where an odd token goes, to a place of its own or to that of its even one: [B, P - count, O]."""
        similarity = self.similarity(metric)
        odd, even = similarity.shape[1:]
        kept = odd - self.count
        best, partner = similarity.max(dim=-1)  # [B, O]; of equal ones the first
        place = torch.arange(odd, device=metric.device)
        target = partner.to(metric.dtype)
        if kept:
            earlier = place[:, None] > place  # [O, O]
            later = (place[:, None] < place).to(metric.dtype)
            mine, other = best[:, :, None], best[:, None, :]
            rank = ((other > mine) | ((other == mine) & earlier)).to(metric.dtype).sum(dim=-1)  # [B, O]
            merged = (rank < self.count).to(metric.dtype)
            own = place - merged @ later  # less those before it that merge
            target = own + merged * (target + kept - own)
        places = torch.arange(kept + even, dtype=metric.dtype, device=metric.device)
        return (target[:, None, :] == places[:, None]).to(metric.dtype)

    def _merge(self, x: Tensor, metric: Tensor, state: MergeState) -> Tensor:
        goes = self.assign(metric).to(x.dtype)
        kept = goes.shape[2] - self.count

        def add(tokens: Tensor) -> Tensor:  # [B, P, C] -> [B, P - count, C]
            return goes @ tokens[:, 1::2] + F.pad(tokens[:, ::2], (0, 0, kept, 0))

        prefix, patches = x[:, : self.prefix_tokens], x[:, self.prefix_tokens :]
        if state.sizes is None:
            # By a product: OpenVINO 2026.4 adds a constant to goes.sum() in the first image of a batch only
            # (https://github.com/openvinotoolkit/openvino/issues/23616).
            ones = torch.ones(1, patches.shape[1], 1, dtype=x.dtype, device=x.device)
            merged, state.sizes = add(patches), add(ones)
        else:
            merged, state.sizes = add(patches * state.sizes), add(state.sizes)
        if state.members is not None:
            state.members = add(state.members.to(x.dtype))
        if self.proportional:
            padded = F.pad(state.sizes.log(), (0, 0, self.prefix_tokens, 0))  # a prefix token stands for itself
            state.key_bias = padded.transpose(1, 2).unsqueeze(1)
        return torch.cat([prefix, merged / state.sizes], dim=1)
