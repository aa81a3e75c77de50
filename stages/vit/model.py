"""A Vision Transformer rebuilt from `vit.json` and `model.safetensors`: needs torch and nothing else.

This file lies in every model folder that vitrim saves and works there alone (Python 3.10 or newer):

    from model import load
    logits = load("path/of/this/folder")(images)  # images [B, C, H, W], normalised as vit.json says under "preprocess"

Shapes: B images, N tokens (prefix tokens first), D residual width, H heads, d_qk and d_v widths per head, M MLP width
(what enters fc2). Parameter names are timm's, so the state of an unpruned timm VisionTransformer fits.
Packed rows of `attn.qkv`: H*d_qk of q, H*d_qk of k, H*d_v of v, each head by head; of a gated MLP's `mlp.fc1`: M of one
half, M of the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Written into the copies in model folders:
from stages.vit.merging import MergeState, MergeTokens
from stages.vit.tensor_file import read_safetensors

SPEC_FILE = "vit.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = "vitrim.vit/1"


def load(folder: str | Path, *, device: str | torch.device = "cpu") -> ViT:
    """Rebuild the model of a folder in evaluation mode; raises ValueError where its files are damaged or do not fit."""
    folder = Path(folder)
    try:
        spec = json.loads((folder / SPEC_FILE).read_bytes())
    except ValueError as error:
        raise ValueError(f"{folder / SPEC_FILE} is not JSON: {error}") from error
    if not isinstance(spec, dict) or spec.get("format") != FORMAT:
        raise ValueError(f"{folder / SPEC_FILE} does not hold the format {FORMAT!r}")
    state = read_safetensors(folder / WEIGHTS_FILE)
    with torch.device("meta"):
        model = ViT(spec)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{folder / WEIGHTS_FILE} does not fit {SPEC_FILE}: {len(wrong)} tensors differ, "
            f"first {name!r}: expected {expected.get(name)}, found {found.get(name)}"
        )
    model.load_state_dict(state, assign=True)
    return model.to(device).eval()


class ViT(nn.Module):
    """A Vision Transformer with the shapes of a spec; random weights until a state is loaded.

    spec: the content of vit.json. Every block may have shapes of its own; attention and MLP of a block may be off.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        self.spec = dict(spec)
        width, classes = spec["width"], spec["classes"]
        self.image_size = (spec["preprocess"]["height"], spec["preprocess"]["width"])
        patch_tokens: int = prod(side // patch for side, patch in zip(self.image_size, spec["patch_size"], strict=True))
        registers = spec["register_tokens"]
        self.prefix_tokens = int(spec["class_token"]) + registers

        self.patch_embed = PatchEmbed(spec)
        self.cls_token = _token(1, width) if spec["class_token"] else None
        self.reg_token = _token(registers, width) if registers else None
        positions = patch_tokens + (self.prefix_tokens if spec["position_covers_prefix"] else 0)
        self.pos_embed = _token(positions, width) if spec["position"] == "absolute" else None
        self.norm_pre = _norm(spec, width, spec["pre_norm_eps"])
        merge = spec["merge"] or [0] * len(spec["blocks"])
        self.patch_tokens = patch_tokens  # before any merge
        self.blocks = nn.ModuleList(Block(spec, *pair) for pair in zip(spec["blocks"], merge, strict=True))
        self.norm = _norm(spec, width, spec["final_norm_eps"])
        self.feature_width = 2 * width if spec["pooling"] in ("token_pair", "token_avg") else width
        self.fc_norm = _norm(spec, self.feature_width, spec["head_norm_eps"])
        self.head = nn.Linear(self.feature_width, classes, bias=spec["head_bias"]) if classes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, classes], or the pooled features [B, D] of a model without a head. images: [B, C, H, W]."""
        state = MergeState()
        x = self._through_blocks(images, state)
        return self.finish(x, state.sizes)

    def forward_tokens(self, images: Tensor) -> Tensor:
        """Return all tokens after the final norm: [B, N, D], N those that no merge took away."""
        tokens: Tensor = self.norm(self._through_blocks(images, MergeState()))
        return tokens

    def embed(self, images: Tensor) -> Tensor:
        """Return what enters the first block: [B, N, D]."""
        if tuple(images.shape[2:]) != self.image_size:
            height, width = self.image_size
            raise ValueError(f"images must be [B, C, {height}, {width}], got {list(images.shape)}")
        patches = self.patch_embed(images)  # [B, patches, D]
        learned = [token for token in (self.cls_token, self.reg_token) if token is not None]
        prefix = [token.expand(images.shape[0], -1, -1) for token in learned]
        if self.pos_embed is None:
            tokens = torch.cat([*prefix, patches], dim=1)
        elif self.spec["position_covers_prefix"]:
            tokens = torch.cat([*prefix, patches], dim=1) + self.pos_embed
        else:
            tokens = torch.cat([*prefix, patches + self.pos_embed], dim=1)
        embedded: Tensor = self.norm_pre(tokens)
        return embedded

    def finish(self, tokens: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Return what `forward` returns from the residual stream after the last block. tokens: [B, N, D]."""
        logits: Tensor = self.head(self.pool(self.norm(tokens), sizes))
        return logits

    def pool(self, tokens: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Return the features that enter the head: [B, D], or [B, 2D] for token_pair and token_avg.

        tokens: [B, N, D], after the final norm. sizes: patches in each patch token, [B, P, 1], which weigh in averages.
        """
        pooling = self.spec["pooling"]
        if pooling == "token":
            pooled = tokens[:, 0]
        elif pooling == "token_pair":
            pooled = tokens[:, :2].flatten(1)
        elif pooling == "token_avg":
            pooled = torch.cat([tokens[:, 0], self._mean(tokens, sizes, skipped=self.prefix_tokens)], dim=1)
        else:
            skipped = 0 if self.spec["pool_includes_prefix"] else self.prefix_tokens
            pooled_over = tokens[:, skipped:]
            if pooling == "avg":
                pooled = self._mean(tokens, sizes, skipped=skipped)
            elif pooling == "max":
                pooled = pooled_over.amax(dim=1)
            elif pooling == "avgmax":
                pooled = 0.5 * (pooled_over.amax(dim=1) + self._mean(tokens, sizes, skipped=skipped))
            else:
                raise ValueError(f"unknown pooling {pooling!r}")
        features: Tensor = self.fc_norm(pooled)
        return features

    def _mean(self, tokens: Tensor, sizes: Tensor | None, *, skipped: int) -> Tensor:
        if sizes is None:
            return tokens[:, skipped:].mean(dim=1)
        prefix, patches = tokens[:, skipped : self.prefix_tokens], tokens[:, self.prefix_tokens :] * sizes
        counted: Tensor = torch.cat([prefix, patches], dim=1).sum(dim=1)
        return counted / (prefix.shape[1] + self.patch_tokens)

    @property
    def output_names(self) -> tuple[str, ...]:
        """What `outputs` can give."""
        head = ("logits",) if self.spec["classes"] else ()
        token = ("class_token",) if self.spec["class_token"] else ()
        sources = ("patch_sources",) if any(self.spec["merge"]) else ()
        blocks = (f"block_{index}" for index in range(len(self.blocks)))
        return (*head, "features", *token, "patch_tokens", *sources, *blocks)

    def outputs(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Return named outputs of one pass, in the order asked for.

        logits [B, classes]; features [B, D], what enters the head; class_token [B, D] and patch_tokens [B, patches, D]
        after the final norm; block_3 [B, N, D], the residual stream after blocks[3]. Where tokens merge, those left;
        there also patch_sources [B, patch tokens left, patches], 1 where a token holds a patch.
        """
        names = list(names)
        unknown = [name for name in names if name not in self.output_names]
        if unknown:
            raise ValueError(f"unknown output {unknown[0]!r}; known: {', '.join(self.output_names)}")
        found: dict[str, Tensor] = {}
        x, state = self.embed(images), MergeState()
        if "patch_sources" in names:
            state.members = torch.eye(self.patch_tokens, dtype=x.dtype, device=x.device)[None]
        for index, block in enumerate(self.blocks):
            x = block(x, state)
            found[f"block_{index}"] = x
        if state.members is not None:
            found["patch_sources"] = state.members
        tokens = self.norm(x)
        found["patch_tokens"] = tokens[:, self.prefix_tokens :]
        found["class_token"] = tokens[:, 0]
        found["features"] = self.pool(tokens, state.sizes)
        found["logits"] = self.head(found["features"])
        return {name: found[name] for name in names}

    def _through_blocks(self, images: Tensor, state: MergeState) -> Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x, state)
        return x


