"""Parameters and multiply-accumulates of a Vision Transformer, from its spec alone.

MACs of one image. Counted: linear layers, the patch convolution, both matmuls of attention and those of token merging;
not counted: norms, activations, softmax, LayerScale, additions, pooling. One block has
N·D·H·(2·d_qk + d_v) + N²·H·(d_qk + d_v) + N·H·d_v·D + 2·N·D·M, of a gated MLP 3·N·D·M. Papers often call this "FLOPs".
Letters: see stages/vit/spec.py.
"""

from stages.vit.spec import BlockSpec, ViTSpec


def count_params(spec: ViTSpec) -> int:
    """Learned numbers of the whole model."""
    return sum(params_by_part(spec).values())


def count_macs(spec: ViTSpec) -> int:
    """Multiply-accumulates of one image through the whole model."""
    return sum(macs_by_part(spec).values())


def params_by_part(spec: ViTSpec) -> dict[str, int]:
    """Learned numbers of embedding, attention, mlp, norm and head.

    Attention and mlp hold their inner norms and LayerScale; norm holds those over D around them; head its own norm.
    """
    patch = spec.in_channels * spec.patch_size[0] * spec.patch_size[1]
    positions = spec.patch_tokens + (spec.prefix_tokens if spec.position_covers_prefix else 0)
    embedding = _linear(patch, spec.width, bias=spec.patch_bias) + spec.prefix_tokens * spec.width
    embedding += positions * spec.width if spec.position == "absolute" else 0
    between = _norm(spec, spec.width, spec.pre_norm_eps) + _norm(spec, spec.width, spec.final_norm_eps)
    for block in spec.blocks:
        between += (int(block.attention != "off") + int(block.mlp)) * _norm(spec, spec.width, block.norm1_eps)
    head = _linear(spec.feature_width, spec.classes, bias=spec.head_bias) if spec.classes else 0
    return {
        "embedding": embedding,
        "attention": sum(attention_params(spec, block) for block in spec.blocks),
        "mlp": sum(mlp_params(spec, block) for block in spec.blocks),
        "norm": between,
        "head": head + _norm(spec, spec.feature_width, spec.head_norm_eps),
    }


def macs_by_part(spec: ViTSpec) -> dict[str, int]:
    """Multiply-accumulates of one image in embedding, attention (with merging), mlp, norm (always 0) and head."""
    patch = spec.in_channels * spec.patch_size[0] * spec.patch_size[1]
    return {
        "embedding": spec.patch_tokens * patch * spec.width,
        "attention": sum(
            attention_macs(spec, block, tokens=spec.tokens_in(index)) + merge_macs(spec, index)
            for index, block in enumerate(spec.blocks)
        ),
        "mlp": sum(mlp_macs(spec, block, tokens=spec.tokens_in(index + 1)) for index, block in enumerate(spec.blocks)),
        "norm": 0,
        "head": spec.feature_width * spec.classes,
    }


def attention_macs(spec: ViTSpec, block: BlockSpec, *, tokens: int | None = None) -> int:
    """Multiply-accumulates of one block's attention for one image. tokens: that enter it, by default unmerged."""
    if block.attention == "off":
        return 0
    tokens = spec.tokens if tokens is None else tokens
    inner = block.heads * block.d_v
    projections = tokens * spec.width * (block.heads * 2 * block.d_qk + 2 * inner)
    return projections + tokens**2 * block.heads * (block.d_qk + block.d_v)


def mlp_macs(spec: ViTSpec, block: BlockSpec, *, tokens: int | None = None) -> int:
    """Multiply-accumulates of one block's MLP for one image. tokens: that enter it, by default unmerged."""
    tokens = spec.tokens if tokens is None else tokens
    matrices = 2 if spec.mlp_kind == "mlp" else 3
    return matrices * tokens * spec.width * block.mlp_width if block.mlp else 0


def merge_macs(spec: ViTSpec, index: int) -> int:
    """Multiply-accumulates of merging in one block for one image: likeness, ranks, sums of tokens and sizes."""
    count = spec.merge[index] if spec.merge else 0
    if not count:
        return 0
    patches = spec.tokens_in(index) - spec.prefix_tokens
    odd, even = patches // 2, patches - patches // 2
    by_keys = spec.merge_metric == "keys" and spec.blocks[index].attention != "off"
    likeness = odd * even * (spec.blocks[index].d_qk if by_keys else spec.width)
    ranks = odd**2 if count < odd else 0
    return likeness + ranks + (patches - count) * odd * (spec.width + 1)


def attention_params(spec: ViTSpec, block: BlockSpec) -> int:
    """Learned numbers of one block's attention, with inner norms and LayerScale."""
    if block.attention == "off":
        return 0
    inner = block.heads * block.d_v
    rows = 2 * block.heads * block.d_qk + inner
    norms = 2 * _norm(spec, block.d_qk, spec.qk_norm_eps) + _norm(spec, inner, spec.attention_norm_eps)
    linears = _linear(spec.width, rows, bias=spec.qkv_bias) + _linear(inner, spec.width, bias=spec.proj_bias)
    return linears + norms + (spec.width if spec.layer_scale else 0)


def mlp_params(spec: ViTSpec, block: BlockSpec) -> int:
    """Learned numbers of one block's MLP, with inner norm and LayerScale."""
    if not block.mlp:
        return 0
    rows = block.mlp_width if spec.mlp_kind == "mlp" else 2 * block.mlp_width
    linears = _linear(spec.width, rows, bias=spec.fc1_bias) + _linear(block.mlp_width, spec.width, bias=spec.fc2_bias)
    return linears + _norm(spec, block.mlp_width, spec.mlp_norm_eps) + (spec.width if spec.layer_scale else 0)


def _linear(inputs: int, outputs: int, *, bias: bool) -> int:
    return outputs * (inputs + int(bias))


def _norm(spec: ViTSpec, width: int, eps: float | None) -> int:
    """A LayerNorm has weight and bias, an RMSNorm a weight; eps None: no norm."""
    if eps is None:
        return 0
    return 2 * width if spec.norm == "layernorm" else width
