"""The residual stream along other axes: every layer that writes it, every layer that reads it.

The changed stream is x' = into x. Whoever writes (patch embedding, tokens, positions, proj, fc2) is multiplied by
`into`. Whoever reads (qkv, fc1, head) read e, what a norm made of x, and now read e' from x': each is given by the
affine map e = back e' + shift, which is exact at full width and otherwise a choice.

Rotation (SliceGPT, Ashkboos et al., ICLR 2024, https://arxiv.org/abs/2401.15024): with C x = x - mean(x), LayerNorm is
gamma * RMSNorm(C x) + beta, and RMSNorm commutes with an orthogonal basis Q [D, D']. So into = Q' C, and back =
gamma Q, shift = beta. Over D' channels, RMSNorm divides by sqrt(D / D') too much, which its weight gives back, with
eps D / D'.

Shapes: D width before, D' after, O rows of a reader.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.vit.model import Block, ViT
from stages.vit.spec import ViTSpec

Site = tuple[int, str]
"""Where the stream is read: (block, "attention" or "mlp"); the head is (-1, "head")."""
HEAD: Site = (-1, "head")


@dataclass(frozen=True)
class Reading:
    """What a reader saw before, from what it sees now: e = back e' + shift; float64."""

    back: Tensor
    """[D, D']"""
    shift: Tensor
    """[D]"""


@dataclass(frozen=True)
class Narrowing:
    """A narrower stream; float64."""

    into: Tensor
    """[D', D]"""
    kept: Tensor | None
    """[D'], the channels that stay as they are; None: rotated"""


def rotation(spec: ViTSpec, basis: Tensor) -> Narrowing:
    """Turn the stream to an orthonormal basis [D, D']."""
    into = basis.double().T
    if spec.norm == "layernorm":
        into = into - into.mean(dim=1, keepdim=True)
    return Narrowing(into, None)


def selection(spec: ViTSpec, kept: Tensor) -> Narrowing:
    """Keep channels as they are, indices [D']."""
    return Narrowing(torch.eye(spec.width, dtype=torch.float64, device=kept.device)[kept], kept)


def narrowed(model: ViT, spec: ViTSpec, after: ViTSpec, narrowing: Narrowing) -> ViT:
    """Return the model with the narrower stream. after: its spec (`options.reshaped`), whose new biases begin at 0."""
    like = next(model.parameters())
    changed = ViT(after.model_dump(mode="json")).to(like.device, like.dtype).eval()
    old = {name: tensor.double() for name, tensor in model.state_dict().items()}
    state = {name: tensor.double() for name, tensor in changed.state_dict().items()}
    for name in state:
        if name in old and old[name].shape == state[name].shape:
            state[name] = old[name]
        elif name.endswith("bias"):
            state[name] = torch.zeros_like(state[name])
    _write_embedding(old, state, narrowing)
    for name in state:
        if name.endswith((".gamma", "norm1.weight", "norm2.weight", "norm1.bias", "norm2.bias")) or name.startswith(
            ("norm.", "fc_norm.", "norm_pre.")
        ):
            _write_factors(name, old, state, spec, after, narrowing)
    changed.load_state_dict({name: tensor.to(like) for name, tensor in state.items()})
    for index, block in enumerate(changed.blocks):
        _write_block(block, model.blocks[index], narrowing)
    sites = [(index, part) for index in range(len(changed.blocks)) for part in ("attention", "mlp")]
    for site in [*sites, HEAD]:
        if readers(changed, site):
            read_by(changed, model, site, usual_reading(model, spec, narrowing, site))
    return changed


def usual_reading(model: ViT, spec: ViTSpec, narrowing: Narrowing, site: Site) -> Reading:
    """Return how a site reads the narrower stream where nothing was fitted."""
    if narrowing.kept is not None:
        return Reading(narrowing.into.T, narrowing.into.new_zeros(spec.width))
    norm = _norm_before(model, site)
    basis = narrowing.into.T  # orthonormal, with the mean taken out, which the source's norm took out too
    gamma = getattr(norm, "weight", None)
    beta = getattr(norm, "bias", None)
    back = basis if gamma is None else gamma.detach().double()[:, None] * basis
    return Reading(back, basis.new_zeros(len(basis)) if beta is None else beta.detach().double())


