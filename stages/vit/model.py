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
        if any(spec["merge"]):
            raise ValueError(f"this spec merges tokens (merge {list(spec['merge'])}), which this model.py does not do")
        self.spec = dict(spec)
        width, classes = spec["width"], spec["classes"]
        self.image_size = (spec["preprocess"]["height"], spec["preprocess"]["width"])
        patch_tokens = prod(side // patch for side, patch in zip(self.image_size, spec["patch_size"], strict=True))
        registers = spec["register_tokens"]
        self.prefix_tokens = int(spec["class_token"]) + registers

        self.patch_embed = PatchEmbed(spec)
        self.cls_token = _token(1, width) if spec["class_token"] else None
        self.reg_token = _token(registers, width) if registers else None
        positions = patch_tokens + (self.prefix_tokens if spec["position_covers_prefix"] else 0)
        self.pos_embed = _token(positions, width) if spec["position"] == "absolute" else None
        self.norm_pre = _norm(spec, width, spec["pre_norm_eps"])
        self.blocks = nn.ModuleList(Block(spec, block) for block in spec["blocks"])
        self.norm = _norm(spec, width, spec["final_norm_eps"])
        self.feature_width = 2 * width if spec["pooling"] in ("token_pair", "token_avg") else width
        self.fc_norm = _norm(spec, self.feature_width, spec["head_norm_eps"])
        self.head = nn.Linear(self.feature_width, classes, bias=spec["head_bias"]) if classes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, classes], or the pooled features [B, D] of a model without a head. images: [B, C, H, W]."""
        return self.finish(self._through_blocks(images))

    def forward_tokens(self, images: Tensor) -> Tensor:
        """Return all tokens after the final norm: [B, N, D]."""
        tokens: Tensor = self.norm(self._through_blocks(images))
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

    def finish(self, tokens: Tensor) -> Tensor:
        """Return what `forward` returns from the residual stream after the last block. tokens: [B, N, D]."""
        logits: Tensor = self.head(self.pool(self.norm(tokens)))
        return logits

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the features that enter the head: [B, D], or [B, 2D] for token_pair and token_avg.

        tokens: [B, N, D], after the final norm.
        """
        pooling = self.spec["pooling"]
        if pooling == "token":
            pooled = tokens[:, 0]
        elif pooling == "token_pair":
            pooled = tokens[:, :2].flatten(1)
        elif pooling == "token_avg":
            pooled = torch.cat([tokens[:, 0], tokens[:, self.prefix_tokens :].mean(dim=1)], dim=1)
        else:
            pooled_over = tokens if self.spec["pool_includes_prefix"] else tokens[:, self.prefix_tokens :]
            if pooling == "avg":
                pooled = pooled_over.mean(dim=1)
            elif pooling == "max":
                pooled = pooled_over.amax(dim=1)
            elif pooling == "avgmax":
                pooled = 0.5 * (pooled_over.amax(dim=1) + pooled_over.mean(dim=1))
            else:
                raise ValueError(f"unknown pooling {pooling!r}")
        features: Tensor = self.fc_norm(pooled)
        return features

    @property
    def output_names(self) -> tuple[str, ...]:
        """What `outputs` can give."""
        head = ("logits",) if self.spec["classes"] else ()
        token = ("class_token",) if self.spec["class_token"] else ()
        return (*head, "features", *token, "patch_tokens", *(f"block_{index}" for index in range(len(self.blocks))))

    def outputs(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Return named outputs of one pass, in the order asked for.

        logits [B, classes]; features [B, D], what enters the head; class_token [B, D] and patch_tokens [B, patches, D]
        after the final norm; block_3 [B, N, D], the residual stream after blocks[3].
        """
        names = list(names)
        unknown = [name for name in names if name not in self.output_names]
        if unknown:
            raise ValueError(f"unknown output {unknown[0]!r}; known: {', '.join(self.output_names)}")
        found: dict[str, Tensor] = {}
        x = self.embed(images)
        for index, block in enumerate(self.blocks):
            x = block(x)
            found[f"block_{index}"] = x
        tokens = self.norm(x)
        found["patch_tokens"] = tokens[:, self.prefix_tokens :]
        found["class_token"] = tokens[:, 0]
        found["features"] = self.pool(tokens)
        found["logits"] = self.head(found["features"])
        return {name: found[name] for name in names}

    def _through_blocks(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
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
    """

    def __init__(self, spec: Mapping[str, Any], block: Mapping[str, Any]) -> None:
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

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream after this block: [B, N, D]."""
        return self.after_mlp(self.after_attention(x))

    def after_attention(self, x: Tensor) -> Tensor:
        """Return the residual stream between attention and MLP: [B, N, D]."""
        if self.attn is None:
            return x
        if self.attention == "diluting":
            if self.dilution == 0.0:  # nothing to compute, and nothing to learn for the attention
                return 2.0 * x
            return (2.0 - self.dilution) * x + self.dilution * self.attention_branch(x)
        return x + self.attention_branch(x)

    def after_mlp(self, x: Tensor) -> Tensor:
        """Return the residual stream after the MLP. x: what `after_attention` returned."""
        return x if self.mlp is None else x + self.mlp_branch(x)

    def attention_branch(self, x: Tensor) -> Tensor:
        """Return what attention adds to x (before dilution), zeros where it is off: [B, N, D]."""
        if self.attn is None:
            return torch.zeros_like(x)
        return self._attention_end(self.attention_output(self.attention_hidden(x)))

    def attention_hidden(self, x: Tensor) -> Tensor:
        """Return what enters proj: [B, N, H*d_v].

        x is the residual stream; pre-norm normalises it here, post-norm does not.
        """
        if self.attn is None or self.norm1 is None:
            raise ValueError("attention of this block is off")
        return self.attn.hidden(x if self.post_norm else self.norm1(x))

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

    def hidden(self, x: Tensor) -> Tensor:
        """Return what enters proj: [B, N, H*d_v]."""
        q, k, v = self.qkv(x).split([self.heads * self.d_qk, self.heads * self.d_qk, self.heads * self.d_v], dim=-1)
        q = self.q_norm(q.unflatten(-1, (self.heads, self.d_qk))).transpose(1, 2)  # [B, H, N, d_qk]
        k = self.k_norm(k.unflatten(-1, (self.heads, self.d_qk))).transpose(1, 2)  # [B, H, N, d_qk]
        v = v.unflatten(-1, (self.heads, self.d_v)).transpose(1, 2)  # [B, H, N, d_v]
        if self.rope is not None:
            q, k = self._turned(q), self._turned(k)
        if self.fused and not _is_exporting():
            mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            mixed = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        hidden: Tensor = self.norm(mixed.transpose(1, 2).flatten(2))  # [B, N, H*d_v]
        return hidden

    def _turned(self, x: Tensor) -> Tensor:
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


HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors library
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file without its library; raises ValueError if it is damaged.

    https://huggingface.co/docs/safetensors
    Layout: eight bytes, little endian: length of the header; the header, JSON; then the tensors' bytes without gaps.
    """
    path = Path(path)
    with path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise ValueError(f"{path} is no whole safetensors file: {size} bytes, header of {length} bytes")
        try:
            header = json.loads(file.read(length).decode())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: the header is not JSON: {error}") from error
        start, state = 8 + length, {}
        for name, dtype, shape, (begin, end) in _layout(path, header, data_size=size - start):
            file.seek(start + begin)
            buffer = bytearray(end - begin)
            file.readinto(buffer)
            flat = torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)
            state[name] = flat.reshape(shape)
    return state


def _layout(path: Path, header: Any, *, data_size: int) -> list[tuple[str, torch.dtype, list[int], tuple[int, int]]]:
    """Check a header and return name, dtype, shape and byte range of every tensor, in file order."""
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the header is no JSON object")
    entries = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (begin, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            whole = all(type(number) is int and 0 <= number < 2**48 for number in [*shape, begin, end])
            fits = whole and end - begin == prod(shape) * dtype.itemsize
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: the header's entry of tensor {name!r} is not valid: {entry!r}") from error
        if not fits:
            raise ValueError(f"{path}: tensor {name!r}: bytes {begin} to {end} do not hold {entry['dtype']} {shape}")
        entries.append((name, dtype, shape, (begin, end)))
    entries.sort(key=lambda entry: entry[3])
    position = 0
    for name, _, _, (begin, end) in entries:
        if begin != position:
            raise ValueError(f"{path}: tensor {name!r} starts at byte {begin}, not {position}: an overlap or a gap")
        position = end
    if position != data_size:
        raise ValueError(f"{path} is truncated or too long: tensors end at byte {position}, data at {data_size}")
    return entries