class PatchEmbed(nn.Module):
    """Cut images into patches and project each: [B, C, H, W] -> [B, patches, D]."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        patch = tuple(spec["patch_size"])
        self.proj = nn.Conv2d(spec["in_channels"], spec["width"], patch, stride=patch, bias=spec["patch_bias"])

    def forward(self, images: Tensor) -> Tensor:
        """Return one token per patch, row by row."""
        patches: Tensor = self.proj(images)
        return patches.flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention, then MLP, each added to the residual stream x [B, N, D].

    Pre-norm: a branch is layer_scale(sublayer(norm(x))).
    Post-norm (timm's ResPostBlock): a branch is norm(layer_scale(sublayer(x))).
    A diluting attention gives (2 - dilution) * x + dilution * branch (NOSE): 1 is the plain block, 0 has no attention.
    merge: patch tokens merged away between attention and MLP, by `forward` alone, not by the steps below it. Likeness
    is judged by the keys, averaged over the heads, or by what enters attention; without attention, what enters the MLP.
    """

    def __init__(self, spec: Mapping[str, Any], block: Mapping[str, Any], merge: int = 0) -> None:
        super().__init__()
        width = spec["width"]
        self.post_norm = spec["norm_placement"] == "post"
        self.attention = block["attention"]
        self.dilution = 1.0  # read only where attention is "diluting"; never saved
        self.norm1: nn.Module | None = None
        self.attn: Attention | None = None
        if self.attention != "off":
            self.norm1 = _norm(spec, width, block["norm1_eps"])
            self.attn = Attention(spec, block)
            self.ls1 = LayerScale(width) if spec["layer_scale"] else nn.Identity()
        self.norm2: nn.Module | None = None
        self.mlp: Mlp | None = None
        if block["mlp"]:
            self.norm2 = _norm(spec, width, block["norm2_eps"])
            self.mlp = Mlp(spec, block)
            self.ls2 = LayerScale(width) if spec["layer_scale"] else nn.Identity()
        self.merge: MergeTokens | None = None
        self.merge_by_keys = spec["merge_metric"] == "keys"
        if merge:
            prefix = int(spec["class_token"]) + spec["register_tokens"]
            self.merge = MergeTokens(count=merge, prefix_tokens=prefix, proportional=spec["merge_proportional"])

    def forward(self, x: Tensor, state: MergeState | None = None) -> Tensor:
        """Return the residual stream after this block: [B, N, D]. state: what merged so far, brought up to date."""
        state = MergeState() if state is None else state
        state.entered = state.keys = None  # left by this block's attention, if it runs
        x = self.after_attention(x, state)
        if self.merge is not None:
            x = self.merge(x, self._metric(x, state), state)
        return self.after_mlp(x)

    def _metric(self, x: Tensor, state: MergeState) -> Tensor:
        """Return what likeness of tokens is judged by: [B, N, d]."""
        if self.attn is None or state.keys is None or state.entered is None:
            return x if self.post_norm or self.norm2 is None else self.norm2(x)
        return state.keys.mean(dim=1) if self.merge_by_keys else state.entered

    def after_attention(self, x: Tensor, state: MergeState | None = None) -> Tensor:
        """Return the residual stream between attention and MLP: [B, N, D]."""
        if self.attn is None:
            return x
        if self.attention == "diluting":
            if self.dilution == 0.0:  # nothing to compute, and nothing to learn for the attention
                return 2.0 * x
            return (2.0 - self.dilution) * x + self.dilution * self.attention_branch(x, state)
        return x + self.attention_branch(x, state)

    def after_mlp(self, x: Tensor) -> Tensor:
        """Return the residual stream after the MLP. x: what `after_attention` returned."""
        return x if self.mlp is None else x + self.mlp_branch(x)

    def attention_branch(self, x: Tensor, state: MergeState | None = None) -> Tensor:
        """Return what attention adds to x (before dilution), zeros where it is off: [B, N, D]."""
        if self.attn is None:
            return torch.zeros_like(x)
        return self._attention_end(self.attention_output(self.attention_hidden(x, state)))

    def attention_hidden(self, x: Tensor, state: MergeState | None = None) -> Tensor:
        """Return what enters proj: [B, N, H*d_v].

        x is the residual stream; pre-norm normalises it here, post-norm does not.
        """
        if self.attn is None or self.norm1 is None:
            raise ValueError("attention of this block is off")
        return self.attn.hidden(x if self.post_norm else self.norm1(x), state)

    def attention_output(self, hidden: Tensor) -> Tensor:
        """Apply proj alone, before LayerScale and before the norm of post-norm blocks. hidden: [B, N, H*d_v]."""
        if self.attn is None:
            raise ValueError("attention of this block is off")
        output: Tensor = self.attn.proj(hidden)
        return output

    def mlp_branch(self, x: Tensor) -> Tensor:
        """Return what the MLP adds to x, zeros where it is off: [B, N, D]. x: what `after_attention` returned."""
        if self.mlp is None:
            return torch.zeros_like(x)
        return self._mlp_end(self.mlp_output(self.mlp_hidden(x)))

    def mlp_hidden(self, x: Tensor) -> Tensor:
        """Return what enters fc2, after activation, gate and inner norm: [B, N, M].

        x is the residual stream after attention; pre-norm normalises it here, post-norm does not.
        """
        if self.mlp is None or self.norm2 is None:
            raise ValueError("the MLP of this block is off")
        return self.mlp.hidden(x if self.post_norm else self.norm2(x))

    def mlp_output(self, hidden: Tensor) -> Tensor:
        """Apply fc2 alone, before LayerScale and before the norm of post-norm blocks. hidden: [B, N, M]."""
        if self.mlp is None:
            raise ValueError("the MLP of this block is off")
        output: Tensor = self.mlp.fc2(hidden)
        return output

    def _attention_end(self, output: Tensor) -> Tensor:
        scaled: Tensor = self.ls1(output)
        return self.norm1(scaled) if self.post_norm and self.norm1 is not None else scaled

    def _mlp_end(self, output: Tensor) -> Tensor:
        scaled: Tensor = self.ls2(output)
        return self.norm2(scaled) if self.post_norm and self.norm2 is not None else scaled


