"""ViTSpec: everything about a Vision Transformer but its weights. Export, counts and tests read only this.

Letters: N tokens, D residual width (`width`), H heads, d_qk and d_v per-head widths, M MLP width (what enters fc2).
Parameter names follow timm. Packed projections: `attn.qkv` holds the rows [H*d_qk of q, H*d_qk of k, H*d_v of v];
a gated MLP's packed `mlp.fc1` holds [M of one half, M of the other], `mlp_gate_first` says which is the gate.
"""

from typing import Literal

from pydantic import Field, model_validator

from targets.preprocess import Preprocess
from targets.record import Record

SPEC_FILE = "vit.json"
WEIGHTS_FILE = "model.safetensors"


class BlockSpec(Record):
    """Shapes of one block."""

    attention: Literal["on", "diluting", "off"] = "on"
    heads: int = Field(ge=0)
    d_qk: int = Field(ge=0)
    d_v: int = Field(ge=0)
    scale: float
    """attention scale, explicit: it does not follow d_qk when that is pruned"""
    mlp: bool = True
    mlp_width: int = Field(ge=0)
    norm1_eps: float
    norm2_eps: float

    @model_validator(mode="after")
    def _is_possible(self) -> "BlockSpec":
        if self.attention != "off" and not (self.heads and self.d_qk and self.d_v):
            raise ValueError(f"attention {self.attention!r} needs heads, d_qk and d_v above 0")
        if self.mlp and not self.mlp_width:
            raise ValueError("an MLP needs mlp_width above 0; set mlp to false where there is none")
        return self


class ViTSpec(Record):
    """A Vision Transformer's architecture, input and outputs."""

    format: Literal["vitrim.vit/1"] = "vitrim.vit/1"
    architecture: str
    """the timm name it was read from"""
    preprocess: Preprocess
    """input size, crop, normalisation"""
    patch_size: tuple[int, int]
    in_channels: int = 3
    width: int = Field(gt=0)
    classes: int = Field(ge=0)
    """0: no head, the output is the pooled feature"""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_placement: Literal["pre", "post"] = "pre"
    """post: timm's ResPostBlock, x + norm(sublayer(x))"""
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"] = "gelu"
    mlp_kind: Literal["mlp", "glu", "swiglu"] = "mlp"
    """glu: packed fc1 (timm GluMlp); swiglu: separate fc1_g and fc1_x (timm SwiGLU)"""
    mlp_gate_first: bool = True
    mlp_norm_eps: float | None = None
    """inner norm over the hidden width, before fc2"""
    attention_norm_eps: float | None = None
    """norm over the heads' output, before proj (timm scale_attn_norm)"""
    qk_norm_eps: float | None = None
    patch_bias: bool = True
    qkv_bias: bool = True
    proj_bias: bool = True
    fc1_bias: bool = True
    fc2_bias: bool = True
    layer_scale: bool = False
    position: Literal["absolute", "none"] = "absolute"
    position_covers_prefix: bool = True
    """false: timm's no_embed_class, prefix tokens are put before the patches after the position is added"""
    rope: bool = False
    """rotary positions (arXiv 2104.09864), besides `position`: each block turns q and k by its table `attn.rope`"""
    rope_per_head: bool = False
    """the table has an entry for each head (learned, RoPE-mixed); else one for all"""
    class_token: bool = True
    register_tokens: int = Field(default=0, ge=0)
    pre_norm_eps: float | None = None
    """norm between embedding and blocks (CLIP)"""
    final_norm_eps: float | None = 1e-6
    """norm over the tokens after the blocks"""
    head_norm_eps: float | None = None
    """norm over the pooled feature (timm fc_norm)"""
    pooling: Literal["token", "token_pair", "token_avg", "avg", "max", "avgmax"] = "token"
    """token_pair: the first two tokens side by side, 2D wide (a distilled DeiT's two heads read as one);
    token_avg: class token and mean of the patches side by side, 2D wide (DINOv2's linear classifier)"""
    pool_includes_prefix: bool = False
    head_bias: bool = True
    blocks: tuple[BlockSpec, ...]
    merge: tuple[int, ...] = ()
    """patch tokens merged away in each block, between attention and MLP; empty: none"""
    merge_metric: Literal["keys", "tokens"] = "keys"
    """what likeness of tokens is judged by: keys, averaged over the heads, or tokens, what enters the block's attention
    behind its norm; in a block without attention always what enters its MLP"""
    merge_proportional: bool = True
    """where tokens merge: add the log of a token's size to the logits of attention (ToMe's proportional attention)"""

    @model_validator(mode="after")
    def _is_possible(self) -> "ViTSpec":
        size, patch = (self.preprocess.height, self.preprocess.width), self.patch_size
        if size[0] % patch[0] or size[1] % patch[1]:
            raise ValueError(f"input {size[0]}x{size[1]} is not a multiple of the patch {patch[0]}x{patch[1]}")
        if self.merge and len(self.merge) != len(self.blocks):
            raise ValueError(f"merge has {len(self.merge)} entries for {len(self.blocks)} blocks")
        for index, count in enumerate(self.merge):
            patches = self.tokens_in(index) - self.prefix_tokens
            if not 0 <= count <= patches // 2:
                raise ValueError(
                    f"block {index} cannot merge {count} of its {patches} patch tokens; allowed: 0 to {patches // 2}"
                )
        if self.rope and any(block.attention != "off" and block.d_qk % 2 for block in self.blocks):
            raise ValueError("rotary positions turn pairs of channels, so every d_qk must be even")
        if self.rope and any(self.merge):
            raise ValueError("tokens of a model with rotary positions cannot be merged: a merged token has no place")
        if self.pooling in ("token", "token_avg") and not self.class_token:
            raise ValueError(f"pooling {self.pooling!r} needs a class token")
        if self.pooling == "token_pair" and self.prefix_tokens < 2:
            raise ValueError("pooling 'token_pair' needs two prefix tokens")
        return self

    @property
    def prefix_tokens(self) -> int:
        """Class token and register tokens, which come before the patches."""
        return int(self.class_token) + self.register_tokens

    @property
    def patch_tokens(self) -> int:
        """Tokens that stand for patches."""
        return (self.preprocess.height // self.patch_size[0]) * (self.preprocess.width // self.patch_size[1])

    @property
    def tokens(self) -> int:
        """All tokens that enter the first block."""
        return self.prefix_tokens + self.patch_tokens

    def tokens_in(self, index: int) -> int:
        """Tokens that enter a block, and its attention; its MLP sees `tokens_in(index + 1)`: merging comes between."""
        return self.tokens - sum(self.merge[:index])

    @property
    def rotatable_qk(self) -> bool:
        """Whether q and k may be turned together by any matrix: nothing between sees channels."""
        return not self.rope and self.qk_norm_eps is None

    @property
    def feature_width(self) -> int:
        """Width of what enters the head."""
        return 2 * self.width if self.pooling in ("token_pair", "token_avg") else self.width

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one input: (channels, height, width)."""
        return (self.in_channels, self.preprocess.height, self.preprocess.width)
