"""Folders and checkpoints of open_clip: the same image features as that library, or a reason in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.source.load import Source, load_source
from stages.source.options import SourceOptions
from stages.vit.files import build_empty
from targets.errors import InputError

open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed (extra dev)")

VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
PREPROCESS = {
    "size": [32, 32],
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}
TRUNK = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160}


def make(vision: dict[str, Any], **config: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    """An open_clip model with random weights, none of which is a neutral 0 or 1, and its config."""
    torch.manual_seed(5)
    model_class = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, **config}
    model = model_class(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, {"model_cfg": config, "preprocess_cfg": PREPROCESS}


def save(folder: Path, model: torch.nn.Module, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def answer(source: Source, images: Tensor) -> Tensor:
    model = build_empty(source.spec)
    model.load_state_dict(source.state, assign=True)
    with torch.no_grad():
        found: Tensor = model(images)
    return found


@pytest.mark.parametrize(
    ("vision", "config"),
    [
        (VISION, {}),
        (VISION, {"quick_gelu": True}),
        ({**VISION, "mlp_ratio": 2.5, "ls_init_value": 0.1}, {}),
        (
            {
                **VISION,
                "no_ln_pre": True,
                "final_ln_after_pool": True,
                "pool_type": "avg",
                "pos_embed_type": "sin_cos_2d",
            },
            {},
        ),
        ({**VISION, "pool_type": "avg"}, {}),
        ({**VISION, "norm_kwargs": {"eps": 1e-3}, "act_kwargs": {"approximate": "tanh"}}, {}),
        (TRUNK, {"custom_text": True}),
        ({**TRUNK, "timm_pool": "avg", "timm_proj_bias": True}, {"custom_text": True}),
        ({**TRUNK, "timm_pool": "avg", "timm_proj": "none"}, {"custom_text": True}),
    ],
    ids=["plain", "quick_gelu", "layer_scale", "clipa", "avg", "norm_act", "timm", "timm_bias", "timm_no_head"],
)
def test_it_embeds_images_as_the_library_does(vision: dict[str, Any], config: dict[str, Any], tmp_path: Path) -> None:
    model, written = make(vision, **config)
    source = load_source(SourceOptions(folder=save(tmp_path, model, written)), seed=0)
    images = torch.randn(2, *source.spec.input_shape)
    with torch.no_grad():
        expected = model.encode_image(images)

    torch.testing.assert_close(answer(source, images), expected, rtol=1e-4, atol=2e-5)
    assert source.weights == "open_clip"
    preprocess = source.spec.preprocess
    assert (preprocess.mean, preprocess.std, preprocess.crop_mode) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "squash")
    assert (preprocess.interpolation, preprocess.crop_share) == ("bilinear", 1.0)


def test_another_size_resamples_the_position_as_the_library_does(tmp_path: Path) -> None:
    model, written = make(VISION)
    folder = save(tmp_path, model, written)
    source = load_source(SourceOptions(folder=folder, image_size=48), seed=0)
    torch.manual_seed(0)
    larger = open_clip.CLIP(**{**written["model_cfg"], "vision_cfg": {**VISION, "image_size": 48}}).eval()
    state = dict(model.state_dict())
    open_clip.model.resize_pos_embed(state, larger)
    larger.load_state_dict(state)
    images = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        expected = larger.encode_image(images)

    torch.testing.assert_close(answer(source, images), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("classes", [0, 5])
def test_another_number_of_classes_changes_the_head_alone(classes: int, tmp_path: Path) -> None:
    folder = save(tmp_path, *make(VISION))
    own, other = (load_source(SourceOptions(folder=folder, classes=count), seed=0) for count in (None, classes))

    assert (own.spec.classes, other.spec.classes) == (24, classes)
    assert ("head.weight" in other.state) == bool(classes)
    assert all(torch.equal(x, own.state[name]) for name, x in other.state.items() if not name.startswith("head."))
    assert other.weights == ("open_clip, new head" if classes else "open_clip")


# checkpoints of training runs, with a timm name


def clip_model() -> tuple[torch.nn.Module, str]:
    """An open_clip model with the shapes of timm's smallest CLIP tower, of which the test takes one block."""
    torch.manual_seed(5)
    reference = timm.create_model("vit_xsmall_patch16_clip_224", depth=1)
    width, heads = reference.embed_dim, reference.blocks[0].attn.num_heads
    vision = {"image_size": 224, "layers": 1, "width": width, "head_width": width // heads, "patch_size": 16}
    return open_clip.CLIP(embed_dim=40, vision_cfg=vision, text_cfg=TEXT).eval(), "vit_xsmall_patch16_clip_224"


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_checkpoint_of_a_training_run_is_read_with_a_timm_name(wrapped: bool, tmp_path: Path) -> None:
    model, name = clip_model()
    state = {f"module.{key}": tensor for key, tensor in model.state_dict().items()} if wrapped else model.state_dict()
    torch.save({"epoch": 3, "name": "run", "state_dict": state} if wrapped else state, tmp_path / "epoch_3.pt")
    options = SourceOptions(timm=name, checkpoint=tmp_path / "epoch_3.pt", arguments={"depth": 1})
    source = load_source(options, seed=0)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model.encode_image(images)

    assert (source.spec.classes, source.weights) == (40, "checkpoint")
    torch.testing.assert_close(answer(source, images), expected, rtol=1e-4, atol=2e-5)


def test_a_text_tower_alone_is_refused(tmp_path: Path) -> None:
    model, name = clip_model()
    text = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("visual.")}
    torch.save(text, tmp_path / "text.pt")
    with pytest.raises(InputError, match="holds a text tower only"):
        load_source(SourceOptions(timm=name, checkpoint=tmp_path / "text.pt", arguments={"depth": 1}), seed=0)