class Attention(nn.Module):
    """Self-attention with any number of heads, d_qk apart from d_v, and a scale that follows neither.

    fused: use torch's fused kernel. Exported graphs always hold the plain MatMul, Softmax, MatMul that runtimes know.
    """

    def __init__(self, spec: Mapping[str, Any], block: Mapping[str, Any]) -> None:
        super().__init__()
        self.heads, self.d_qk, self.d_v = block["heads"], block["d_qk"], block["d_v"]
        self.scale: float = block["scale"]
        self.fused = True
        rows = self.heads * (2 * self.d_qk + self.d_v)
        self.qkv = nn.Linear(spec["width"], rows, bias=spec["qkv_bias"])
        self.rope: Tensor | None
        self.register_buffer("rope", None)
        if spec.get("rope"):
            table = torch.zeros(2, self.heads if spec["rope_per_head"] else 1, _tokens(spec), self.d_qk)
            table[1] = 1.0  # cosines: nothing turns until a state is loaded
            self.rope = table
        self.q_norm = _norm(spec, self.d_qk, spec["qk_norm_eps"])
        self.k_norm = _norm(spec, self.d_qk, spec["qk_norm_eps"])
        self.norm = _norm(spec, self.heads * self.d_v, spec["attention_norm_eps"])
        self.proj = nn.Linear(self.heads * self.d_v, spec["width"], bias=spec["proj_bias"])

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of proj: [B, N, D]."""
        output: Tensor = self.proj(self.hidden(x))
        return output

    def hidden(self, x: Tensor, state: MergeState | None = None) -> Tensor:
        """Return what enters proj: [B, N, H*d_v]. state: where the keys are left, and a bias on their logits taken."""
        q, k, v = self.qkv(x).split([self.heads * self.d_qk, self.heads * self.d_qk, self.heads * self.d_v], dim=-1)
        q = self.q_norm(q.unflatten(-1, (self.heads, self.d_qk))).transpose(1, 2)  # [B, H, N, d_qk]
        k = self.k_norm(k.unflatten(-1, (self.heads, self.d_qk))).transpose(1, 2)  # [B, H, N, d_qk]
        v = v.unflatten(-1, (self.heads, self.d_v)).transpose(1, 2)  # [B, H, N, d_v]
        if self.rope is not None:
            q, k = self.turned(q), self.turned(k)
        bias = None
        if state is not None:
            state.entered, state.keys, bias = x, k, state.key_bias
        if self.fused and not _is_exporting():
            mask = None if bias is None else bias.to(q.dtype)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        else:
            logits = q * self.scale @ k.transpose(-2, -1)
            mixed = (logits if bias is None else logits + bias).softmax(dim=-1) @ v
        hidden: Tensor = self.norm(mixed.transpose(1, 2).flatten(2))  # [B, N, H*d_v]
        return hidden

    def turned(self, x: Tensor) -> Tensor:
        """Turn channels i and i + d_qk/2 by the angle of their token (rotary positions): [B, H, N, d_qk]."""
        assert self.rope is not None
        sine, cosine = self.rope
        first, second = x.chunk(2, dim=-1)
        turned: Tensor = x * cosine + torch.cat([-second, first], dim=-1) * sine
        return turned.to(x.dtype)  # the table is fp32, also where autocast made x shorter


class Mlp(nn.Module):
    """Two linear layers; the first may be gated: `glu` packs gate and value into fc1, `swiglu` keeps them apart."""

    def __init__(self, spec: Mapping[str, Any], block: Mapping[str, Any]) -> None:
        super().__init__()
        width, hidden, bias = spec["width"], block["mlp_width"], spec["fc1_bias"]
        self.kind, self.gate_first = spec["mlp_kind"], spec["mlp_gate_first"]
        self.activation = ACTIVATIONS[spec["activation"]]
        if self.kind == "swiglu":
            self.fc1_g = nn.Linear(width, hidden, bias=bias)
            self.fc1_x = nn.Linear(width, hidden, bias=bias)
        else:
            self.fc1 = nn.Linear(width, 2 * hidden if self.kind == "glu" else hidden, bias=bias)
        self.norm = _norm(spec, hidden, spec["mlp_norm_eps"])
        self.fc2 = nn.Linear(hidden, width, bias=spec["fc2_bias"])

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of fc2: [B, N, D]."""
        output: Tensor = self.fc2(self.hidden(x))
        return output

    def hidden(self, x: Tensor) -> Tensor:
        """Return what enters fc2: [B, N, M]."""
        if self.kind == "mlp":
            gated = self.activation(self.fc1(x))
        elif self.kind == "swiglu":
            gated = self.activation(self.fc1_g(x)) * self.fc1_x(x)
        else:
            first, second = self.fc1(x).chunk(2, dim=-1)
            gated = self.activation(first) * second if self.gate_first else first * self.activation(second)
        hidden: Tensor = self.norm(gated)
        return hidden


class LayerScale(nn.Module):
    """Multiply each channel by a learned factor (CaiT, arXiv 2103.17239)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return x times gamma, shape unchanged."""
        return x * self.gamma


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
}


def _norm(spec: Mapping[str, Any], width: int, eps: float | None) -> nn.Module:
    """A norm of the model's kind over the last axis; eps None: no norm."""
    if eps is None:
        return nn.Identity()
    kinds: dict[str, Callable[..., nn.Module]] = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}
    return kinds[spec["norm"]](width, eps=eps)


def _tokens(spec: Mapping[str, Any]) -> int:
    """Prefix tokens and patches."""
    size = (spec["preprocess"]["height"], spec["preprocess"]["width"])
    patches: int = prod(side // patch for side, patch in zip(size, spec["patch_size"], strict=True))
    return int(spec["class_token"]) + int(spec["register_tokens"]) + patches


def _token(count: int, width: int) -> nn.Parameter:
    """Learned vectors: [1, count, D]."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, width), std=0.02))


def _is_exporting() -> bool:
    # torch.compiler.is_exporting is younger than the oldest torch this file runs on.
    asked: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.onnx.is_in_onnx_export)
    return asked() or torch.onnx.is_in_onnx_export()
