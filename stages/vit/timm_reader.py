"""From a timm VisionTransformer or Eva to a ViTSpec and weights, proved by comparing outputs; refuses the unknown.

It reads the modules that are there, not the model's name. What only matters in training (dropout, drop path,
is left out.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ValidationError
from timm.data import resolve_model_data_config
from timm.layers import (
    Attention,
    AttentionRope,
    GluMlp,
    LayerNorm,
    LayerNormFp32,
    LayerScale,
    Mlp,
    PatchEmbed,
    RmsNorm,
    RmsNormFp32,
    SwiGLU,
)
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from stages.vit.counts import count_macs
from stages.vit.files import build_empty, check_fits
from stages.vit.model import ACTIVATIONS
from stages.vit.spec import BlockSpec, ViTSpec
from stages.vit.timm_eva import has_qkv_bias, plain_state
from targets.errors import InputError
from targets.preprocess import Preprocess

logger = logging.getLogger("vitrim.vit.timm_reader")

NORMS: dict[type[nn.Module], str] = {
    nn.LayerNorm: "layernorm",
    LayerNorm: "layernorm",
    LayerNormFp32: "layernorm",
    RmsNorm: "rmsnorm",
    RmsNormFp32: "rmsnorm",
}
COMPUTES_IN_FP32 = (LayerNormFp32, RmsNormFp32)
MODELS = (VisionTransformer, VisionTransformerDistilled, Eva)
ATTENTIONS = (Attention, EvaAttention, AttentionRope)
MLPS: dict[type[nn.Module], str] = {Mlp: "mlp", GluMlp: "glu", SwiGLU: "swiglu"}
BLOCKS: dict[type[nn.Module], str] = {
    Block: "pre",
    ResPostBlock: "post",
    EvaBlock: "pre",
    EvaBlockPostNorm: "post",
}
FP64_MACS = 6_000_000_000  # above (a ViT-S at 224 has 4.6 G) fp64 takes too long, fp32 is used instead
PARITY_IMAGES = 2


def read_timm(model: nn.Module, *, name: str) -> tuple[ViTSpec, dict[str, Tensor]]:
    """Read the architecture and the fp32 weights of a timm VisionTransformer.

    name: what the spec calls it. The spec is believed only after the rebuilt model gave the same tokens and outputs as
    timm's on random images. Raises InputError with the reason for what vitrim does not know.
    """
    spec = read_spec(model, name=name)
    assert isinstance(model, MODELS)  # read_spec refuses others
    with _refusals(name):
        state = _read_state(model)
        check_fits(state, build_empty(spec))
        _compare(model, spec, state)
    return spec, state


def read_spec(model: nn.Module, *, name: str) -> ViTSpec:
    """Read the architecture alone, without proof; the model may be on the meta device. Raises InputError."""
    check_class(model, name=name)
    with _refusals(name):
        return _read_spec(model, name=name)


def check_class(model: nn.Module, *, name: str) -> None:
    """Raise InputError where the model is not of a class that vitrim reads."""
    with _refusals(name):
        if type(model) not in MODELS:
            known = ", ".join(kind.__name__ for kind in MODELS)
            raise _UnknownError(f"its class is {type(model).__name__!r}; vitrim reads timm's {known}")


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Say which model it was about."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where, reason = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
        raise InputError(f"cannot read the timm model {name!r}: {where}{': ' if where else ''}{reason}") from error
    except (_UnknownError, InputError) as error:
        raise InputError(f"cannot read the timm model {name!r}: {error}") from error


class _UnknownError(Exception):
    """The model has something that a ViTSpec cannot express."""


def _read_spec(model: Any, *, name: str) -> ViTSpec:
    if len(model.blocks) == 0:
        raise _UnknownError("it has no blocks")
    for block in model.blocks:
        if type(block) not in BLOCKS:
            raise _UnknownError(
                f"its blocks are {type(block).__name__!r}; known: {', '.join(kind.__name__ for kind in BLOCKS)}"
            )
    shared = [_shared_facts(block) for block in model.blocks]
    mixed = sorted({key for facts in shared for key in facts if facts[key] != shared[0][key]})
    if mixed:
        raise _UnknownError(f"its blocks differ in {', '.join(mixed)}")
    blocks = tuple(_read_block(block) for block in model.blocks)
    norms = {NORMS[type(module)] for module in model.modules() if type(module) in NORMS}
    if len(norms) != 1:
        raise _UnknownError(f"it mixes norms: {', '.join(sorted(norms)) or 'none'}")
    return ViTSpec.model_validate(
        {
            "architecture": name,
            "preprocess": _read_preprocess(model),
            **_embedding_facts(model),
            "norm": norms.pop(),
            **shared[0],
            "final_norm_eps": _eps(model.norm),
            **_head_facts(model),
            "blocks": blocks,
        }
    )


def _embedding_facts(model: Any) -> dict[str, Any]:
    embed = model.patch_embed
    if type(embed) is not PatchEmbed:
        raise _UnknownError(f"its patch embedding is {type(embed).__name__!r}; known: PatchEmbed")
    if not isinstance(embed.norm, nn.Identity):
        raise _UnknownError("its patch embedding has a norm of its own")
    conv = embed.proj
    if conv.stride != conv.kernel_size or conv.padding != (0, 0) or conv.groups != 1 or conv.dilation != (1, 1):
        raise _UnknownError("its patches overlap or leave gaps")
    if conv.in_channels != 3:
        raise _UnknownError(f"it reads {conv.in_channels} channels; vitrim prepares RGB images, so it must read 3")
    distilled = isinstance(model, VisionTransformerDistilled)
    return {
        "patch_size": conv.kernel_size,
        "in_channels": conv.in_channels,
        "width": conv.out_channels,
        "patch_bias": conv.bias is not None,
        "class_token": model.cls_token is not None,
        # The distillation token of a DeiT is one more token behind the class token, as a register is.
        "register_tokens": 1 if distilled else model.num_prefix_tokens - int(model.cls_token is not None),
        "position": "none" if model.pos_embed is None else "absolute",
        "rope": getattr(model, "rope", None) is not None,
        "rope_per_head": getattr(model, "rope_mixed", False),
        "position_covers_prefix": not model.no_embed_class,
        "pre_norm_eps": _eps(model.norm_pre),
    }


def _head_facts(model: Any) -> dict[str, Any]:
    if model.attn_pool is not None:
        raise _UnknownError(
            f"it pools by attention (global_pool {model.global_pool!r}); known: token, avg, max, avgmax"
        )
    if model.global_pool not in ("token", "avg", "max", "avgmax"):
        raise _UnknownError(f"it does not pool (global_pool {model.global_pool!r}); set global_pool to token or avg")
    if not isinstance(model.head, nn.Linear | nn.Identity):
        raise _UnknownError(f"its head is {type(model.head).__name__!r}; known: Linear, or none")
    classes = model.head.out_features if isinstance(model.head, nn.Linear) else 0
    pooling = model.global_pool
    if isinstance(model, VisionTransformerDistilled):
        if (
            not classes
            or model.distilled_training
            or model.num_reg_tokens
            or not isinstance(model.fc_norm, nn.Identity)
        ):
            raise _UnknownError(
                "a distilled DeiT needs both heads in plain form: set classes, no registers, no fc_norm"
            )
        pooling = "token_pair"
    return {
        "classes": classes,
        "head_bias": isinstance(model.head, nn.Linear) and model.head.bias is not None,
        "head_norm_eps": _eps(model.fc_norm),
        "pooling": pooling,
        "pool_includes_prefix": getattr(model, "pool_include_prefix", False),
    }


def _shared_facts(block: Any) -> dict[str, Any]:
    """What a spec says once for all blocks."""
    attention, mlp = block.attn, block.mlp
    if type(attention) not in ATTENTIONS or getattr(attention, "gate", None) is not None:
        gated = "a gated " if type(attention) in ATTENTIONS else ""
        known = ", ".join(kind.__name__ for kind in ATTENTIONS)
        raise _UnknownError(f"its attention is {gated}{type(attention).__name__!r}; known: {known}")
    if getattr(attention, "num_kv_heads", attention.num_heads) != attention.num_heads:
        raise _UnknownError("its heads share keys and values (grouped-query attention)")
    if type(mlp) not in MLPS or not isinstance(mlp.fc2, nn.Linear):
        raise _UnknownError(f"its MLP is {type(mlp).__name__!r}; known: {', '.join(kind.__name__ for kind in MLPS)}")
    if _eps(attention.q_norm) != _eps(attention.k_norm):
        raise _UnknownError("q_norm and k_norm differ")
    scales = [getattr(block, name, nn.Identity()) for name in ("ls1", "ls2")]
    if not all(isinstance(scale, LayerScale | nn.Identity) for scale in scales):
        raise _UnknownError(f"its layer scale is {type(scales[0]).__name__!r}")
    eva = isinstance(block, EvaBlock | EvaBlockPostNorm)
    first = mlp.fc1_g if isinstance(mlp, SwiGLU) else mlp.fc1
    return {
        "norm_placement": BLOCKS[type(block)],
        "activation": _read_activation(mlp.act),
        "mlp_kind": MLPS[type(mlp)],
        "mlp_gate_first": not getattr(mlp, "gate_last", False),
        "mlp_norm_eps": _eps(mlp.norm),
        "attention_norm_eps": _eps(attention.norm),
        "qk_norm_eps": _eps(attention.q_norm),
        "qkv_bias": has_qkv_bias(attention) if eva else attention.qkv.bias is not None,
        "proj_bias": attention.proj.bias is not None,
        "fc1_bias": first.bias is not None,
        "fc2_bias": mlp.fc2.bias is not None,
        "layer_scale": any(isinstance(scale, LayerScale) for scale in scales)
        or getattr(block, "gamma_1", None) is not None,
    }


def _read_block(block: Any) -> BlockSpec:
    attention = block.attn
    return BlockSpec(
        heads=attention.num_heads,
        d_qk=attention.head_dim,
        d_v=attention.head_dim,
        # The fused kernel scales by the width it is given, whatever the attribute says.
        scale=attention.head_dim**-0.5 if attention.fused_attn else attention.scale,
        mlp_width=block.mlp.fc2.in_features,
        norm1_eps=_required_eps(block.norm1),
        norm2_eps=_required_eps(block.norm2),
    )


def _eps(norm: Any) -> float | None:
    """Eps of a norm, None where there is none."""
    if isinstance(norm, nn.Identity):
        return None
    if type(norm) not in NORMS:
        raise _UnknownError(
            f"its norm is {type(norm).__name__!r}; known: {', '.join(sorted(k.__name__ for k in NORMS))}"
        )
    eps: float = norm.eps
    return eps


def _required_eps(norm: Any) -> float:
    eps = _eps(norm)
    if eps is None:
        raise _UnknownError("a block lacks a norm")
    return eps


def _read_activation(activation: nn.Module) -> str:
    """Name an activation by what it computes: timm has several classes for each."""
    inputs = torch.linspace(-12, 12, 1001, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        found = activation(inputs.clone())
    for name, known in ACTIVATIONS.items():
        if torch.allclose(found, known(inputs), rtol=1e-10, atol=1e-12):
            return name
    raise _UnknownError(f"its activation is {type(activation).__name__!r}; known: {', '.join(ACTIVATIONS)}")


def _read_preprocess(model: Any) -> Preprocess:
    config = resolve_model_data_config(model)
    if model.patch_embed.img_size is None:
        raise _UnknownError("it has no input size; set image_size")
    height, width = model.patch_embed.img_size
    return Preprocess(
        height=height,
        width=width,
        crop_share=config["crop_pct"],
        crop_mode=config["crop_mode"],
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
    )


def _read_state(model: Any) -> dict[str, Tensor]:
    state = {name: tensor.detach().to("cpu", torch.float32).clone() for name, tensor in model.state_dict().items()}
    if isinstance(model, VisionTransformerDistilled) and "head_dist.weight" in state:
        # (W1 x0 + b1 + W2 x1 + b2) / 2 is one linear layer over the two tokens side by side.
        state["reg_token"] = state.pop("dist_token")
        state["head.weight"] = torch.cat([state["head.weight"], state.pop("head_dist.weight")], dim=1) / 2
        state["head.bias"] = (state["head.bias"] + state.pop("head_dist.bias")) / 2
    return plain_state(model, state) if isinstance(model, Eva) else state


def _compare(model: Any, spec: ViTSpec, state: dict[str, Tensor]) -> None:
    """Raise where the rebuilt model does not compute what timm's does.

    In fp64 a wrong formula cannot hide behind rounding, not even behind a LayerScale of 1e-5.
    """
    small = count_macs(spec) <= FP64_MACS
    dtype = torch.float64 if small else torch.float32
    rounds = isinstance(model, VisionTransformerDistilled)  # the mean of two biases, in fp32
    exact = small and not rounds and not any(isinstance(module, COMPUTES_IN_FP32) for module in model.modules())
    rotary = getattr(model, "rope", None) is not None  # whose table is fp32, also where timm computes it anew in fp64
    tolerance = (1e-6 if rotary else 1e-9) if exact else 1e-4
    reference = copy.deepcopy(model).to("cpu", torch.float32).to(dtype).eval()
    rebuilt = build_empty(spec)
    rebuilt.load_state_dict({key: tensor.to(dtype) for key, tensor in state.items()}, assign=True)
    rebuilt.eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(PARITY_IMAGES, *spec.input_shape, generator=generator, dtype=dtype)
    with torch.no_grad():
        expected = reference.forward_features(images), reference(images)
        found = rebuilt.forward_tokens(images), rebuilt(images)
    for what, ours, theirs in zip(("tokens", "outputs"), found, expected, strict=True):
        error = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))
        logger.debug("parity with timm %s: relative error %.3g of %s", spec.architecture, error, what)
        if not error <= tolerance:  # also where it is NaN
            raise _UnknownError(
                f"it computes something vitrim does not know: rebuilt, its {what} differ by {error:.2g} of the largest "
                f"(rounding explains {tolerance:g})"
            )