# bad input


def _vision(config: dict[str, Any], **changes: Any) -> None:
    config["model_cfg"]["vision_cfg"] = {**config["model_cfg"]["vision_cfg"], **changes}


def _no_vision(config: dict[str, Any]) -> None:
    del config["model_cfg"]["vision_cfg"]


def _no_width(config: dict[str, Any]) -> None:
    del config["model_cfg"]["embed_dim"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda config: _vision(config, attentional_pool=True),
            "has attentional_pool True, which vitrim does not know",
        ),
        (lambda config: _vision(config, qk_norm=True), "has qk_norm True"),
        (lambda config: _vision(config, block_type="custom"), "has block_type 'custom'"),
        (lambda config: _vision(config, layers=[3, 4, 6, 3]), "is a ResNet"),
        (lambda config: _vision(config, layers=3), "tensors 12 missing"),
        (lambda config: _vision(config, pool_type="none"), "pool_type 'none' is not known; known: tok, avg"),
        (lambda config: _vision(config, timm_model_name="test_vit", timm_proj="mlp"), "ends in timm_proj 'mlp'"),
        (lambda config: _vision(config, timm_model_name="resnet18"), "its class is 'ResNet'"),
        (lambda config: _vision(config, timm_model_name="vit_none"), "timm cannot build its tower 'vit_none'"),
        (_no_vision, "has no vision_cfg"),
        (_no_width, "its config lacks 'embed_dim'"),
        (lambda config: config["preprocess_cfg"].update(resize_mode="longest"), "resize_mode 'longest' is not known"),
        (
            lambda config: config["preprocess_cfg"].update(std=[0, 1, 1]),
            "preprocess_cfg: std.0: Input should be greater",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(
    change: Callable[[dict[str, Any]], Any], reason: str, tmp_path: Path
) -> None:
    model, config = make(VISION)
    config = json.loads(json.dumps(config))
    change(config)
    with pytest.raises(InputError, match=reason) as caught:
        load_source(SourceOptions(folder=save(tmp_path, model, config)), seed=0)

    assert "\n" not in str(caught.value)


def test_weights_of_a_text_tower_alone_are_refused(tmp_path: Path) -> None:
    model, config = make(VISION)
    folder = save(tmp_path, model, config)
    text = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("visual.")}
    save_file(text, folder / "open_clip_model.safetensors")
    with pytest.raises(InputError, match=r"hold no image tower.*a text tower only"):
        load_source(SourceOptions(folder=folder), seed=0)
