"""From a folder of Hugging Face transformers to a ViTSpec and weights, without that library.

Read are ViT, DeiT, DINOv2 (also with registers) and CLIP's vision tower, alone or out of a whole CLIP. Names, and what
a head reads, are those of transformers 4 and 5 (https://github.com/huggingface/transformers); tests compare with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from stages.source.folders import Kind, find_weights, read_json
from stages.source.processor import pair, read_processor
from stages.source.tensors import Renames, pack_qkv, read_weights, rename, resample_position, set_classes
from stages.vit.files import build_empty, check_fits
from stages.vit.spec import BlockSpec, ViTSpec
from targets.errors import InputError, suggest

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""transformers' names and ours"""

_EMBEDDINGS: Renames = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.(?:distillation_token|register_tokens)$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^(?:cls_)?classifier\.", "head."),
)
_ATTENTION: Renames = (
    (r"^encoder\.layer\.(\d+)\.attention\.attention\.", r"blocks.\1.attn."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
)
_VIT: Renames = (
    *_EMBEDDINGS,
    *_ATTENTION,
    (r"^encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    (r"^encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"^encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
)
_DINOV2: Renames = (
    *_EMBEDDINGS,
    *_ATTENTION,
    (r"^encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^encoder\.layer\.(\d+)\.mlp\.weights_in\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layer\.(\d+)\.mlp\.weights_out\.", r"blocks.\1.mlp.fc2."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
)
_CLIP: Renames = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.", r"blocks.\1.attn.\2."),
    (r"^encoder\.layers\.(\d+)\.layer_norm([12])\.", r"blocks.\1.norm\2."),
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"^(?:visual_projection|classifier)\.", "head."),
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the models of one `model_type` have in common."""

    prefix: str
    """of the tower's tensors in a model with a head"""
    renames: Renames
    qkv: tuple[str, str, str] = ("query", "key", "value")
    patch_size: int = 16
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    antialias: bool = True
    """when the position embedding is resampled; transformers does it itself for DINOv2 only"""


FAMILIES = {
    "vit": Family(prefix="vit.", renames=_VIT),
    "deit": Family(prefix="deit.", renames=_VIT),
    "dinov2": Family(prefix="dinov2.", renames=_DINOV2, patch_size=14, layer_norm_eps=1e-6, antialias=False),
    "dinov2_with_registers": Family(prefix="dinov2_with_registers.", renames=_DINOV2, layer_norm_eps=1e-6),
    "clip_vision_model": Family(
        prefix="vision_model.",
        renames=_CLIP,
        qkv=("q", "k", "v"),
        patch_size=32,
        layer_norm_eps=1e-5,
        hidden_act="quick_gelu",
    ),
}
DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "num_channels": 3,
}
"""what a config that leaves a field out means; those that differ are in Family"""
DROPPED = (
    r"text_model\.",
    r"text_projection\.",
    r"logit_scale$",
    r"pooler\.",  # tanh on the class token, which no classifier of these families reads
    r"embeddings\.mask_token$",  # read in pretraining only
    r"embeddings\.position_ids$",  # a count that older versions saved
)


def read_transformers(
    folder: Path, *, size: tuple[int, int] | None, classes: int | None, seed: int
) -> tuple[ViTSpec, dict[str, Tensor], list[str] | None, bool]:
    """Read a folder with config.json, preprocessor_config.json and weights.

    Returns spec, fp32 weights, class names where the config has them, and whether the head is new (drawn from the seed,
    because the user wants another number of classes). Raises InputError.
    """
    whole = read_json(folder / "config.json")
    kind, config = _vision_config(whole, folder)
    family, config = FAMILIES[kind], with_defaults(kind, config)
    preprocess = read_processor(folder, size=size)
    weights = find_weights(folder, Kind.TRANSFORMERS)
    assert weights is not None  # kind_of looked
    state = _read_state(weights, family)
    try:
        facts = _facts(kind, config, state)
        patch = facts["patch_size"]
        grid = (preprocess.height // patch[0], preprocess.width // patch[1])
        trained = pair(config["image_size"])
        state["pos_embed"] = resample_position(
            state["pos_embed"],
            grid,
            prefix=1 + facts["register_tokens"] if facts["position_covers_prefix"] else 0,
            antialias=family.antialias,
            old=(trained[0] // patch[0], trained[1] // patch[1]),
        )
        features = 2 * facts["width"] if facts["pooling"] in ("token_pair", "token_avg") else facts["width"]
        own = len(state["head.weight"]) if "head.weight" in state else 0
        new_head = set_classes(state, own if classes is None else classes, features=features, seed=seed)
        spec = ViTSpec.model_validate(
            {
                "architecture": f"transformers/{kind}",
                "preprocess": preprocess,
                "classes": len(state["head.weight"]) if "head.weight" in state else 0,
                "head_bias": "head.bias" in state,
                **facts,
            }
        )
        check_fits(state, build_empty(spec))
    except ValidationError as error:
        first = error.errors()[0]
        where, reason = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
        raise InputError(f"cannot read {str(folder)!r}: {where}{': ' if where else ''}{reason}") from error
    except KeyError as error:
        raise InputError(f"cannot read {str(folder)!r}: its config or weights lack {error.args[0]!r}") from error
    except (InputError, ValueError) as error:
        raise InputError(f"cannot read {str(folder)!r}: {error}") from error
    named = None if new_head else _labels(whole, spec.classes)
    return spec, state, named, new_head


def _vision_config(config: Mapping[str, Any], folder: Path) -> tuple[str, Mapping[str, Any]]:
    """The model's kind and the config of its image tower."""
    kind = config.get("model_type")
    if kind is None and isinstance(config.get("architecture"), str):
        raise InputError(
            f"config.json in {str(folder)!r} is timm's; give timm: {config['architecture']} with its weights as "
            "checkpoint"
        )
    if kind in ("clip_text_model", "siglip_text_model"):
        raise InputError(f"{str(folder)!r} is a text tower ({kind}); vitrim reads images: give the vision tower")
    if kind == "clip":
        vision = config.get("vision_config")
        if not isinstance(vision, dict):
            raise InputError(
                f"config.json in {str(folder)!r} has no vision_config; save the model with its vision tower"
            )
        return "clip_vision_model", vision
    if kind not in FAMILIES:
        known = sorted([*FAMILIES, "clip"])
        raise InputError(
            f"config.json in {str(folder)!r}: unknown architecture, model_type {kind!r}; {suggest(str(kind), known)}"
        )
    return str(kind), config


def with_defaults(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what transformers takes for fields that it leaves out when they have their default."""
    family = FAMILIES[kind]
    own = {name: getattr(family, name) for name in ("patch_size", "layer_norm_eps", "hidden_act")}
    return {**DEFAULTS, **own, **config}


def _read_state(weights: Path, family: Family) -> dict[str, Tensor]:
    state = read_weights(weights)
    if not any("embeddings.patch_embedding" in name for name in state):
        text = " but a text tower" if any("text_model." in name for name in state) else ""
        raise InputError(
            f"{str(weights)!r} holds no vision tower{text}: no tensor is called embeddings.patch_embedding…"
        )
    bare = {name.removeprefix(family.prefix): tensor for name, tensor in state.items()}
    renamed = rename(bare, family.renames, dropped=DROPPED)
    pack_qkv(renamed, query=family.qkv[0], key=family.qkv[1], value=family.qkv[2])
    return renamed


def _facts(kind: str, config: Mapping[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """Fields of the spec; brings tokens, position and head in the state into timm's form."""
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    if config["num_channels"] != 3:
        raise ValueError(f"it reads {config['num_channels']} channels; vitrim prepares RGB images, so it must read 3")
    if heads < 1 or width % heads:
        raise ValueError(f"hidden_size {width} is not a multiple of num_attention_heads {heads}")
    activation = config["hidden_act"]
    if activation not in ACTIVATIONS:
        raise ValueError(f"hidden_act {activation!r} is not known; known: {', '.join(ACTIVATIONS)}")
    gated = bool(config.get("use_swiglu_ffn", False))
    eps = float(config["layer_norm_eps"])
    facts: dict[str, Any] = {
        "patch_size": pair(config["patch_size"]),
        "width": width,
        "activation": "silu" if gated else ACTIVATIONS[activation],
        "mlp_kind": "glu" if gated else "mlp",
        "patch_bias": "patch_embed.proj.bias" in state,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "layer_scale": "blocks.0.ls1.gamma" in state,
        "final_norm_eps": eps,
        "position_covers_prefix": True,
        "pooling": "token",
        "blocks": [
            BlockSpec(
                heads=heads,
                d_qk=width // heads,
                d_v=width // heads,
                scale=(width // heads) ** -0.5,
                mlp_width=state[f"blocks.{index}.mlp.fc2.weight"].shape[1],
                norm1_eps=eps,
                norm2_eps=eps,
            )
            for index in range(int(config["num_hidden_layers"]))
        ],
    }
    if kind == "clip_vision_model":
        facts |= _clip_facts(state, eps)
    elif kind in ("dinov2", "dinov2_with_registers"):
        facts |= _dinov2_facts(state)
    elif "distillation_classifier.weight" in state:  # the mean of both heads is one over the two tokens side by side
        state["head.weight"] = torch.cat([state["head.weight"], state.pop("distillation_classifier.weight")], dim=1) / 2
        state["head.bias"] = (state["head.bias"] + state.pop("distillation_classifier.bias")) / 2
        facts["pooling"] = "token_pair"
    facts["register_tokens"] = state["reg_token"].shape[1] if "reg_token" in state else 0
    return facts


def _clip_facts(state: dict[str, Tensor], eps: float) -> dict[str, Any]:
    state["cls_token"] = state["cls_token"].reshape(1, 1, -1)
    state["pos_embed"] = state["pos_embed"].unsqueeze(0)
    facts: dict[str, Any] = {"pre_norm_eps": eps}
    if "head.bias" in state:  # CLIPForImageClassification: the mean patch, before the final norm
        del state["norm.weight"], state["norm.bias"]
        facts |= {"pooling": "avg", "final_norm_eps": None}
    return facts


def _dinov2_facts(state: dict[str, Tensor]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if "reg_token" in state:  # they have no position: that of the class token becomes part of it
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
        facts["position_covers_prefix"] = False
    if "head.weight" in state:
        facts["pooling"] = "token_avg"
    return facts


def _labels(config: Mapping[str, Any], classes: int) -> list[str] | None:
    """The names under id2label, unless they are transformers' placeholders."""
    names = config.get("id2label")
    if not isinstance(names, dict) or {str(key) for key in names} != {str(index) for index in range(classes)}:
        return None
    labels = [str(names[str(index)]) for index in range(classes)]
    return None if not labels or all(name == f"LABEL_{i}" for i, name in enumerate(labels)) else labels
