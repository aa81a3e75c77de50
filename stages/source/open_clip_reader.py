"""From a folder of open_clip to a ViTSpec and weights of its image tower, without that library.

The tower is built as timm's VisionTransformer, filled by timm's own converter and read as every timm model is. Config
fields: CLIPVisionCfg of open_clip 2 and 3 (https://github.com/mlfoundations/open_clip); tests compare with it.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import LayerNorm, QuickGELU
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from stages.source.folders import Kind, find_weights, read_json
from stages.source.processor import pair, read_open_clip_preprocess
from stages.source.tensors import read_weights, set_classes
from stages.vit.files import check_fits
from stages.vit.spec import ViTSpec
from stages.vit.timm_reader import check_class, read_spec, read_timm
from targets.errors import InputError

READ = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value", "no_ln_pre"}
READ |= {"final_ln_after_pool", "pool_type", "act_kwargs", "norm_kwargs"}
TRAINING_ONLY = {"patch_dropout", "output_tokens", "timm_drop", "timm_drop_path", "timm_model_pretrained"}
IGNORED_WHEN_OFF = {"attn_pooler_queries", "attn_pooler_heads", "timm_pool", "timm_proj", "timm_proj_bias"}
"""read only together with options that vitrim refuses, or with timm_model_name"""
DEFAULTS = {"pos_embed_type": ("learnable", "sin_cos_2d"), "block_type": (None, "default")}
"""values that compute nothing else; of other fields: nothing that counts as true"""


def read_open_clip(
    folder: Path, *, size: tuple[int, int] | None, classes: int | None, seed: int
) -> tuple[ViTSpec, dict[str, Tensor], bool]:
    """Read a folder with open_clip_config.json and weights: the image tower with its projection as the head.

    Returns spec, fp32 weights and whether the head is new (drawn from the seed, where another number of classes is
    asked for). Raises InputError.
    """
    whole = read_json(folder / "open_clip_config.json")
    config = whole.get("model_cfg", whole)
    vision = config.get("vision_cfg")
    if not isinstance(vision, dict):
        raise InputError(f"open_clip_config.json in {str(folder)!r} has no vision_cfg; vitrim reads the image tower")
    name = f"open_clip/{vision.get('timm_model_name') or 'ViT'}"
    weights = find_weights(folder, Kind.OPEN_CLIP)
    assert weights is not None  # kind_of looked
    try:
        model = _build(config, vision, size)
        read_spec(model, name=name)
        state = _tower(read_weights(weights), model)
        model.load_state_dict(state, assign=True)
        spec, read = read_timm(model, name=name)
        preprocess = read_open_clip_preprocess(whole.get("preprocess_cfg") or {}, spec.input_shape[1:])
        spec = spec.replace(preprocess=preprocess)
        new_head = set_classes(
            read, spec.classes if classes is None else classes, features=spec.feature_width, seed=seed
        )
        if classes is not None:
            spec = spec.replace(classes=classes, head_bias=classes > 0)
    except InputError as error:
        raise InputError(f"cannot read {str(folder)!r}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        what = f"its config lacks {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"cannot read {str(folder)!r}: {what}") from error
    return spec, read, new_head


def _build(config: Mapping[str, Any], vision: Mapping[str, Any], size: tuple[int, int] | None) -> Any:
    """Build the tower as a timm model on the meta device."""
    outputs = int(config["embed_dim"])
    with torch.device("meta"):
        return _build_timm(vision, outputs, size) if vision.get("timm_model_name") else _build_own(config, vision, size)


def _build_own(config: Mapping[str, Any], vision: Mapping[str, Any], size: tuple[int, int] | None) -> VisionTransformer:
    _refuse_unknown(vision)
    layers, width = vision.get("layers", 12), int(vision.get("width", 768))
    if not isinstance(layers, int):
        raise InputError("its image tower is a ResNet (layers is a list); vitrim reads Vision Transformers")
    pool = vision.get("pool_type") or "tok"
    if pool not in ("tok", "avg"):
        raise InputError(f"pool_type {pool!r} is not known; known: tok, avg")
    activation = QuickGELU if config.get("quick_gelu") else nn.GELU
    after_pool = bool(vision.get("final_ln_after_pool"))
    return VisionTransformer(
        img_size=size or pair(vision.get("image_size", 224)),
        patch_size=pair(vision.get("patch_size", 16)),
        embed_dim=width,
        depth=layers,
        num_heads=width // int(vision.get("head_width", 64)),
        mlp_ratio=float(vision.get("mlp_ratio", 4.0)),
        init_values=vision.get("ls_init_value"),
        pre_norm=not vision.get("no_ln_pre"),
        fc_norm=after_pool,
        global_pool="token" if pool == "tok" else "avg",
        num_classes=int(config["embed_dim"]),
        norm_layer=partial(LayerNorm, **{"eps": 1e-5, **(vision.get("norm_kwargs") or {})}),
        act_layer=partial(activation, **(vision.get("act_kwargs") or {})),
    )


def _build_timm(vision: Mapping[str, Any], outputs: int, size: tuple[int, int] | None) -> Any:
    name = vision["timm_model_name"]
    pool, projection = vision.get("timm_pool", "avg"), vision.get("timm_proj", "linear")
    if pool in ("abs_attn", "rot_attn"):
        raise InputError(f"its tower {name!r} pools by attention (timm_pool {pool!r}), which vitrim does not know")
    if projection not in ("linear", "none", "", None):
        raise InputError(f"its tower {name!r} ends in timm_proj {projection!r}; known: linear, none, or empty")
    pooling: dict[str, Any] = {"global_pool": pool} if pool else {}
    arguments: dict[str, Any] = {"img_size": size} if size else {}
    try:
        if projection == "linear":  # its pooling is changed after it was built, which leaves its norms where they are
            model = timm.create_model(name, **arguments)
            model.reset_classifier(outputs, **pooling)
        else:
            model = timm.create_model(name, num_classes=0 if projection == "none" else outputs, **pooling, **arguments)
    except Exception as error:  # timm says in many ways what is wrong
        raise InputError(f"timm cannot build its tower {name!r}: {type(error).__name__}: {error}") from error
    check_class(model, name=name)
    return model


def _refuse_unknown(vision: Mapping[str, Any]) -> None:
    """Raise InputError for a field that changes what the tower computes in a way that is not read."""
    for name, value in vision.items():
        if name in READ | TRAINING_ONLY | IGNORED_WHEN_OFF:
            continue
        if value not in DEFAULTS[name] if name in DEFAULTS else bool(value):
            raise InputError(f"its image tower has {name} {value!r}, which vitrim does not know")


def _tower(whole: dict[str, Tensor], model: VisionTransformer) -> dict[str, Tensor]:
    """The image tower's tensors in timm's names, its projection as the head, in fp32."""
    state = {name: tensor.float() for name, tensor in whole.items() if name.startswith("visual.")}
    if not state:
        text = "; it holds a text tower only" if any("resblocks." in name for name in whole) else ""
        raise InputError(f"its weights hold no image tower: no tensor is called visual.…{text}")
    renamed = {name.replace(".ls_1.", ".ls1.").replace(".ls_2.", ".ls2."): tensor for name, tensor in state.items()}
    adapted: dict[str, Tensor] = checkpoint_filter_fn(renamed, model)
    if "visual.head.proj.bias" in state:
        adapted["head.bias"] = state["visual.head.proj.bias"]
    if isinstance(model.fc_norm, nn.LayerNorm) and "norm.weight" in adapted:
        adapted |= {f"fc_norm.{part}": adapted.pop(f"norm.{part}") for part in ("weight", "bias")}
    if model.patch_embed.proj.bias is not None and "patch_embed.proj.bias" not in adapted:
        adapted["patch_embed.proj.bias"] = torch.zeros(model.patch_embed.proj.out_channels)
    check_fits(adapted, model)
    return adapted