def read_by(changed: ViT, model: ViT, site: Site, reading: Reading) -> None:
    """Give the readers of a site the weights that `reading` makes of the source's, in place."""
    pairs = zip(readers(changed, site), readers(model, site), strict=True)
    for layer, source in pairs:
        weight = source.weight.detach().double()
        halves = weight.reshape(len(weight), -1, len(reading.back))  # two tokens side by side, for token_pair
        bias = halves.sum(dim=1) @ reading.shift
        if source.bias is not None:
            bias = bias + source.bias.detach().double()
        layer.weight = nn.Parameter((halves @ reading.back).flatten(1).to(layer.weight))
        if layer.bias is not None:
            layer.bias = nn.Parameter(bias.to(layer.weight))


def readers(model: ViT, site: Site) -> list[nn.Linear]:
    """Return the layers that read the stream at a site; none where the block has no such sublayer."""
    if site == HEAD:
        assert isinstance(model.head, nn.Linear)
        return [model.head]
    block = model.blocks[site[0]]
    assert isinstance(block, Block)
    if site[1] == "attention":
        return [] if block.attn is None else [block.attn.qkv]
    if block.mlp is None:
        return []
    return [block.mlp.fc1_g, block.mlp.fc1_x] if block.mlp.kind == "swiglu" else [block.mlp.fc1]


def writers(model: ViT) -> list[Tensor]:
    """Return the weights that write the stream, one row (or one kernel) per channel."""
    found: list[Tensor] = [model.patch_embed.proj.weight]
    for block in model.blocks:
        assert isinstance(block, Block)
        found += [] if block.attn is None else [block.attn.proj.weight]
        found += [] if block.mlp is None else [block.mlp.fc2.weight]
    return found


def entering(model: ViT, site: Site, x: Tensor) -> Tensor:
    """Return what the readers of a site read of the stream x [B, N, D]; for the head, before pooling."""
    if site == HEAD:
        after: Tensor = model.norm(x)
        return after
    block = model.blocks[site[0]]
    assert isinstance(block, Block)
    seen: Tensor = x if block.post_norm else _norm_before(model, site)(x)
    return seen


def _norm_before(model: ViT, site: Site) -> nn.Module:
    if site == HEAD:
        return model.norm if not isinstance(model.norm, nn.Identity) else model.fc_norm
    block = model.blocks[site[0]]
    norm = block.norm1 if site[1] == "attention" else block.norm2
    assert isinstance(norm, nn.Module)
    return norm


def _write_embedding(old: Mapping[str, Tensor], state: dict[str, Tensor], narrowing: Narrowing) -> None:
    weight = old["patch_embed.proj.weight"]
    state["patch_embed.proj.weight"] = torch.einsum("ed,dcij->ecij", narrowing.into, weight)
    if "patch_embed.proj.bias" in old:
        state["patch_embed.proj.bias"] = narrowing.into @ old["patch_embed.proj.bias"]
    for name in ("cls_token", "reg_token", "pos_embed"):
        if name in old:
            state[name] = old[name] @ narrowing.into.T


def _write_factors(
    name: str,
    old: Mapping[str, Tensor],
    state: dict[str, Tensor],
    spec: ViTSpec,
    after: ViTSpec,
    narrowing: Narrowing,
) -> None:
    """Norms over the stream, and LayerScale."""
    if narrowing.kept is not None:
        kept = narrowing.kept
        if len(old[name]) == 2 * spec.width:  # a norm over two tokens side by side
            kept = torch.cat([kept, kept + spec.width])
        state[name] = old[name][kept]
    elif name.endswith(".gamma"):
        state[name] = torch.ones_like(state[name])  # moved into the layer before it
    else:
        state[name] = torch.full_like(state[name], (spec.width / after.width) ** 0.5)


def _write_block(block: nn.Module, source: nn.Module, narrowing: Narrowing) -> None:
    assert isinstance(block, Block)
    assert isinstance(source, Block)
    pairs = []
    if block.attn is not None and source.attn is not None:
        pairs.append((block.attn.proj, source.attn.proj, source.ls1))
    if block.mlp is not None and source.mlp is not None:
        pairs.append((block.mlp.fc2, source.mlp.fc2, source.ls2))
    for layer, before, scale in pairs:
        weight, bias = before.weight.detach().double(), before.bias
        gamma = getattr(scale, "gamma", None) if narrowing.kept is None else None
        factors = weight.new_ones(len(weight)) if gamma is None else gamma.detach().double()
        layer.weight = nn.Parameter((narrowing.into @ (factors[:, None] * weight)).to(layer.weight))
        if bias is not None:
            layer.bias = nn.Parameter((narrowing.into @ (factors * bias.detach().double())).to(layer.weight))


def projection(narrowing: Narrowing) -> Callable[[Tensor], Tensor]:
    """Return x -> x', for streams [B, N, D]."""

    def project(stream: Tensor) -> Tensor:
        return stream @ narrowing.into.T.to(stream)

    return project
